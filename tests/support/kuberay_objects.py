"""Objects of KubeRay, Kueue and the kubelet, as they were seen on a live cluster (docs/kubernetes.md): no others."""

from __future__ import annotations

import datetime
from typing import Any

Json = dict[str, Any]

UID, ATTEMPT = "0b3f2c54-6a0e-4d3b-9a55-2f7f6f1f9c11", "1"
NAME = "mini-a1"
CLUSTER, OTHER_CLUSTER = f"{NAME}-x7k2p", f"{NAME}-q9v4d"
BEGAN = 1_790_000_000.0
"""Unix time of whatever happens at the beginning."""


def stamp(seconds: float) -> str:
    """As the API server writes times."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, status: str, reason: str = "", message: str = "", at: float = BEGAN) -> Json:
    found = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": stamp(at)}
    return {key: value for key, value in found.items() if value or key == "message"}


def ray_job(
    state: str = "", *, cluster: str = CLUSTER, queue: str = "", priority: str = "", deleted: bool = False,
    workers: int = 2, **status: Any,  # noqa: ANN401 - fields of a status
) -> Json:  # fmt: skip
    """`state`: jobDeploymentStatus."""
    labels = {"fathom.dev/job": "mini", "fathom.dev/job-uid": UID, "fathom.dev/attempt": ATTEMPT}
    if queue:
        labels["kueue.x-k8s.io/queue-name"] = queue
    if priority:
        labels["kueue.x-k8s.io/priority-class"] = priority
    metadata: Json = {"name": NAME, "namespace": "team-a", "uid": "ray-job-uid", "labels": labels}
    metadata["creationTimestamp"] = stamp(BEGAN)
    metadata["ownerReferences"] = [{"uid": UID, "controller": True}]
    if deleted:
        metadata["deletionTimestamp"] = stamp(BEGAN)
    cleared = state in ("", "Suspended")
    found = {} if not state else {"jobDeploymentStatus": state} | ({} if cleared else {"rayClusterName": cluster})
    spec = {"rayClusterSpec": {"workerGroupSpecs": [{"groupName": "workers", "replicas": workers}]}}
    return {"metadata": metadata, "spec": spec, "status": found | status}


def ray_cluster(*conditions: Json, name: str = CLUSTER) -> Json:
    return {"metadata": {"name": name, "namespace": "team-a"}, "status": {"conditions": list(conditions)}}


def workload(*conditions: Json, active: bool = True) -> Json:
    metadata = {"name": f"rayjob-{NAME}-3f2a1", "namespace": "team-a", "ownerReferences": [
        {"uid": "ray-job-uid", "controller": True}
    ]}  # fmt: skip
    return {"metadata": metadata, "spec": {"active": active}, "status": {"conditions": list(conditions)}}


def container(name: str, **state: Json) -> Json:
    """`running={}`, `waiting=...`, `terminated=...`, or `last=...` for the state before."""
    last = state.pop("last", None)
    return {"name": name, "state": dict(state), **({"lastState": last} if last else {})}


def pod(
    part: str = "worker", *, name: str = "", cluster: str = CLUSTER, phase: str = "Running",
    node_at: float | None = BEGAN, ready: bool = False, deleted: bool = False,
    containers: list[Json] | None = None, init: list[Json] | None = None, conditions: list[Json] | None = None,
    reason: str = "", message: str = "", memory: str = "4Gi",
) -> Json:  # fmt: skip
    """`part`: head, worker or submitter; `node_at`: when it got its node, None: it has none."""
    labels = {"fathom.dev/job": "mini", "fathom.dev/job-uid": UID, "fathom.dev/attempt": ATTEMPT}
    if part != "submitter":
        labels |= {"ray.io/node-type": part, "ray.io/cluster": cluster}
    main = {"head": "ray-head", "worker": "ray-worker"}.get(part, "ray-job-submitter")
    metadata: Json = {"name": name or f"{cluster}-{part}", "namespace": "team-a", "labels": labels}
    if deleted:
        metadata["deletionTimestamp"] = stamp(BEGAN)
    found = list(conditions or [])
    if node_at is not None:
        found = [condition("PodScheduled", "True", at=node_at), condition("Ready", str(ready)), *found]
    status: Json = {"phase": phase, "conditions": found, "reason": reason, "message": message}
    status["containerStatuses"] = containers if containers is not None else [container(main, running={})]
    status["initContainerStatuses"] = init or []
    spec = {"containers": [{"name": main, "resources": {"limits": {"memory": memory}}}]}
    return {
        "metadata": metadata,
        "spec": spec | ({"nodeName": "node-1"} if node_at is not None else {}),
        "status": status,
    }


def unschedulable(words: str, name: str = "") -> Json:
    said = condition("PodScheduled", "False", "Unschedulable", words)
    return pod(name=name, phase="Pending", node_at=None, conditions=[said], containers=[])


def ended(code: int, reason: str = "Error", at: float = BEGAN + 60) -> Json:
    """The end of a container."""
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": stamp(at)}}
