"""What is seen of an attempt, in every case that was observed on a live cluster."""

from __future__ import annotations

from typing import Any

import pytest
from support.kuberay_objects import (
    BEGAN,
    CLUSTER,
    OTHER_CLUSTER,
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

from orchestrator.launch.base import Sight
from orchestrator.launch.cluster.kinds import PODS, RAY_CLUSTERS, RAY_JOBS, WORKLOADS, kept
from orchestrator.launch.cluster.memory import Memory
from orchestrator.launch.cluster.sight import Scene, sight_of
from orchestrator.launch.failure import FailureClass
from orchestrator.status import REASONS, ConditionType, Reason

NOW = BEGAN + 30


def seen(
    job: Json | None, *pods: Json, now: float = NOW, memory: Memory | None = None, **others: Any,  # noqa: ANN401
) -> Sight:  # fmt: skip
    """After all pods were shown, and the RayJob has named its cluster; of each object there is what caches keep."""
    memory = memory or Memory()
    job, pods = job and kept(RAY_JOBS, job), tuple(kept(PODS, one) for one in pods)
    kinds = {"ray_cluster": RAY_CLUSTERS, "workload": WORKLOADS}
    others = {name: found and kept(kinds[name], found) for name, found in others.items()}
    for one in pods:
        memory.show(one["metadata"]["name"], one, now)
    memory.name(str(((job or {}).get("status") or {}).get("rayClusterName", "")))
    return sight_of(Scene(job, pods=pods, memory=memory, **others), now)


def rooted(*pods: Json) -> Memory:
    """Of an attempt that has become the Ray cluster of these pods."""
    memory = Memory()
    for one in pods or (pod("head"),):
        memory.show(one["metadata"]["name"], one, BEGAN)
    memory.name(CLUSTER)
    assert memory.incarnation == CLUSTER
    return memory


RUNNING = ray_job("Running", jobStatus="RUNNING")
HEAD = pod("head", ready=True)
WORKERS = (pod(name="w1", ready=True), pod(name="w2", ready=True))
QUEUED = ray_job("Suspended", queue="team-queue")


# ------------------------------------------------------------------ alive or not


def test_an_attempt_that_trains() -> None:
    sight = seen(RUNNING, HEAD, *WORKERS)
    assert (sight.alive, sight.left, sight.holding, sight.up) == (True, False, True, True)
    assert (sight.began, sight.incarnation, sight.verdict) == (BEGAN, CLUSTER, None)
    assert sight.admitted is not None
    assert (sight.admitted.yes, sight.admitted.reason) == (True, Reason.NO_QUEUE)


def test_money_begins_with_the_first_workers_node_and_ends_with_the_last() -> None:
    """By the devices: a head that waits for them has none."""
    head, early, late = (
        pod("head", node_at=BEGAN - 9),
        pod(name="v", node_at=BEGAN - 5),
        pod(name="w", node_at=BEGAN + 5),
    )
    assert seen(ray_job("Initializing"), head, early, late).began == BEGAN - 5
    alone = seen(ray_job("Initializing"), head, unschedulable("0/3 nodes are available"))
    assert (alone.alive, alone.holding, alone.began) == (True, False, None)
    assert seen(ray_job("Initializing"), unschedulable("0/3 nodes are available")).holding is False
    over = [pod("head", phase="Succeeded", containers=[container("ray-head", **ended(0, at=BEGAN + 70))])]
    over += [
        pod(name=name, phase="Failed", containers=[container("ray-worker", **ended(1, at=BEGAN + seconds))])
        for name, seconds in (("v", 55), ("w", 60))
    ]
    sight = seen(ray_job("Complete", jobStatus="SUCCEEDED"), *over, now=BEGAN + 500)
    assert (sight.holding, sight.let_go) == (False, BEGAN + 60)


def test_pods_that_vanish_let_go_when_that_is_seen() -> None:
    worker = WORKERS[0]
    memory = rooted(HEAD, worker)
    memory.show(worker["metadata"]["name"], None, BEGAN + 90)
    memory.show(HEAD["metadata"]["name"], None, BEGAN + 95)
    sight = sight_of(Scene(None, memory=memory), BEGAN + 100)
    assert (sight.alive, sight.left, sight.let_go) == (False, False, BEGAN + 90)


@pytest.mark.parametrize("state", ["Complete", "Failed", "ValidationFailed"])
def test_a_rayjob_that_is_final_is_left_to_be_deleted(state: str) -> None:
    sight = seen(ray_job(state), HEAD)
    assert (sight.alive, sight.left) == (False, True)


def test_a_rayjob_that_is_deleted_is_left_until_its_pods_are_gone() -> None:
    leaving = pod("head", deleted=True)
    assert seen(ray_job("Running", deleted=True), leaving).left
    assert seen(None, leaving).left
    assert not seen(None).left


def test_initializing_for_ever_is_alive_until_kuberay_gives_up() -> None:
    """A driver that ended before the cluster was ready once: the deadline of the start ends it."""
    assert seen(ray_job("Initializing"), HEAD, now=BEGAN + 10_000).alive
    ended_at_last = ray_job("Failed", reason="PreRunningDeadlineExceeded", message="75 seconds")
    assert seen(ended_at_last, now=BEGAN + 76).verdict is not None


def test_a_head_that_is_lost_runs_on_in_kuberays_words() -> None:
    """Seen for 30 s, then Failed with a jobStatus of RUNNING."""
    assert seen(RUNNING, *WORKERS, memory=rooted(HEAD)).alive


# ------------------------------------------------------------------ eviction


def test_a_driver_may_save_while_its_rayjob_is_suspended() -> None:
    leaving = pod("head", deleted=True)
    taken = workload(condition("Evicted", "True", "Preempted", "Preempted to accommodate a workload (UID: u)"))
    worker = pod(name="w1", deleted=True)
    sight = seen(QUEUED, leaving, worker, memory=rooted(leaving, worker), workload=taken)
    assert (sight.alive, sight.holding, sight.left) == (True, True, False)
    assert sight.admitted is not None
    assert sight.running is not None
    assert (sight.admitted.reason, sight.running.reason) == (Reason.PREEMPTED, Reason.PREEMPTED)
    gone = seen(QUEUED, memory=rooted(leaving), workload=taken)
    assert (gone.alive, gone.left, gone.holding) == (False, True, False)
    assert gone.verdict is not None
    assert gone.verdict.failure is FailureClass.PREEMPTED


def test_a_success_that_an_eviction_wiped_is_no_end_by_itself() -> None:
    """The driver's own word says that it was one."""
    assert seen(ray_job("Running", jobStatus="SUCCEEDED"), HEAD).alive
    wiped = seen(ray_job("Suspended"), memory=rooted(HEAD))
    assert (wiped.alive, wiped.left) == (False, True)


@pytest.mark.parametrize(
    ("reason", "failure"),
    [
        ("Preempted", FailureClass.PREEMPTED),
        ("ClusterQueueStopped", FailureClass.PREEMPTED),
        ("PodsReadyTimeout", FailureClass.WORKER_LOST),
        ("NodeFailures", FailureClass.WORKER_LOST),
        ("DeactivatedDueToMaximumExecutionTimeExceeded", FailureClass.INTERRUPTED),
    ],
)
def test_what_kueue_takes_back_says_why(reason: str, failure: FailureClass) -> None:
    sight = seen(QUEUED, memory=rooted(), workload=workload(condition("Evicted", "True", reason, "said so")))
    assert sight.verdict is not None
    assert sight.verdict.failure is failure
    assert reason in sight.verdict.message


def test_another_cluster_of_the_same_rayjob_is_not_the_attempt() -> None:
    """Kueue let it in again before anybody looked."""
    new = pod("head", cluster=OTHER_CLUSTER)
    sight = seen(ray_job("Initializing", cluster=OTHER_CLUSTER), new, memory=rooted())
    assert (sight.incarnation, sight.verdict is None) == (CLUSTER, False)


def test_a_cluster_that_was_thrown_away_before_any_pod_had_a_node_is_none() -> None:
    """As a queued RayJob begins: Initializing for a moment, then Suspended."""
    memory = Memory()
    for state in ("Initializing", "Suspending", "Suspended"):
        sight = seen(ray_job(state, queue="q", cluster=OTHER_CLUSTER), memory=memory)
        assert (sight.alive, sight.holding, sight.incarnation) == (True, False, None)


def test_caches_run_at_their_own_pace() -> None:
    """Pods of the cluster that was let in, while the RayJob is still seen as Suspended."""
    memory = Memory()
    assert seen(QUEUED, HEAD, memory=memory).alive
    assert memory.incarnation is None
    sight = seen(ray_job("Initializing", queue="team-queue"), HEAD, memory=memory)
    assert (sight.alive, sight.verdict, memory.incarnation) == (True, None, CLUSTER)


def test_suspended_by_hand_without_a_queue() -> None:
    sight = seen(ray_job("Suspended"), memory=rooted())
    assert sight.verdict is not None
    assert sight.verdict.failure is FailureClass.PREEMPTED


# ------------------------------------------------------------------ verdicts

OOM = pod(name="w1", phase="Failed", containers=[container("ray-worker", **ended(137, "OOMKilled"))], memory="230Gi")
DRAINED = condition("DisruptionTarget", "True", "EvictionByEvictionAPI", "Eviction API: evicting")
TAINTED = condition(
    "DisruptionTarget", "True", "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"
)
OUSTED = condition(
    "DisruptionTarget", "True", "PreemptionByScheduler", "preempting to accommodate a higher priority pod"
)
GRACE = "JobDeploymentStatusTransitionGracePeriodExceeded"
EXIT = "Job entrypoint command failed with exit code 137, last available logs (truncated to 20,000 chars):\nTraceback"
LOST = ray_job("Failed", jobStatus="RUNNING", reason="SubmissionFailed", message="Reason: BackoffLimitExceeded")
F = FailureClass


@pytest.mark.parametrize(
    ("job", "pods", "failure", "words"),
    [
        pytest.param(ray_job("Failed", jobStatus="FAILED", reason="AppFailed", message=EXIT), [], F.DRIVER_LOST,
                     "exit code 137", id="driver-exits"),
        pytest.param(LOST, [], F.DRIVER_LOST, "head", id="submission-failed-while-running"),
        pytest.param(LOST, [pod("head", phase="Failed", reason="NodeLost", message="Node gone")], F.DRIVER_LOST,
                     "NodeLost", id="head-lost-its-node"),
        pytest.param(LOST, [pod("submitter", phase="Failed", conditions=[OUSTED])], F.PREEMPTED,
                     "PreemptionByScheduler", id="submitter-ousted"),
        pytest.param(LOST, [pod("head", conditions=[DRAINED], deleted=True)], F.PREEMPTED, "EvictionByEvictionAPI",
                     id="head-drained"),
        pytest.param(LOST, [pod(name="w", conditions=[TAINTED], deleted=True)], F.WORKER_LOST, "TaintManager",
                     id="worker-tainted"),
        pytest.param(LOST, [pod("submitter", phase="Failed", containers=[container("ray-job-submitter", **ended(1))])],
                     F.DRIVER_LOST, "BackoffLimitExceeded", id="a-submitters-exit-says-nothing"),
        pytest.param(ray_job("Failed", jobStatus="FAILED", reason="AppFailed", message=EXIT), [OOM], F.OUT_OF_MEMORY,
                     "limit of 230Gi", id="out-of-memory"),
        pytest.param(ray_job("Failed", jobStatus="FAILED", reason=GRACE), [], F.DRIVER_LOST,
                     "never came", id="grace-exceeded"),
        pytest.param(ray_job("Failed", jobStatus="RUNNING", reason="JobStatusCheckTimeoutExceeded"), [], F.DRIVER_LOST,
                     "reach", id="dashboard-unreachable"),
        pytest.param(ray_job("ValidationFailed", reason="ValidationFailed", message="the name is too long"), [],
                     F.USER_ERROR, "too long", id="validation"),
        pytest.param(ray_job("Complete", jobStatus="STOPPED"), [], F.INTERRUPTED, "in Ray", id="stopped-in-ray"),
        pytest.param(ray_job("Complete", jobStatus="SUCCEEDED"), [], F.DRIVER_LOST, "never came", id="silent-success"),
        pytest.param(None, [], F.DRIVER_LOST, "was deleted", id="deleted"),
        pytest.param(ray_job("Running", deleted=True), [], F.DRIVER_LOST, "was deleted", id="being-deleted"),
        pytest.param(ray_job("Failed", reason="PreRunningDeadlineExceeded", message="1800 seconds"), [], F.WORKER_LOST,
                     "1800", id="never-ready"),
    ],
)  # fmt: skip
def test_an_attempt_without_a_last_word(job: Json | None, pods: list[Json], failure: FailureClass, words: str) -> None:
    verdict = seen(job, *pods).verdict
    assert verdict is not None
    assert (verdict.failure, words in verdict.message) == (failure, True), verdict


@pytest.mark.parametrize(
    ("trouble", "failure"),
    [
        (
            pod(phase="Pending", init=[container("wait-gcs-ready", waiting={"reason": "ImagePullBackOff"})]),
            F.USER_ERROR,
        ),
        (unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), F.WORKER_LOST),
    ],
)
def test_the_time_for_the_start_ends_by_what_was_in_the_way(trouble: Json, failure: FailureClass) -> None:
    """Pods are gone 3 s later, so that it must be remembered."""
    memory = Memory()
    memory.trouble = seen(ray_job("Initializing"), trouble, memory=memory).running
    sight = seen(ray_job("Failed", reason="PreRunningDeadlineExceeded"), memory=memory)
    assert sight.verdict is not None
    assert sight.verdict.failure is failure


def test_a_worker_lost_long_ago_explains_no_end() -> None:
    memory = Memory()
    memory.show("w1", OOM, BEGAN)
    job = ray_job("Failed", jobStatus="FAILED", reason="AppFailed", message=EXIT)
    verdicts = [sight_of(Scene(job, memory=memory), BEGAN + later).verdict for later in (599, 601)]
    assert [verdict.failure for verdict in verdicts if verdict] == [F.OUT_OF_MEMORY, F.DRIVER_LOST]


# ------------------------------------------------------------------ why it is where it is

NO_GPU = "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu, 8 more needed"


@pytest.mark.parametrize(
    ("found", "reason", "words"),
    [
        (None, Reason.WAITING_FOR_QUEUE, "just now"),
        (workload(condition("QuotaReserved", "False", "WaitingForQuota", NO_GPU)), Reason.WAITING_FOR_QUOTA, "8 more"),
        (workload(condition("QuotaReserved", "False", "ExceedsMaxQuota", "m")), Reason.WAITING_FOR_QUOTA, "ExceedsMax"),
        (workload(condition("QuotaReserved", "False", "Misconfigured", "LocalQueue nope doesn't exist")),
         Reason.QUEUE_MISSING, "nope"),
        (workload(condition("QuotaReserved", "False", "Suspended", "ClusterQueue cq is inactive")),
         Reason.WAITING_FOR_QUEUE, "inactive"),
        (workload(condition("QuotaReserved", "False", "AdmissionGated", "Admission is gated by: x")),
         Reason.WAITING_FOR_QUEUE, "gated"),
        (workload(condition("QuotaReserved", "False", "Deactivated", "m")), Reason.DEACTIVATED, "Deactivated"),
        (workload(condition("Evicted", "True", "DeactivatedDueToRequeuingLimitExceeded", "5 times"), active=False),
         Reason.DEACTIVATED, "5 times"),
        (workload(condition("QuotaReserved", "False", "NewInSomeVersion", "m")), Reason.WAITING_FOR_QUEUE, "NewInSome"),
        (workload(condition("QuotaReserved", "True", "QuotaReserved", "m")), Reason.WAITING_FOR_QUEUE, "checks"),
    ],
)  # fmt: skip
def test_why_a_queued_one_waits(found: Json | None, reason: Reason, words: str) -> None:
    sight = seen(QUEUED, workload=found, now=BEGAN + 5)
    assert (sight.alive, sight.holding) == (True, False)
    assert sight.admitted is not None
    assert (sight.admitted.yes, sight.admitted.reason) == (False, reason)
    assert words in sight.admitted.message


def test_an_unknown_priority_class_makes_no_workload() -> None:
    sight, later = (seen(ray_job("Suspended", queue="q", priority="urgent"), now=BEGAN + after) for after in (60, 70))
    assert sight == later, "other words would be a status to write, again and again, of each job"
    assert sight.admitted is not None
    assert sight.admitted.reason is Reason.QUEUE_MISSING
    assert "'urgent'" in sight.admitted.message


def test_one_that_was_let_in() -> None:
    let_in = workload(condition("QuotaReserved", "True"), condition("Admitted", "True", "Admitted"))
    sight = seen(ray_job("Initializing", queue="team-queue"), HEAD, workload=let_in)
    assert sight.admitted is not None
    assert (sight.admitted.yes, sight.admitted.reason) == (True, Reason.QUEUE_ADMITTED)


def test_kuberay_that_does_nothing() -> None:
    sights = [seen(ray_job(), now=BEGAN + after).admitted for after in (5, 30, 40)]
    assert [told.reason for told in sights if told] == [Reason.NO_QUEUE, *[Reason.KUBERAY_MISSING] * 2]
    assert sights[1] == sights[2], "other words would be a status to write, again and again, of each job"


WAITS = {"reason": "PodInitializing"}
REFUSED = 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'
QUOTA = 'pods "x" is forbidden: exceeded quota: team, requested: requests.cpu=2, used: requests.cpu=8, limited: 8'


@pytest.mark.parametrize(
    ("pods", "cluster", "reason", "words"),
    [
        pytest.param([], ray_cluster(condition("HeadPodReady", "False", "HeadPodNotFound", "")), Reason.STARTING,
                     "no pods", id="nothing-yet"),
        pytest.param([pod("head")], None, Reason.STARTING, "head Running, 0 of 2", id="starting"),
        pytest.param([pod("head", containers=[container("ray-head", waiting={
            "reason": "ImagePullBackOff", "message": 'Back-off pulling image "registry.example.com/x"'})])], None,
            Reason.IMAGE_PULL_FAILED, "registry.example.com/x", id="head-image"),
        pytest.param([pod("head"), pod(phase="Pending", init=[container("wait-gcs-ready", waiting={
            "reason": "ErrImagePull"})], containers=[container("ray-worker", waiting=WAITS)])], None,
            Reason.IMAGE_PULL_FAILED, "wait-gcs-ready", id="worker-image"),
        pytest.param([pod("head"), pod(containers=[container("ray-worker", waiting={"reason": "CrashLoopBackOff"},
            last=ended(3))])], None, Reason.CRASH_LOOPING, "exit code 3", id="crash-loop"),
        pytest.param([pod("head"), unschedulable("0/4 nodes are available: 4 Insufficient nvidia.com/gpu.")], None,
            Reason.UNSCHEDULABLE, "nvidia.com/gpu", id="unschedulable"),
        pytest.param([], ray_cluster(condition("ReplicaFailure", "True", "FailedCreateHeadPod", REFUSED)),
            Reason.PODS_REFUSED, "PodSecurity", id="refused"),
        pytest.param([], ray_cluster(condition("ReplicaFailure", "True", "FailedCreateHeadPod", QUOTA)),
            Reason.QUOTA_EXCEEDED, "requests.cpu", id="quota"),
    ],
)  # fmt: skip
def test_what_is_in_the_way_of_the_pods(pods: list[Json], cluster: Json | None, reason: Reason, words: str) -> None:
    sight = seen(ray_job("Initializing"), *pods, ray_cluster=cluster)
    assert sight.alive
    assert not sight.up
    assert sight.running is not None
    assert (sight.running.reason, words in sight.running.message) == (reason, True), sight.running


def test_what_workers_want_is_said_first_and_what_all_want_once() -> None:
    gpus = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu"
    memory = "0/1 nodes are available: 1 Insufficient memory"
    tried = ". no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found."
    head = unschedulable(memory + tried, "h")
    head["metadata"]["labels"]["ray.io/node-type"] = "head"
    sight = seen(ray_job("Initializing"), head, unschedulable(gpus + tried, "w1"), unschedulable(gpus + tried, "w2"))
    assert sight.running is not None
    assert sight.running.message == f"worker w1 (and 1 more) finds no node: {gpus}; head h finds no node: {memory}"


def test_a_driver_whose_head_has_not_begun_has_nothing_to_save() -> None:
    waits = container("ray-head", waiting={"reason": "ImagePullBackOff"})
    unbegun, worker = pod("head", phase="Pending", containers=[waits]), pod()
    assert seen(ray_job("Initializing"), unbegun, worker, memory=Memory(began=BEGAN)).idle
    assert not seen(ray_job("Initializing"), pod("head"), worker, memory=Memory(began=BEGAN)).idle
    assert not seen(ray_job("Running"), worker, memory=Memory(began=BEGAN)).idle, "a head that is gone may have saved"
    assert seen(ray_job("Initializing"), memory=Memory()).idle


def test_what_settles_by_itself_is_no_trouble_at_first() -> None:
    secret = {"reason": "CreateContainerConfigError", "message": "failed to sync secret cache"}
    one = pod("head", containers=[container("ray-head", waiting=secret)])
    found = [seen(ray_job("Initializing"), one, now=BEGAN + after).running for after in (5, 60)]
    assert [told.reason for told in found if told] == [Reason.STARTING, Reason.PODS_NOT_READY]


def test_an_init_container_that_is_stuck() -> None:
    one = pod(
        phase="Pending", init=[container("wait-gcs-ready", running={})], containers=[container("r", waiting=WAITS)]
    )
    found = [seen(ray_job("Initializing"), one, now=BEGAN + after).running for after in (60, 130)]
    assert [told.reason for told in found if told] == [Reason.STARTING, Reason.PODS_NOT_READY]
    assert found[1] is not None
    assert "wait-gcs-ready" in found[1].message


def test_workers_that_end_as_soon_as_they_begin_get_new_pods() -> None:
    """`restartPolicy: Never`: no pod says CrashLoopBackOff, each is another one."""
    memory = rooted(HEAD)
    for name in ("w1", "w2"):
        memory.show(name, pod(name=name, phase="Failed", containers=[container("ray-worker", **ended(1))]), NOW)
        memory.show(name, None, NOW)
    sight = seen(ray_job("Initializing"), HEAD, memory=memory)
    assert sight.running is not None
    assert sight.running.reason is Reason.CRASH_LOOPING


def test_every_reason_belongs_to_its_condition() -> None:
    from orchestrator.launch.cluster.sight import URGENT

    assert set(URGENT) <= REASONS[ConditionType.RUNNING]
