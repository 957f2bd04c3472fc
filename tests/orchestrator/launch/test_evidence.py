import threading
from pathlib import Path

import psutil
import pytest
from support.runs import resolved

from orchestrator.launch import evidence
from orchestrator.launch.base import RunFolder
from orchestrator.launch.evidence import describe, stacks, workers_state


class Fake:
    """As much of a process as is looked at."""

    def __init__(self, pid: int, status: str, title: str) -> None:
        self.pid, self._status, self._title = pid, status, title

    def status(self) -> str:
        if self._status == "gone":
            raise psutil.NoSuchProcess(self.pid)
        return self._status

    def cmdline(self) -> list[str]:
        return [self._title]


WORKER, RAYLET = "ray::RayTrainWorker.execute", "raylet"


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        ([], "no worker process lives"),
        ([Fake(1, "gone", WORKER)], "no worker process lives"),
        ([Fake(1, "stopped", WORKER), Fake(2, "disk-sleep", WORKER)], "worker processes: 1 stopped, 2 disk-sleep"),
        ([Fake(1, "stopped", RAYLET), Fake(2, "sleeping", RAYLET)], "no worker process lives; 1 others are stopped"),
    ],
)
def test_states(processes: list[psutil.Process], words: str) -> None:
    assert workers_state(processes) == words


def test_many_workers_are_counted() -> None:
    many: list[psutil.Process] = [Fake(n, "sleeping", WORKER) for n in range(100)]  # type: ignore[misc]
    assert workers_state(many).endswith("15 sleeping and 84 more")


def test_ranks_that_left_stacks(tmp_path: Path) -> None:
    folder, plan = RunFolder(tmp_path), resolved(workers=3)
    assert stacks(folder, plan) == "no rank left its stacks"
    (tmp_path / "logs").mkdir()
    for rank, text in ((0, "x"), (1, "")):
        folder.stacks(1, "i1", rank).write_text(text)
    folder.stacks(1, "older", 2).write_text("x")
    assert stacks(folder, plan) == f"stacks in {tmp_path / 'logs'} of rank 0, none of rank 1, 2"
    assert stacks(folder, plan, "the log") == "stacks in the log of rank 0, none of rank 1, 2"
    assert describe(folder, plan, list) == f"no worker process lives; {stacks(folder, plan)}"


def test_what_cannot_be_looked_at_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def stuck() -> list[psutil.Process]:
        gate.wait(300)
        return []

    monkeypatch.setattr(evidence, "PATIENCE_SECONDS", 0.01)
    try:
        said = describe(RunFolder(tmp_path), resolved(workers=1), stuck)
    finally:
        gate.set()
    assert said == "its processes could not be looked at in 0.01 s; no rank left its stacks"
