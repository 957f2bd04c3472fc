"""The driver's guard with a clock and an ending of the test; one look a second."""

from pathlib import Path
from typing import Any

import pytest
from support.recipes import tiny_recipe
from support.runs import resolved

from orchestrator.launch import guard as guard_module
from orchestrator.launch.base import RunFolder
from orchestrator.launch.ending import Ending
from orchestrator.launch.events import EventLog, FailureClass
from orchestrator.launch.guard import DUMP_SECONDS, END_SECONDS, Guard
from orchestrator.launch.reporter import FileReporter


class Recorded(Ending):
    """Notes what would have ended the process."""

    def __init__(self) -> None:
        self.said: list[tuple[str, FailureClass, str]] = []

    def at_once(self, outcome: str, failure: FailureClass, message: str) -> None:
        self.said.append((outcome, failure, message))


class Driver:
    """A driver's guard, and what its workers say."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder(root)
        self.plan = resolved(stall_seconds=20.0, restarts_without_progress=1, recipe=tiny_recipe())
        self.reporter = FileReporter(root, "u", 1, "i1")
        self.ending, self.now = Recorded(), 0.0
        self.waits: list[float] = []
        self.guard = Guard(self.folder, self.plan, self.reporter, self.ending, clock=lambda: self.now, wait=self._wait)

    def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def look(self, seconds: int) -> bool:
        """Look for so long; whether the attempt was ended."""
        for _ in range(seconds):
            self.now += 1
            if self.guard.look():
                return True
        return False

    def train(self, step: int) -> None:
        self.reporter.progress(step=step, tokens=step, metrics={}, samples=1)

    def start(self, step: int = 0) -> None:
        self.reporter.started(step=step, tokens=0, world_size=2, resumed_from=None, arithmetic="fp32")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(guard_module, "session", lambda number: [])
    return Driver(tmp_path)


def test_a_stall_is_told_with_all_that_is_known_of_it(driver: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    driver.start()
    driver.train(1)
    driver.reporter.stack_file(1).write_text("Thread 0x1 (most recent call first)")
    driver.reporter.stack_file(0).touch()
    assert driver.look(100)
    [(outcome, failure, message)] = driver.ending.said
    assert (outcome, failure) == ("failed", FailureClass.STALLED)
    assert "no step after step 1" in message
    assert "no worker process lives" in message
    assert message.endswith(f"stacks in {driver.folder.root / 'logs'} of rank 1, none of rank 0")
    assert driver.waits == [DUMP_SECONDS], "the workers' own dumps may still be on their way"
    assert message in capsys.readouterr().out, "the log has it too"
    assert not driver.reporter.has_failed(), "nobody shall end quietly: all is ended"


def test_a_step_that_comes_just_late_is_no_stall(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.start()
    driver.train(1)
    monkeypatch.setattr(driver.guard, "_wait", lambda seconds: driver.train(2))
    assert not driver.look(22)
    assert driver.ending.said == []


def test_vain_restarts_let_workers_end_by_themselves_first(driver: Driver) -> None:
    for _ in range(2):
        driver.start()
        driver.train(1)
        driver.reporter.workers_lost("rank 1: ActorDiedError: killed")
    assert driver.look(1)
    failure = driver.reporter.failure()
    assert failure is not None
    assert failure[0] is FailureClass.WORKER_LOST
    assert failure[1].endswith("rank 1: ActorDiedError: killed")
    assert driver.waits == [END_SECONDS]
    assert driver.ending.said == [("failed", *failure)]


def test_a_reason_that_a_worker_gave_is_the_one_that_counts(driver: Driver) -> None:
    driver.reporter.failed("not-finite", "nan")
    for _ in range(2):
        driver.reporter.workers_lost("gone")
    assert driver.look(1)
    assert driver.ending.said == [("failed", FailureClass.NOT_FINITE, "nan")]


def test_workers_that_failed_and_do_not_end_have_failed_for_their_own_reason(
    driver: Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    driver.start()
    driver.train(1)
    driver.reporter.failed("out-of-memory", "tried to allocate 1 EB")
    assert driver.look(100)
    assert driver.ending.said == [("failed", FailureClass.OUT_OF_MEMORY, "tried to allocate 1 EB")]
    assert "no step after step 1" in capsys.readouterr().out, "the log says why it was ended by force"


def test_whoever_has_other_evidence_of_a_stall_gives_it(driver: Driver) -> None:
    arguments = (driver.folder, driver.plan, driver.reporter, driver.ending)
    clock = {"clock": lambda: driver.now, "wait": driver._wait}
    driver.guard = Guard(*arguments, evidence=lambda: "stacks in the log", **clock)
    driver.start()
    assert driver.look(200)
    [(_, failure, message)] = driver.ending.said
    assert (failure, message.rpartition("; ")[2]) == (FailureClass.STALLED, "stacks in the log")


def test_attempts_before_and_after_are_not_its_business(driver: Driver) -> None:
    other: dict[str, Any] = {"job": "u", "attempt": 2, "incarnation": "i2"}
    driver.start()
    driver.train(1)
    log = EventLog(driver.folder.events)
    for _ in range(20):
        log.append("workers-lost", message="m", **other)
    assert not driver.look(19)


def test_a_look_that_fails_does_not_end_the_watch(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter(["fails", "nothing", "ended"])

    def look() -> bool:
        if (found := next(looks)) == "fails":
            raise OSError("disk")
        return found == "ended"

    monkeypatch.setattr(driver.guard, "look", look)
    driver.guard._run()
    assert "OSError: disk" in capsys.readouterr().err
    assert len(driver.waits) == 2
