"""Which nodes an attempt is kept away from, by what stands in its run's folder."""

from __future__ import annotations

from pathlib import Path

from support.kuberay_objects import BEGAN, pod
from support.kuberay_objects import condition as said

from orchestrator.launch.base import RunFolder
from orchestrator.launch.cluster.elsewhere import suspects_before
from orchestrator.launch.cluster.memory import Mark, Memory, write_mark
from orchestrator.launch.events import EventLog
from orchestrator.launch.suspects import MOST


def test_what_drivers_and_pods_have_told_is_counted_once_for_each_attempt(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert suspects_before(folder, 1) == suspects_before(folder, 2) == ()
    for _ in range(MOST + 1):
        lose(folder, 1, "gpu-3")
    write_mark(folder, 1, Mark(uid="u1", began=1.0, lost=("gpu-3", "gpu-5")))
    assert suspects_before(folder, 2) == ("gpu-3", "gpu-5")
    for number in range(MOST):
        for attempt in (2, 3):
            lose(folder, attempt, f"n{number:02}")
    assert "gpu-3" not in suspects_before(folder, 4), "those of two attempts are worse"
    assert suspects_before(folder, 2) == ("gpu-3", "gpu-5"), "later ones do not count"


def test_where_many_nodes_of_an_attempt_go_none_is_to_blame(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_mark(folder, 1, Mark(uid="u1", began=1.0, lost=("gpu-3", "gpu-4", "gpu-5")))
    assert suspects_before(folder, 2) == ()


def test_nonsense_of_a_pod_makes_no_attempt_invalid(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for node in ("Not A Node", "-x", "../x", "", "a..b", "a-.b", "a\n", "gpu-1.example", "a" * 253):
        lose(folder, 1, node)
    with folder.events.open("a") as file:
        file.write('{"kind": "workers-lost", "nodes": 3}\n')
    assert suspects_before(folder, 2) == ("a" * 253, "gpu-1.example")


def lose(folder: RunFolder, attempt: int, node: str) -> None:
    keys = {"job": "u", "attempt": attempt, "incarnation": f"i{attempt}"}
    EventLog(folder.events).append("workers-lost", **keys, message="gone", nodes=(node,))


def test_a_node_that_fails_is_remembered_and_one_that_is_taken_or_full_is_not() -> None:
    memory = Memory()
    reasons = {"w1": "DeletionByTaintManager", "w2": "PreemptionByScheduler", "w3": "TerminationByKubelet"}
    for name, reason in reasons.items():
        one = pod(name=name, conditions=[said("DisruptionTarget", "True", reason)])
        one["spec"]["nodeName"] = f"of-{name}"
        memory.show(name, one, BEGAN)
    full = pod(name="w4", phase="Failed", reason="Evicted")
    full["spec"]["nodeName"] = "of-w4"
    memory.show("w4", full, BEGAN)
    assert memory.mark("u").lost == ("of-w1",)
    assert Memory.of(memory.mark("u")).lost == {"of-w1"}
