"""Who may call the pods of an attempt, and whom they may call. Pure.

KubeRay can make such a policy itself, behind a gate that is off by default; this one does not depend on it. It holds
only where the cluster's network enforces NetworkPolicy, and says nothing about RDMA, which passes it by.
"""

from __future__ import annotations

from typing import Any

from orchestrator.launch.rayjob.names import Object
from orchestrator.launch.rayjob.settings import ClusterSettings, Egress, Isolation

DASHBOARD_PORT = 8265
_NAMESPACE = "kubernetes.io/metadata.name"


def network_policy(metadata: Object, pods: dict[str, str], settings: ClusterSettings) -> Object:
    """`pods` are labels that the pods of this attempt have, and no others."""
    isolation, controller = settings.isolation, settings.controller
    peers = {"podSelector": {"matchLabels": pods}}
    operator = {"namespaceSelector": {"matchLabels": {_NAMESPACE: isolation.operator_namespace}}}
    events = {
        "namespaceSelector": {"matchLabels": {_NAMESPACE: controller.namespace}},
        "podSelector": {"matchLabels": dict(controller.pod_labels)},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": {"matchLabels": pods},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [peers]}, {"from": [operator], "ports": [_port(DASHBOARD_PORT)]}],
            "egress": [
                {"to": [peers]},
                {"to": _name_service(isolation), "ports": [_port(53, "UDP"), _port(53)]},
                {"to": [events], "ports": [_port(controller.port)]},
                *(_outside(one) for one in isolation.egress),
            ],
        },
    }


def _name_service(isolation: Isolation) -> list[dict[str, Any]]:
    blocks = [{"ipBlock": {"cidr": cidr}} for cidr in isolation.dns_cidrs]
    return [{"namespaceSelector": {"matchLabels": {_NAMESPACE: isolation.dns_namespace}}}, *blocks]


def _outside(rule: Egress) -> Object:
    block: Object = {"cidr": rule.cidr}
    if rule.apart_from:
        block["except"] = list(rule.apart_from)
    return {"to": [{"ipBlock": block}], "ports": [_port(port) for port in rule.ports]}


def _port(port: int, protocol: str = "TCP") -> Object:
    return {"port": port, "protocol": protocol}
