"""What is seen of an attempt: RayJob, RayCluster, pods, Workload and the time in, a `Sight` out. Pure.

No object is believed alone: a RayJob says Suspended while its pods still write a checkpoint, and RUNNING half a minute
after its head is gone; a RayCluster counts a worker that crashes as available; pods vanish with what they knew
(`memory`). Invariants: an attempt is not over while a pod of it may run; nothing is paid while none has a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.kube.resources import Json
from orchestrator.launch.base import Sight, Told
from orchestrator.launch.cluster import ended, pods
from orchestrator.launch.cluster.kinds import condition, leaves, seconds_of, status_of
from orchestrator.launch.cluster.memory import Memory
from orchestrator.launch.cluster.queued import PATIENCE_SECONDS, admission_of
from orchestrator.launch.failure import FailureClass, Verdict
from orchestrator.status import Reason

READY_SECONDS = 90.0
"""So long pods that have their nodes may take until all are ready, before that is called late: images are pulled."""
_SUSPENDED = ("Suspending", "Suspended")
URGENT = (Reason.PODS_REFUSED, Reason.QUOTA_EXCEEDED, Reason.IMAGE_PULL_FAILED, Reason.CRASH_LOOPING,
          Reason.UNSCHEDULABLE, Reason.PODS_NOT_READY)  # fmt: skip
"""What asks most for somebody, first."""


@dataclass(frozen=True)
class Scene:
    """Of one attempt, as the caches have it."""

    ray_job: Json | None
    """None: there is none any more."""
    ray_cluster: Json | None = None
    """The one that the RayJob names."""
    pods: Sequence[Json] = ()
    """Of all its Ray clusters, and the submitter."""
    workload: Json | None = None
    """Kueue's, if there is one."""
    memory: Memory = field(default_factory=Memory)
    """What was seen before."""

    @property
    def state(self) -> str:
        """KubeRay's."""
        return str(status_of(self.ray_job).get("jobDeploymentStatus", ""))

    @property
    def final(self) -> bool:
        """Whether KubeRay is done with it."""
        return self.state in ended.FINAL

    @property
    def remaining(self) -> list[Json]:
        """Pods that may run."""
        return [pod for pod in self.pods if not pods.is_over(pod)]

    @property
    def is_idle(self) -> bool:
        """Whether its driver cannot have begun: no worker has had a node, or the head's containers have not begun, e.g.
        for want of their image. A head that is gone is not made again once KubeRay has seen it ready."""
        heads = [status_of(pod).get("phase") for pod in self.pods if pods.part_of(pod) == "head"]
        return self.memory.began is None or (bool(heads) and set(heads) == {"Pending"} and self.state != "Running")

    @property
    def is_evicted(self) -> bool:
        """Whether the Ray cluster that it became was taken from it; one that never had a node has lost nothing."""
        known = self.memory.incarnation
        if self.memory.evicted or known is None or self.ray_job is None or self.final:
            return self.memory.evicted
        return self.state in _SUSPENDED or status_of(self.ray_job).get("rayClusterName") != known


def sight_of(scene: Scene, now: float) -> Sight:
    """At this moment (unix seconds by the clock of whoever looks)."""
    holding = any(pods.holds(pod) for pod in scene.pods)
    seen = Sight(
        alive=False,
        began=scene.memory.began,
        let_go=None if holding else _let_go(scene),
        holding=holding,
        incarnation=scene.memory.incarnation,
        up=scene.state == "Running",
        idle=scene.is_idle,
    )
    if scene.is_evicted:
        return _evicted(scene, seen)
    there = scene.ray_job is not None
    if scene.ray_job is None or scene.final or leaves(scene.ray_job):
        verdict = scene.memory.verdict or _verdict(scene, now)
        return _with(seen, left=there or bool(scene.remaining), verdict=verdict)
    admitted = _admitted(scene, scene.ray_job, now)
    return _with(seen, alive=True, admitted=admitted, running=_running(scene, scene.ray_job, now))


def _let_go(scene: Scene) -> float | None:
    """By its pods; by KubeRay where those went while nobody looked."""
    if scene.memory.let_go is not None or scene.memory.began is None:
        return scene.memory.let_go
    return seconds_of(status_of(scene.ray_job).get("endTime")) if scene.final else None


def _verdict(scene: Scene, now: float) -> Verdict:
    """Of a RayJob that is being deleted, only a final state says more than that."""
    return ended.verdict_of(scene.ray_job if scene.final else None, scene.memory.recent(now), scene.memory.trouble)


def _evicted(scene: Scene, seen: Sight) -> Sight:
    """It may be writing a last checkpoint, though its RayJob is Suspended, gone, or has another Ray cluster by now."""
    verdict = scene.memory.verdict or ended.evicted(scene.workload, scene.memory.trouble)
    if not scene.remaining:
        return _with(seen, left=scene.ray_job is not None, verdict=verdict)
    preempted = verdict.failure is FailureClass.PREEMPTED
    reason = Reason.PREEMPTED if preempted else Reason.WAITING_FOR_QUEUE
    running = Told(False, Reason.PREEMPTED if preempted else Reason.STOPPING, verdict.message)
    return _with(seen, alive=True, verdict=verdict, admitted=Told(False, reason, verdict.message), running=running)


def _with(
    seen: Sight,
    *,
    alive: bool = False,
    left: bool = False,
    verdict: Verdict | None = None,
    admitted: Told | None = None,
    running: Told | None = None,
) -> Sight:
    return Sight(
        alive=alive,
        left=left,
        began=seen.began,
        verdict=verdict,
        holding=seen.holding,
        let_go=seen.let_go,
        incarnation=seen.incarnation,
        up=seen.up,
        idle=seen.idle,
        admitted=admitted,
        running=running,
    )


# ------------------------------------------------------------------ in words


def _admitted(scene: Scene, ray_job: Json, now: float) -> Told:
    found = admission_of(ray_job, scene.workload, now)
    created = seconds_of(ray_job["metadata"].get("creationTimestamp"))
    if found.yes and not status_of(ray_job) and created is not None and now - created > PATIENCE_SECONDS:
        made = ray_job["metadata"]["creationTimestamp"]
        words = f"KubeRay has not begun with RayJob {ray_job['metadata']['name']}, made at {made}"
        return Told(False, Reason.KUBERAY_MISSING, words)
    return found


def _running(scene: Scene, ray_job: Json, now: float) -> Told:
    """Until the workers say that they run."""
    if (trouble := trouble_of(scene, now)) is not None:
        return trouble
    words = in_words(scene.pods, wanted(ray_job))
    if scene.state == "Running":
        return Told(False, Reason.STARTING, "its pods are ready, and the driver begins")
    late = scene.memory.began is not None and now - scene.memory.began > READY_SECONDS
    return Told(False, Reason.PODS_NOT_READY if late else Reason.STARTING, words)


def trouble_of(scene: Scene, now: float) -> Told | None:
    """What is in the way of its pods; of several things that which asks most for somebody."""
    refused = condition(scene.ray_cluster, "ReplicaFailure")
    workers_first = sorted(scene.pods, key=lambda pod: pods.part_of(pod) != "worker")
    found = [told for pod in workers_first if (told := pods.trouble_of(pod, now)) is not None]
    homeless = [told.message for told in found if told.reason is Reason.UNSCHEDULABLE]
    if homeless:
        found = [told for told in found if told.reason is not Reason.UNSCHEDULABLE]
        found.append(Told(False, Reason.UNSCHEDULABLE, _homeless(homeless)))
    if refused.get("status") == "True":
        message = str(refused.get("message", ""))
        reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in message else Reason.PODS_REFUSED
        word = str(refused.get("reason"))
        found.append(Told(False, reason, f"{word}: {message.removeprefix(word).lstrip()}"[:900]))
    if len(scene.memory.exits) > 1 and scene.state != "Running":  # each got a new pod at once
        exits = scene.memory.exits
        found.append(Told(False, Reason.CRASH_LOOPING, f"{len(exits)} pods have ended so far; the last: {exits[-1]}"))
    return min(found, key=lambda told: URGENT.index(told.reason), default=None)


def _homeless(messages: Sequence[str]) -> str:
    """Of all pods without a node: once for each thing that is missing, since heads and workers want different ones."""
    alike: dict[str, list[str]] = {}
    for message in messages:
        pod, _, why = message.partition(pods.NO_NODE)
        alike.setdefault(why, []).append(pod)
    more = {why: f" (and {len(found) - 1} more)" if len(found) > 1 else "" for why, found in alike.items()}
    return "; ".join(f"{found[0]}{more[why]}{pods.NO_NODE}{why}" for why, found in alike.items())[:900]


def wanted(ray_job: Json) -> int:
    """Workers that it asks for."""
    groups = (ray_job["spec"].get("rayClusterSpec") or {}).get("workerGroupSpecs") or []
    return sum(int(group.get("replicas") or 0) for group in groups)


def in_words(found: Sequence[Json], workers: int) -> str:
    """How its pods stand, e.g. `head Running, 1 of 2 workers ready`."""
    if not found:
        return "it has no pods yet"
    heads = [str(status_of(pod).get("phase", "Pending")) for pod in found if pods.part_of(pod) == "head"]
    ready = sum(pods.is_ready(pod) for pod in found if pods.part_of(pod) == "worker")
    return f"head {heads[-1] if heads else 'missing'}, {ready} of {workers} workers ready"
