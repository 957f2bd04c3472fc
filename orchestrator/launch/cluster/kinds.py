"""Kinds of objects that an attempt in a cluster is made of, and what all of them have. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from orchestrator.kube.cache import without_managed_fields
from orchestrator.kube.resources import Json, Target

RAY_JOBS = Target("ray.io", "v1", "rayjobs", "RayJob")
RAY_CLUSTERS = Target("ray.io", "v1", "rayclusters", "RayCluster")
PODS = Target("", "v1", "pods", "Pod")
WORKLOADS = Target("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")
SUPPORTING = {
    one.kind: one
    for one in (
        Target("", "v1", "serviceaccounts", "ServiceAccount"),
        Target("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
        Target("", "v1", "secrets", "Secret"),
        Target("", "v1", "configmaps", "ConfigMap"),
    )
}
"""What has to be there before a RayJob, by kind."""


# ------------------------------------------------------------------ what is kept
_CONTAINER: Json = {"name": True, "resources": {"limits": True}}
_READ: Mapping[str, Json] = {
    RAY_JOBS.plural: {"rayClusterSpec": {"workerGroupSpecs": {"replicas": True}}},
    RAY_CLUSTERS.plural: {},
    PODS.plural: {"nodeName": True, "containers": _CONTAINER, "initContainers": _CONTAINER},
    WORKLOADS.plural: {"active": True},
}
"""Fields of specs that anybody here reads, by kind."""


def kept(target: Target, found: Json) -> Json:
    """What a cache keeps of an object: of its spec only what is read. The templates of pods, which RayJob, Ray cluster,
    Workload and each pod repeat, are some 50 KB in Python's own objects each time."""
    spec = found.get("spec")
    if spec is None:
        return without_managed_fields(found)
    return without_managed_fields(found) | {"spec": _only(spec, _READ[target.plural])}


def _only(found: Any, read: Json) -> Any:  # noqa: ANN401 - any JSON
    """These fields of an object, or of each object of a list."""
    if isinstance(found, list):
        return [_only(one, read) for one in found]
    if not isinstance(found, dict):
        return found
    return {
        key: found[key] if deeper is True else _only(found[key], deeper) for key, deeper in read.items() if key in found
    }


# ------------------------------------------------------------------ what all have
def labels_of(found: Json) -> dict[str, str]:
    """All of them."""
    labels: dict[str, str] = found["metadata"].get("labels") or {}
    return labels


def status_of(found: Json | None) -> Json:
    """Empty where there is none."""
    status: Json = (found or {}).get("status") or {}
    return status


def condition(found: Json | None, kind: str) -> Json:
    """The condition of that type; empty where it was not said."""
    conditions: list[Json] = status_of(found).get("conditions") or []
    return next((one for one in conditions if one.get("type") == kind), {})


def owner_uid(found: Json) -> str:
    """Of the controller that it belongs to; empty: of none."""
    owners = found["metadata"].get("ownerReferences") or []
    return next((str(one["uid"]) for one in owners if one.get("controller")), "")


def leaves(found: Json) -> bool:
    """Whether it is being deleted."""
    return bool(found["metadata"].get("deletionTimestamp"))


def seconds_of(text: Any) -> float | None:  # noqa: ANN401 - whatever stands there
    """Unix time of a timestamp as the API server writes it; None where there is none."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def first_line(text: str, most: int = 300) -> str:
    """Of what others say at length."""
    return " ".join(text.strip().partition("\n")[0].split())[:most]
