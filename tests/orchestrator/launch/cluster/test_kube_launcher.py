"""Whole jobs in a cluster: the real controller and launcher against a real API server, on which KubeRay and Kueue are
played."""

from __future__ import annotations

import json
import math
import time

import pytest
from support import rendering
from support.kube_proxy import Call, Fault, KubeProxy, Say
from support.kube_stage import KubeStage, wait
from support.operators import create

from orchestrator.controller import follower
from orchestrator.launch.events import Ended, read
from orchestrator.launch.resolve import read_resolved
from orchestrator.status import ConditionType, Reason
from orchestrator.why import why

pytestmark = pytest.mark.kube

QUEUE = {"name": "team-queue"}
EMPTY = json.dumps({"kind": "RayJobList", "metadata": {"resourceVersion": "1"}, "items": []}).encode()
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
    assert attempt.ray_job == "mini-a1"
    assert attempt.ended_at is not None
    held = (attempt.ended_at - attempt.started_at).total_seconds()
    assert began - 1 <= attempt.started_at.timestamp() <= time.time()  # whole seconds, by the API server
    assert 0 <= held <= time.time() - began + 1


def test_one_that_is_new_starts_in_the_turn_that_takes_it_up(stage: KubeStage) -> None:
    """Nobody shares out slots in a cluster: each turn more would be a status more to write."""
    stage.submit()
    with stage.service():
        stage.controller.turn()
        assert stage.status.phase.value == "Starting"
        assert [one.ray_job for one in stage.status.attempts] == ["mini-a1"], "or that would be written later"
        assert stage.condition(ConditionType.ACCEPTED).reason is Reason.VALID
        stage.until(lambda: stage.names == ["mini-a1"], "made")


def test_an_answer_that_does_not_come_holds_up_no_other_job(between: KubeStage, proxy: KubeProxy) -> None:
    held: list[Call] = []

    def plan(call: Call) -> Fault:
        if call.method == "POST" and call.path.endswith("/configmaps") and not held:
            held.append(call)
            return "hold"
        return "ok"

    proxy.plan = plan
    between.submit("slow")
    with between.service():
        between.until(lambda: held, "asked")
        between.submit("quick")
        between.until(lambda: between.names == ["quick-a1"], "made")
        proxy.go_on.set()
        between.until(lambda: between.names == ["quick-a1", "slow-a1"], "made")


def test_a_queued_one_costs_nothing_and_says_why_it_waits(stage: KubeStage) -> None:
    stage.submit(queue=QUEUE, budget={"limit": "5"})
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        stage.player.queues("mini-a1")
        stage.player.kueue_says("mini-a1", "QuotaReserved", "False", "WaitingForQuota", "8 more needed")
        stage.until(lambda: "8 more needed" in str(stage.status.condition(ADMITTED)), "told why")
        stage.until_phase("Queued")
        told = stage.condition(ADMITTED)
        assert (told.status, told.reason) == ("False", Reason.WAITING_FOR_QUOTA)
        status = stage.status
        assert status.cost is not None
        assert (float(status.cost.spent), float(status.cost.burn_per_hour)) == (0, 0)
        found = why(stage.job.wish.job, status, stage.now)
        assert "8 more needed" in found.sentence
        time.sleep(1.1)  # so that held seconds would show
        assert "gate" not in str(stage.player.ray_job("mini-a1")["metadata"]["annotations"])
        stage.player.admits("mini-a1")
        admitted = int(time.time())  # the API server says whole seconds
        stage.player.begins("mini-a1")
        stage.until_reason(ADMITTED, "QueueAdmitted")
        stage.until_phase("Starting")
        assert stage.folder.held.read_text().count("attempt") == 1
        stage.player.runs("mini-a1")
        stage.starts_when_known()
        stage.until_phase("Running")
    [held] = stage.held()
    assert held.start >= admitted
    assert stage.status.attempts[0].started_at.timestamp() == held.start


def test_one_that_is_cancelled_while_it_waits_is_gone_at_once(
    stage: KubeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a checkpoint of what never ran."""
    monkeypatch.setattr(follower, "GRACE_SECONDS", 3600.0)
    stage.submit(queue=QUEUE)
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        stage.player.queues("mini-a1")
        stage.until_phase("Queued")
        stage.cancel()
        stage.until_phase("Cancelled")
        stage.until(lambda: not stage.names and not stage.player.supporting(), "cleaned")
    [held] = stage.held()
    assert held.start == held.end


def test_one_that_is_cancelled_while_it_trains_is_told_first(stage: KubeStage) -> None:
    stage.submit()
    with stage.service():
        stage.trains()
        stage.cancel()
        stage.until_reason(RUNNING, "Stopping")
        stage.until(lambda: stage.answer.kind == "checkpoint-and-stop", "ordered")
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
    stage.player.lingering = math.inf
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
        stage.player.lingering = 0.0
        stage.until(lambda: stage.names == ["mini-a2"], "the next attempt")
        assert not stage.player.pods(), "one driver at most"
        first = stage.status.attempts[0]
        assert (first.reason or "").startswith("preempted: ")
        assert first.to_step == 10
        assert stage.folder.last_attempt() == 2


def test_one_that_is_preempted_and_says_goodbye_is_preempted_all_the_same(stage: KubeStage) -> None:
    """Its driver knows only that it was told to end."""
    stage.player.lingering = 2.0
    stage.submit(queue=QUEUE)
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        stage.player.queues("mini-a1")
        stage.player.admits("mini-a1")
        stage.player.runs("mini-a1")
        stage.starts_when_known()
        stage.until_phase("Running")
        stage.saves()
        stage.player.preempts("mini-a1")
        stage.ends("stopped", failure_class="interrupted", message="terminated")
        stage.until(lambda: stage.names == ["mini-a2"], "the next attempt")
        first = stage.status.attempts[0]
        assert (first.reason or "").startswith("preempted: "), first
        assert "Preempted to accommodate" in (first.reason or "")


def test_a_controller_that_comes_back_finds_what_runs(stage: KubeStage) -> None:
    stage.submit(budget={"limit": "5"})
    with stage.service():
        cluster = stage.trains()
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
        stage.trains()
    stage.ends()
    stage.player.ends("mini-a1", "SUCCEEDED")
    with stage.service():
        stage.until_phase("Succeeded")
        stage.until(lambda: not stage.names and not stage.player.supporting(), "cleaned")


def test_one_that_has_ended_runs_until_its_pods_are_gone(stage: KubeStage) -> None:
    """A head takes half a minute: meanwhile nothing is queued."""
    stage.player.lingering = math.inf
    stage.submit()
    with stage.service():
        stage.trains()
        stage.ends()
        stage.player.ends("mini-a1", "SUCCEEDED")
        stage.until(lambda: not stage.names, "its RayJob is gone")
        for _ in range(10):
            stage.controller.turn()
            assert stage.status.phase.value == "Running"
        assert stage.player.pods()
        stage.player.lingering = 0.0
        stage.until_phase("Succeeded")


def test_a_rayjob_that_somebody_deletes_is_followed_by_another(stage: KubeStage) -> None:
    stage.submit()
    with stage.service():
        stage.trains()
        stage.player.delete_ray_job("mini-a1")
        stage.until(lambda: stage.names == ["mini-a2"], "the next attempt")
    assert (stage.status.attempts[0].reason or "").startswith("driver-lost: its RayJob was deleted")


def test_where_workers_were_lost_the_next_attempt_does_not_go_if_it_can(stage: KubeStage) -> None:
    stage.submit()
    with stage.service():
        stage.trains()
        stage.saves()
        stage.deliver("workers-lost", message="rank 1: gone", nodes=["gpu-7"])
        stage.ends("failed", failure_class="worker-lost", message="gone")
        stage.player.ends("mini-a1", "FAILED")
        stage.until(lambda: stage.names == ["mini-a2"], "made")
        workers = stage.player.ray_job("mini-a2")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
        [only] = workers["affinity"]["nodeAffinity"].items()
        assert only[0] == "preferredDuringSchedulingIgnoredDuringExecution"
        assert "gpu-7" in json.dumps(only[1])


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
    stage.submit(
        checkpoint={},
        data={"source": "s3://bucket/web"},
        compute={"accelerator": "cpu", "workers": 2, "image": "registry.example.com/x:latest"},
    )
    with stage.service():
        stage.until_phase("Failed")
        told = stage.condition(ConditionType.ACCEPTED)
        assert (told.status, told.reason) == ("False", Reason.INVALID)
        for field in ("spec.checkpoint.uri", "spec.compute.image", "spec.data.source"):
            assert field in told.message
        assert stage.names == []


def test_what_was_left_by_a_controller_that_died_is_cleared(stage: KubeStage) -> None:
    """Nobody looks at a job again that has succeeded."""
    stage.submit()
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        stage.player.runs("mini-a1")
        stage.starts_when_known()
        stage.launcher._tending.do = lambda key, act: None  # type: ignore[method-assign]  # it dies with all to be done
        stage.ends()
        stage.player.ends("mini-a1", "SUCCEEDED")
        stage.player.delete_ray_job("mini-a1")
        stage.until_phase("Succeeded")
    assert len(stage.player.supporting()) == 4
    with stage.service():
        stage.until(lambda: not stage.player.supporting(), "cleared")


def test_without_the_operators_jobs_wait_and_go_on_when_they_appear(between: KubeStage, proxy: KubeProxy) -> None:
    missing, outage = {"ray.io", "kueue.x-k8s.io"}, list[str]()

    def plan(call: Call) -> Fault:
        if any(call.path.startswith(f"/apis/{group}/") for group in outage):
            return Say(503)
        gone = any(call.path.startswith(f"/apis/{group}/") for group in missing)
        return Say(404, "NotFound") if gone else "ok"

    proxy.plan = plan
    between.submit(queue=QUEUE)
    with between.service():
        assert "KubeRay" in between.launcher.problem
        told = between.until_reason(ADMITTED, "KubeRayMissing")
        assert "install KubeRay" in told.message
        missing.discard("ray.io")
        told = between.until_reason(ADMITTED, "QueueMissing")
        assert "install Kueue" in told.message
        assert between.launcher.problem == ""
        assert between.names == [], "it would begin without being let in"
        outage.append("kueue.x-k8s.io")
        before = len(proxy.calls)
        between.until(lambda: any("workloads" in call.path for call in proxy.calls[before:]), "asked again")
        assert between.launcher.synced, "of what is not there, all is known, though nobody answers"
        outage.clear()
        missing.clear()
        between.until(lambda: between.names == ["mini-a1"], "made")


def test_a_watch_that_lags_hides_no_rayjob(between: KubeStage, proxy: KubeProxy) -> None:
    """Neither from who made it, nor from who comes after."""
    proxy.lines = lambda line: []
    between.submit()
    with between.service():
        between.until(lambda: between.names == ["mini-a1"], "made")
        for _ in range(5):
            between.controller.turn()
        assert between.status.phase.value == "Starting"
    proxy.plan = lambda call: (
        Say(200, body=EMPTY) if call.path.endswith("/rayjobs") and not call.writes and not call.watch else "ok"
    )
    between.folder.ray_job(1).unlink()
    before = len(proxy.calls)
    with between.service():
        for _ in range(5):
            between.controller.turn()
        assert between.status.phase.value == "Starting"
    assert [call for call in proxy.calls[before:] if call.writes] == [], "it was found, not made again"
    wait(lambda: between.player.made, lambda: "the player has not looked yet")
    assert {name: len(uids) for name, uids in between.player.made.items()} == {"mini-a1": 1}


def test_what_another_job_has_made_is_not_touched(stage: KubeStage) -> None:
    """A job of the same name was there before, and is still being deleted."""
    stranger = rendering.rendered(rendering.job("mini", stage.player.namespace))
    for one in stranger.objects:
        assert create(stage.player.client, one, stage.player.namespace).status_code == 201
    before = stage.player.uids()
    stage.submit()
    with stage.service():
        stage.until(lambda: any("owner" in text for text in stage.said), "told")
        stage.cancel()
        for _ in range(20):
            stage.controller.turn()
            time.sleep(0.05)
    assert stage.player.uids() == before


def test_what_an_earlier_try_was_decided_otherwise_is_made_anew(between: KubeStage, proxy: KubeProxy) -> None:
    proxy.plan = lambda call: Say(500) if call.method == "POST" and call.path.endswith("/rayjobs") else "ok"
    between.submit()
    with between.service():
        between.until(lambda: any("HTTP 500" in text for text in between.said), "refused")
        before = between.player.uids()
        assert len(before) == 4
        proxy.plan = lambda call: "ok"
        between.until(lambda: between.names == ["mini-a1"], "made")
        assert before.isdisjoint(between.player.uids()), "with the next try's incarnation"
        between.player.runs("mini-a1")
        between.starts_when_known()
        between.until_phase("Running")


def test_pods_are_known_by_cache_or_server(stage: KubeStage) -> None:
    stage.submit()
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        cluster = stage.player.runs("mini-a1")
        namespace = stage.player.namespace
        found = stage.launcher.pod_of(namespace, f"{cluster}-head")
        assert found is not None
        assert found["metadata"]["labels"]["ray.io/cluster"] == cluster
        assert stage.launcher.pod_of(namespace, "nobody") is None
        stage.until(lambda: "2 of 2 workers ready" in stage.launcher.describe(stage.folder, 1), "described")


def test_a_driver_that_does_not_listen_loses_its_rayjob(stage: KubeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "GRACE_SECONDS", 0.5)
    stage.submit()
    with stage.service():
        stage.trains()
        stage.cancel()
        stage.until_phase("Cancelled")
        assert stage.names == []
    [ended] = [event for event in read(stage.folder.events)[0] if isinstance(event, Ended)]
    assert (ended.outcome, ended.message) == ("stopped", "cancelled")
