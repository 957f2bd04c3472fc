"""Whole jobs in a cluster: the real controller and launcher against a real API server, on which KubeRay and Kueue are
played."""

from __future__ import annotations

import time

import pytest
from support.kube_stage import KubeStage

from orchestrator.launch.resolve import read_resolved
from orchestrator.status import ConditionType, Reason
from orchestrator.why import why

pytestmark = pytest.mark.kube

QUEUE = {"name": "team-queue"}
ADMITTED, RUNNING = ConditionType.ADMITTED, ConditionType.RUNNING


def test_a_whole_job(stage: KubeStage) -> None:
    stage.submit()
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        assert stage.condition(ConditionType.ACCEPTED).reason is Reason.VALID
        assert stage.status.phase.value == "Starting"
        began = time.time()
        cluster = stage.player.runs("mini-a1")
        stage.until(lambda: read_resolved(stage.folder.resolved(1)).incarnation == cluster, "its cluster is known")
        stage.starts()
        stage.saves()
        stage.until_phase("Running")
        stage.ends()
        stage.player.ends("mini-a1", "SUCCEEDED")
        stage.until_phase("Succeeded")
        stage.until(lambda: not stage.names and not stage.player.pods() and not stage.player.supporting(), "cleaned")
    [attempt] = stage.status.attempts
    assert attempt.ended_at is not None
    held = (attempt.ended_at - attempt.started_at).total_seconds()
    assert began - 1 <= attempt.started_at.timestamp() <= time.time()  # whole seconds, by the API server
    assert 0 <= held <= time.time() - began + 1


def test_a_queued_one_costs_nothing_and_says_why_it_waits(stage: KubeStage) -> None:
    stage.submit(queue=QUEUE, budget={"limit": "5"})
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        stage.player.queues("mini-a1")
        stage.player.kueue_says("mini-a1", "QuotaReserved", "False", "WaitingForQuota", "8 more needed")
        told = stage.until_reason(ADMITTED, "WaitingForQuota")
        assert (told.status, "8 more needed" in told.message) == ("False", True)
        status = stage.status
        assert status.phase.value == "Queued"
        assert status.cost is not None
        assert (float(status.cost.spent), float(status.cost.burn_per_hour)) == (0, 0)
        found = why(stage.job.wish.job, status, stage.now)
        assert "8 more needed" in found.sentence
        time.sleep(1.1)  # so that held seconds would show
        assert "gate" not in str(stage.player.ray_job("mini-a1")["metadata"]["annotations"])
        stage.player.admits("mini-a1")
        stage.player.begins("mini-a1")
        stage.until_reason(ADMITTED, "QueueAdmitted")
        assert stage.status.phase.value == "Starting"
        assert stage.folder.held.read_text().count("attempt") == 1
        stage.player.runs("mini-a1")
        stage.starts_when_known()
        stage.until_phase("Running")
    [held] = stage.held()
    assert held.start >= int(held.end) - 10
    assert stage.status.attempts[0].started_at.timestamp() == held.start


def test_one_that_is_cancelled_while_it_waits_is_gone_at_once(stage: KubeStage) -> None:
    stage.submit(queue=QUEUE)
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        stage.player.queues("mini-a1")
        stage.until_phase("Queued")
        began = time.monotonic()
        stage.cancel()
        stage.until_phase("Cancelled")
        assert time.monotonic() - began < 10, "nobody waits for a checkpoint of what never ran"
        stage.until(lambda: not stage.names and not stage.player.supporting(), "cleaned")
    [held] = stage.held()
    assert held.start == held.end


def test_one_that_is_cancelled_while_it_trains_is_told_first(stage: KubeStage) -> None:
    stage.submit()
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        stage.player.runs("mini-a1")
        stage.starts_when_known()
        stage.until_phase("Running")
        stage.cancel()
        stage.until_reason(RUNNING, "Stopping")
        assert stage.answer.kind == "checkpoint-and-stop"
        assert stage.names == ["mini-a1"], "it saves"
        stage.saves()
        stage.ends("stopped", failure_class="interrupted", message="cancelled")
        stage.player.ends("mini-a1", "SUCCEEDED")
        stage.until_phase("Cancelled")
    assert [one.outcome for one in stage.status.attempts] == ["stopped"]


def test_a_pod_that_needs_too_much_memory(stage: KubeStage) -> None:
    """The attempt leaves no last word; the next one goes on."""
    stage.submit()
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        cluster = stage.player.runs("mini-a1")
        stage.starts_when_known()
        stage.saves()
        stage.until_phase("Running")
        stage.player.kills_for_memory(f"{cluster}-head")
        stage.player.ends("mini-a1", "RUNNING", "SubmissionFailed", "Job submission has failed.")
        stage.until(lambda: stage.names == ["mini-a2"], "the next attempt")
        first = stage.status.attempts[0]
        assert (first.outcome, (first.reason or "").partition(":")[0]) == ("failed", "out-of-memory")
        assert "its limit of" in (first.reason or "")
        stage.player.runs("mini-a2")
        stage.starts_when_known(2, step=10)
        stage.ends(attempt=2)
        stage.player.ends("mini-a2", "SUCCEEDED")
        stage.until_phase("Succeeded")
        stage.until(lambda: not stage.player.supporting(), "cleaned")


def test_one_that_kueue_preempts_saves_and_queues_again(stage: KubeStage) -> None:
    stage.player.lingering = 2.0
    stage.submit(queue=QUEUE)
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        stage.player.queues("mini-a1")
        stage.player.admits("mini-a1")
        stage.player.runs("mini-a1")
        stage.starts_when_known()
        stage.until_phase("Running")
        stage.player.preempts("mini-a1")
        told = stage.until_reason(ADMITTED, "Preempted")
        assert "Preempted to accommodate" in told.message
        assert stage.status.phase.value == "Queued"
        stage.saves()  # the driver was warned, and its pod lives for a while
        stage.until(lambda: stage.names == ["mini-a2"], "the next attempt")
        assert not stage.player.pods(), "one driver at most"
        first = stage.status.attempts[0]
        assert (first.reason or "").startswith("preempted: ")
        assert first.to_step == 10
        assert stage.folder.last_attempt() == 2


def test_a_controller_that_comes_back_finds_what_runs(stage: KubeStage) -> None:
    stage.submit(budget={"limit": "5"})
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        cluster = stage.player.runs("mini-a1")
        stage.starts_when_known()
        stage.until_phase("Running")
        [before] = stage.held()
        deadline = stage.answer.hard_deadline
        assert deadline is not None, "the driver does not know since when it is paid for"
        assert deadline.incarnation == cluster
    time.sleep(1.1)
    with stage.service():
        stage.until(lambda: stage.controller.followed(stage.job.uid) is not None, "followed")
        stage.until(lambda: stage.held()[0].end > before.end + 1, "counted")
        [after] = stage.held()
        assert (after.attempt, after.start) == (1, before.start)
        stage.ends()
        stage.player.ends("mini-a1", "SUCCEEDED")
        stage.until_phase("Succeeded")
    assert len(stage.status.attempts) == 1


def test_a_success_that_came_while_nobody_looked(stage: KubeStage) -> None:
    stage.submit()
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        stage.player.runs("mini-a1")
        stage.starts_when_known()
        stage.until_phase("Running")
    stage.ends()
    stage.player.ends("mini-a1", "SUCCEEDED")
    with stage.service():
        stage.until_phase("Succeeded")
        stage.until(lambda: not stage.names and not stage.player.supporting(), "cleaned")


def test_a_rayjob_that_somebody_deletes_is_followed_by_another(stage: KubeStage) -> None:
    stage.submit()
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        stage.player.runs("mini-a1")
        stage.starts_when_known()
        stage.until_phase("Running")
        stage.player.delete_ray_job("mini-a1")
        stage.until(lambda: stage.names == ["mini-a2"], "the next attempt")
    assert (stage.status.attempts[0].reason or "").startswith("driver-lost: its RayJob was deleted, and not by Fathom")


def test_pods_that_find_no_node_are_told_of_and_a_stall_is_not(stage: KubeStage) -> None:
    stage.submit(retry={"stallMinutes": 0.05})
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        cluster = stage.player.begins("mini-a1")
        said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        said["message"] = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
        stage.player.kubelet_says(f"{cluster}-worker-0", {"phase": "Pending", "conditions": [said]})
        told = stage.until_reason(RUNNING, "Unschedulable")
        assert "nvidia.com/gpu" in told.message
        found = why(stage.job.wish.job, stage.status, stage.now)
        assert "4 Insufficient nvidia.com/gpu" in found.sentence
        assert "spec.compute" in found.advice
        stage.cancel()
        stage.until_phase("Cancelled")


def test_what_the_cluster_does_not_have_is_refused(stage: KubeStage) -> None:
    stage.submit(checkpoint={}, compute={"accelerator": "cpu", "workers": 2, "image": "registry.example.com/x:latest"})
    with stage.service():
        stage.until_phase("Failed")
        told = stage.condition(ConditionType.ACCEPTED)
        assert (told.status, told.reason) == ("False", Reason.INVALID)
        for field in ("spec.checkpoint.uri", "spec.compute.image"):
            assert field in told.message
        assert stage.names == []


def test_what_was_left_by_a_controller_that_died_is_cleared(stage: KubeStage) -> None:
    stage.submit()
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        stage.player.runs("mini-a1")
        stage.starts_when_known()
        stage.ends()
        stage.player.ends("mini-a1", "SUCCEEDED")
        stage.until_phase("Succeeded")
        names = stage.player.supporting()
    stage.player.delete_ray_job("mini-a1")
    if not names:  # they were cleared in time: one of them again
        return
    with stage.service():
        stage.until(lambda: not stage.player.supporting(), "cleared")
