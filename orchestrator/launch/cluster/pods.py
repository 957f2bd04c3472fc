"""What one pod says: whether it has a node, what is in its way, what has ended it. Pure.

Fields by the core API; what they hold in each case was observed (docs/kubernetes.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.kube.resources import Json
from orchestrator.launch.base import Told
from orchestrator.launch.cluster.kinds import condition, first_line, labels_of, leaves, seconds_of, status_of
from orchestrator.launch.failure import FailureClass
from orchestrator.status import Reason

SETTLING_SECONDS = 20.0
"""So long after it got its node a pod may complain of secrets and volumes that are about to come."""
STUCK_SECONDS = 120.0
"""So long an init container may run: `wait-gcs-ready` took 14 to 16 s where the head was there."""
NODE_TYPE = "ray.io/node-type"
RAY_CLUSTER = "ray.io/cluster"
_NO_IMAGE = (
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
    "RegistryUnavailable", "SignatureValidationFailed",
)  # fmt: skip
NO_NODE = " finds no node: "
"""Between a pod and the scheduler's words."""
_NOT_THE_CAUSE = re.compile(r"\.? (?:no new claims to deallocate|preemption: )")
"""Where the scheduler goes on with what it has tried in vain."""
_TAKEN = ("PreemptionByScheduler", "EvictionByEvictionAPI")
"""Reasons of DisruptionTarget by which somebody else wanted the machine; by the others it is lost."""
_FULL = ("TerminationByKubelet", "Evicted")
"""Reasons by which a machine has no more room, often for what the pod itself has written: it does not fail."""


def part_of(pod: Json) -> str:
    """head, worker, or the submitter, which is no node of Ray's."""
    return labels_of(pod).get(NODE_TYPE) or "submitter"


def named(pod: Json) -> str:
    """E.g. `worker tiny-a1-x7k2p-workers-worker-abcde`."""
    return f"{part_of(pod)} {pod['metadata']['name']}"


def is_over(pod: Json) -> bool:
    """Whether all its containers have ended for good; its machine is free then, though it is there to be looked at."""
    return status_of(pod).get("phase") in ("Succeeded", "Failed")


def node_since(pod: Json) -> float | None:
    """Unix time at which it got its node; None: it has none."""
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "True":
        return seconds_of(scheduled.get("lastTransitionTime"))
    return seconds_of(status_of(pod).get("startTime")) if pod["spec"].get("nodeName") else None


def is_paid(pod: Json) -> bool:
    """Whether it has devices, or the cores that a job on CPUs is priced by: only workers do. A head that waits for a
    worker without a node costs nothing that anybody else could have."""
    return part_of(pod) == "worker"


def holds(pod: Json) -> bool:
    """Whether a machine that is paid for is kept for it."""
    return is_paid(pod) and node_since(pod) is not None and not is_over(pod)


def is_ready(pod: Json) -> bool:
    """Whether all its containers answer."""
    return condition(pod, "Ready").get("status") == "True"


def over_since(pod: Json) -> float | None:
    """Unix time at which its last container ended; None while one runs, or where none ever did."""
    if not is_over(pod):
        return None
    ends = (seconds_of(_ended(one).get("finishedAt")) for one in _containers(pod))
    return max((end for end in ends if end is not None), default=None)


def trouble_of(pod: Json, now: float) -> Told | None:
    """What keeps it from running, beside that it takes its time."""
    if is_over(pod) or leaves(pod):
        return None
    since, scheduled = node_since(pod), condition(pod, "PodScheduled")
    if since is None:
        if scheduled.get("reason") != "Unschedulable":
            return None
        why = _NOT_THE_CAUSE.split(scheduled.get("message", ""))[0].rstrip(".")
        return Told(False, Reason.UNSCHEDULABLE, f"{named(pod)}{NO_NODE}{why}")
    found = (_of_container(pod, one, now - since) for one in _containers(pod))
    return next((told for told in found if told is not None), None)


@dataclass(frozen=True)
class Clue:
    """What has ended a pod, or a container of one."""

    failure: FailureClass
    words: str
    pod: str
    node_lost: bool = False
    """Or somebody else has it; not a container that ended by itself."""
    of_driver: bool = False
    """Of a pod without which the attempt cannot go on."""
    node: str = ""
    """That has failed; empty: none has."""


def clue_of(pod: Json) -> Clue | None:
    """None: nothing has, or only a deletion that somebody asked for."""
    found, name, leading = status_of(pod), pod["metadata"]["name"], part_of(pod) != "worker"
    lost, node = FailureClass.DRIVER_LOST if leading else FailureClass.WORKER_LOST, pod["spec"].get("nodeName", "")
    for container in _containers(pod):
        if _ended(container).get("reason") == "OOMKilled":
            return Clue(FailureClass.OUT_OF_MEMORY, _out_of_memory(pod, container), name, of_driver=leading)
    disrupted, said = condition(pod, "DisruptionTarget"), first_line(str(found.get("message", "")))
    if disrupted.get("status") == "True":
        why = disrupted.get("reason", "")
        words = f"{named(pod)} lost its node ({why}): {first_line(disrupted.get('message', ''))}"
        failure = FailureClass.PREEMPTED if why in _TAKEN else lost
        to_blame = "" if why in (*_TAKEN, *_FULL) else node
        return Clue(failure, words, name, node_lost=True, of_driver=leading, node=to_blame)
    if is_over(pod) and (why := found.get("reason")):  # Evicted, NodeLost, ...
        words = f"{named(pod)} was ended by its node ({why}): {said}"
        return Clue(lost, words, name, node_lost=True, of_driver=leading, node="" if why in _FULL else node)
    if part_of(pod) == "submitter" or leaves(pod):
        return None  # the submitter always exits 1 when the driver failed; of one that is deleted all end so
    for container in _containers(pod):
        if code := _ended(container).get("exitCode"):
            words = f"container {container['name']} of {named(pod)} ended with exit code {code}"
            return Clue(lost, words, name, of_driver=leading)
    return None


def _containers(pod: Json) -> Iterable[Json]:
    """Their statuses, init containers first: the others wait for those."""
    found = status_of(pod)
    return [*(found.get("initContainerStatuses") or []), *(found.get("containerStatuses") or [])]


def _ended(container: Json) -> Json:
    """How it ended, or did the last time."""
    for key in ("state", "lastState"):
        ended: Json | None = (container.get(key) or {}).get("terminated")
        if ended:
            return ended
    return {}


def _out_of_memory(pod: Json, container: Json) -> str:
    specs = [*(pod["spec"].get("initContainers") or []), *(pod["spec"].get("containers") or [])]
    spec: Json = next((one for one in specs if one["name"] == container["name"]), {})
    limit = ((spec.get("resources") or {}).get("limits") or {}).get("memory")
    at = f"its limit of {limit}" if limit else "what its node has"
    return f"container {container['name']} of {named(pod)} was killed because it needed more memory than {at}"


def _of_container(pod: Json, container: Json, age: float) -> Told | None:
    """`age`: seconds since the pod got its node."""
    state, where = container.get("state") or {}, f"container {container['name']} of {named(pod)}"
    waiting: Json = state.get("waiting") or {}
    reason, message = waiting.get("reason", ""), first_line(waiting.get("message", ""))
    if reason in _NO_IMAGE:
        return Told(False, Reason.IMAGE_PULL_FAILED, f"{where}: {reason}: {message or container.get('image', '')}")
    if reason == "CrashLoopBackOff":
        code = _ended(container).get("exitCode", "unknown")
        return Told(False, Reason.CRASH_LOOPING, f"{where} ends again and again, the last time with exit code {code}")
    if reason not in ("", "PodInitializing", "ContainerCreating") and age > SETTLING_SECONDS:
        return Told(False, Reason.PODS_NOT_READY, f"{where}: {reason}: {message}")
    initial = container in (status_of(pod).get("initContainerStatuses") or [])
    if initial and (running := state.get("running")) is not None and age > STUCK_SECONDS:
        return Told(False, Reason.PODS_NOT_READY, f"init {where} runs since {running.get('startedAt', 'its node')}")
    return None
