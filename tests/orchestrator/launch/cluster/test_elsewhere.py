"""Which nodes an attempt is kept away from, by what stands in its run's folder."""

from __future__ import annotations

from pathlib import Path

from support.kuberay_objects import BEGAN, CLUSTER, Json, pod, ray_job
from support.kuberay_objects import condition as said

from orchestrator.launch.base import RunFolder
from orchestrator.launch.cluster.elsewhere import suspects_before
from orchestrator.launch.cluster.kinds import RAY_JOBS, kept
from orchestrator.launch.cluster.memory import Mark, Memory, write_mark
from orchestrator.launch.cluster.sight import Scene, avoided, sight_of
from orchestrator.launch.events import EventLog
from orchestrator.launch.suspects import Suspects
from orchestrator.status import Reason


def test_what_drivers_and_pods_have_told_is_counted_once_for_each_loss(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert suspects_before(folder, 1) == suspects_before(folder, 2) == Suspects()
    lose(folder, 1, "gpu-3")
    write_mark(folder, 1, Mark(uid="u1", began=1.0, lost=("gpu-3", "gpu-5")))
    assert suspects_before(folder, 2) == Suspects(shun=("gpu-3", "gpu-5"))
    write_mark(folder, 2, Mark(uid="u2", began=2.0, lost=("gpu-5",)))
    assert suspects_before(folder, 3) == Suspects(avoid=("gpu-5",), shun=("gpu-3",))
    assert suspects_before(folder, 2) == Suspects(shun=("gpu-3", "gpu-5")), "later ones do not count"
    write_mark(folder, 3, Mark(uid="u3", began=None))
    assert suspects_before(folder, 4) == Suspects(shun=("gpu-3", "gpu-5")), "there may be no other nodes"


def test_nonsense_of_a_pod_makes_no_attempt_invalid(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for node in ("Not A Node", "-x", "../x", "", "gpu-1.example"):
        lose(folder, 1, node)
    with folder.events.open("a") as file:
        file.write('{"kind": "workers-lost", "nodes": 3}\n')
    assert suspects_before(folder, 2) == Suspects(shun=("gpu-1.example",))


def lose(folder: RunFolder, attempt: int, node: str) -> None:
    keys = {"job": "u", "attempt": attempt, "incarnation": f"i{attempt}"}
    EventLog(folder.events).append("workers-lost", **keys, message="gone", nodes=(node,))


def test_a_node_that_fails_is_remembered_and_one_that_is_taken_is_not() -> None:
    memory = Memory()
    for name, reason in (("w1", "DeletionByTaintManager"), ("w2", "PreemptionByScheduler")):
        one = pod(name=name, conditions=[said("DisruptionTarget", "True", reason)])
        one["spec"]["nodeName"] = f"of-{name}"
        memory.show(name, one, BEGAN)
    assert memory.mark("u").lost == ("of-w1",)
    assert Memory.of(memory.mark("u")).lost == {"of-w1"}


def test_who_waits_for_a_node_is_told_which_ones_are_excluded() -> None:
    job = excluding("n1")
    assert avoided(job) == avoided(kept(RAY_JOBS, job)) == ["n1"], "by caches, too"
    sight = sight_of(Scene(job, pods=(homeless(),)), BEGAN)
    assert sight.running is not None
    assert sight.running.reason is Reason.UNSCHEDULABLE
    assert sight.running.message.endswith("; n1 is excluded, where earlier attempts have lost workers")
    many = sight_of(Scene(excluding("a", "b", "c", "d", "e"), pods=(homeless(),)), BEGAN).running
    assert many is not None
    assert "; a, b, c and 2 more are excluded" in many.message


def homeless() -> Json:
    from support.kuberay_objects import unschedulable

    return unschedulable("0/3 nodes are available")


def excluding(*nodes: str) -> Json:
    """The RayJob of an attempt, as it is rendered."""
    from support.rendering import job, rendered

    made = rendered(job(), suspects=Suspects(avoid=nodes)).ray_job
    return made | {"status": ray_job("Initializing", rayClusterName=CLUSTER)["status"]}
