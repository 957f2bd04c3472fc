"""From `fathom why` a stranger must be able to name cause and remedy of whatever keeps a job in a cluster."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.kuberay_objects import (
    BEGAN,
    CLUSTER,
    Json,
    condition,
    container,
    ended,
    pod,
    ray_cluster,
    ray_job,
    unschedulable,
    workload,
)
from support.rendering import job

from orchestrator.controller.standing import Standing, status_of
from orchestrator.launch.cluster.memory import Memory
from orchestrator.launch.cluster.sight import Scene, sight_of
from orchestrator.launch.failure import FailureClass
from orchestrator.status import Attempt, JobStatus, Phase, Reason
from orchestrator.why import why

NOW = datetime.fromtimestamp(BEGAN + 30, UTC)


def told(standing: Standing, base: JobStatus | None = None, scene: Scene | None = None) -> tuple[str, str]:
    """Sentence and advice of a job that stands so; `scene`: what is seen of its living attempt."""
    sight = None if scene is None else sight_of(scene, BEGAN + 30)
    status = status_of(
        standing,
        base or JobStatus(phase=Phase.STARTING),
        JobStatus(),
        NOW,
        alive=sight is not None and sight.alive,
        ordered=None,
        generation=1,
        admitted=None if sight is None else sight.admitted,
        running=None if sight is None else sight.running,
    )
    found = why(job(), status, NOW)
    return found.sentence, found.advice


def scene(
    *pods: Json, state: str = "Initializing", queue: str = "", cluster: Json | None = None, **more: Json
) -> Scene:
    memory = Memory()
    for one in pods:
        memory.show(one["metadata"]["name"], one, BEGAN)
    return Scene(ray_job(state, queue=queue), pods=pods, ray_cluster=cluster, memory=memory, **more)


def waits(reason: str, message: str) -> Json:
    return workload(condition("QuotaReserved", "False", reason, message))


STARTS = Standing(Phase.STARTING, accepted=True)
QUOTA = "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu, 8 more needed"
TEAM = 'pods "x" is forbidden: exceeded quota: team, requested: requests.cpu=2, used: requests.cpu=8, limited: 8'
PULL = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "registry.example.com/fathom:nope"'}


@pytest.mark.parametrize(
    ("seen", "cause", "remedy"),
    [
        pytest.param(
            scene(queue="q", state="Suspended", workload=waits("WaitingForQuota", QUOTA)),
            "nvidia.com/gpu, 8 more needed", "spec.compute", id="no-gpu-free-with-kueue"),
        pytest.param(
            scene(pod("head"), unschedulable("0/4 nodes are available: 4 Insufficient nvidia.com/gpu.", "w")),
            "4 Insufficient nvidia.com/gpu", "spec.compute", id="no-gpu-free-without"),
        pytest.param(
            scene(pod("head", containers=[container("ray-head", waiting=PULL)])),
            "registry.example.com/fathom:nope", "spec.compute.image", id="image-missing"),
        pytest.param(
            scene(cluster=ray_cluster(condition("ReplicaFailure", "True", "FailedCreateHeadPod", TEAM))),
            "requests.cpu=8", "ResourceQuota", id="quota-used-up"),
        pytest.param(
            scene(queue="nope", state="Suspended", workload=waits("Misconfigured", "LocalQueue nope doesn't exist")),
            "LocalQueue nope doesn't exist", "spec.queue.name", id="no-such-queue"),
    ],
)  # fmt: skip
def test_one_that_waits(seen: Scene, cause: str, remedy: str) -> None:
    sentence, advice = told(STARTS, scene=seen)
    assert cause in sentence
    assert remedy in advice


def test_one_that_kueue_took_its_machines_from() -> None:
    words = "Preempted to accommodate a workload (UID: f96e, JobUID: 4a13) due to prioritization in the ClusterQueue"
    lets_go = pod(deleted=True)
    memory = Memory()
    memory.show(lets_go["metadata"]["name"], lets_go, BEGAN)
    memory.name(CLUSTER)
    taken = workload(condition("Evicted", "True", "Preempted", words))
    seen = Scene(ray_job("Suspended", queue="team"), pods=[lets_go], workload=taken, memory=memory)
    sentence, advice = told(Standing(Phase.RUNNING, accepted=True), scene=seen)
    assert "due to prioritization in the ClusterQueue" in sentence
    assert "spec.queue.priorityClass" in advice
    assert "spec.compute.priceClass" not in advice


def test_kuberays_reason_is_said_once() -> None:
    refused = condition("ReplicaFailure", "True", "FailedCreateWorkerPod", f"FailedCreateWorkerPod {TEAM}")
    sentence, _ = told(STARTS, scene=scene(cluster=ray_cluster(refused)))
    assert "FailedCreateWorkerPod: pods " in sentence


def test_too_small_a_budget() -> None:
    why_not = "of 5.00 USD 0.020000 are left, which pay for 9 s; an attempt needs more than 120 s: raise budget.limit"
    sentence, advice = told(Standing(Phase.SUSPENDED, Reason.LIMIT_REACHED, why_not, accepted=True))
    assert "0.020000 are left" in sentence
    assert "spec.budget.limit" in advice


def failed(kind: FailureClass, message: str) -> tuple[str, str]:
    attempt = Attempt(number=1, started_at=NOW, ended_at=NOW, outcome="failed", reason=f"{kind}: {message}")
    base = JobStatus(phase=Phase.FAILED, attempts=[attempt], attempt_count=1)
    return told(Standing(Phase.FAILED, Reason.FAILED, f"attempt 1: {kind}: {message}", accepted=True), base)


def test_bad_data() -> None:
    message = "spec.data.source: no prepared dataset at pvc://data/web: run `fathom data prepare SOURCE pvc://data/web`"
    sentence, advice = failed(FailureClass.USER_ERROR, message)
    assert "no prepared dataset at pvc://data/web" in sentence
    assert "spec.data" in advice


def test_too_little_memory() -> None:
    memory = Memory()
    killed = pod(name="w1", phase="Failed", containers=[container("ray-worker", **ended(137, "OOMKilled"))])
    memory.show("w1", killed, BEGAN)
    verdict = sight_of(Scene(ray_job("Failed", reason="AppFailed"), memory=memory), BEGAN + 5).verdict
    assert verdict is not None
    sentence, advice = failed(verdict.failure, verdict.message)
    assert "more memory than its limit of 4Gi" in sentence
    assert "spec.compute.memoryPerWorker" in advice
