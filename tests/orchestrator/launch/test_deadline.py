"""The driver's hold on the money, with a clock and an ending of the test."""

import time
from pathlib import Path

import pytest

from orchestrator.launch import reporter as reporter_module
from orchestrator.launch.deadline import LOOK_SECONDS, OVER, DeadlineGuard
from orchestrator.launch.ending import Ending
from orchestrator.launch.events import Continue, FailureClass, HardDeadline, Warning_, read, write_control
from orchestrator.launch.reporter import FileReporter


class Recorded(Ending):
    """Notes what would have ended the process."""

    def __init__(self) -> None:
        self.said: list[tuple[str, FailureClass, str]] = []

    def at_once(self, outcome: str, failure: FailureClass, message: str) -> None:
        self.said.append((outcome, failure, message))


def until(number: int, limit: float) -> HardDeadline:
    return HardDeadline(number=number, incarnation="i1", stop=limit - 30, end=limit - 10, limit=limit)


class Driver:
    """Began at 1000, with money until 1100."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, deadline: HardDeadline | None) -> None:
        self.now, self.ending = 1000.0, Recorded()
        self.reporter = FileReporter(root, "u", 1, "i1", deadline=deadline, began=1000.0)
        self.set_back = 0.0
        self.guard = DeadlineGuard(
            self.reporter, self.ending, clock=lambda: self.now - self.set_back, monotonic=lambda: self.now - 990
        )
        monkeypatch.setattr(reporter_module, "time", self)

    def time(self) -> float:
        return self.now

    def answer(self, deadline: HardDeadline) -> None:
        write_control(self.reporter.root / "control.json", Continue(hard_deadline=deadline))

    def ends_at(self, latest: float, *, listens: bool = True) -> float | None:
        """When the guard ends the attempt; None if it does not until `latest`."""
        while self.now < latest:
            if listens:
                self.guard.listen()
            if self.guard.hold():
                assert self.ending.said == [("stopped", FailureClass.OVER_BUDGET, OVER)]
                return self.now
            pause = self.guard.pause()
            assert 0 < pause <= LOOK_SECONDS
            self.now += pause
        return None

    def warnings(self) -> list[str]:
        return [e.message for e in read(self.reporter.root / "events" / "events.jsonl")[0] if isinstance(e, Warning_)]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(tmp_path, monkeypatch, until(0, 1100.0))


def test_with_nobody_watching_it_ends_at_the_first_deadline(driver: Driver) -> None:
    assert driver.ends_at(2000) == pytest.approx(1090, abs=1e-6)


def test_a_later_deadline_is_honoured(driver: Driver) -> None:
    driver.now = 1060
    driver.answer(until(1, 1500.0))
    assert driver.ends_at(2000) == pytest.approx(1490, abs=1e-6)


def test_an_earlier_one_too(driver: Driver) -> None:
    driver.answer(until(1, 1500.0))
    assert driver.ends_at(1200) is None
    driver.answer(until(2, 1300.0))
    assert driver.ends_at(2000) == pytest.approx(1290, abs=1e-6)


def test_one_that_has_passed_ends_it_at_once(driver: Driver) -> None:
    driver.now = 1050
    driver.answer(until(1, 1050.5))
    assert driver.ends_at(2000) == 1050


def test_an_older_answer_takes_nothing_back(driver: Driver) -> None:
    driver.answer(until(2, 1500.0))
    driver.guard.listen()
    driver.answer(until(1, 1200.0))
    assert driver.ends_at(2000) == pytest.approx(1490, abs=1e-6)


def test_without_a_budget_there_is_no_end_until_one_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(tmp_path, monkeypatch, None)
    assert driver.ends_at(5000) is None
    driver.answer(until(1, 6000.0))
    assert driver.ends_at(9000) == pytest.approx(5990, abs=1e-6)


def test_nonsense_is_ignored_and_told_once(driver: Driver) -> None:
    driver.answer(until(7, 900.0))
    assert driver.ends_at(1010) is None
    (driver.reporter.root / "control.json").write_text("{")
    assert driver.ends_at(1020) is None
    first, second = driver.warnings()
    assert first == "a newer deadline is ignored: it is 900.000, and the attempt has begun at 1000.000"
    assert "control.json holds no answer to a running job" in second
    assert driver.ends_at(2000) == pytest.approx(1090, abs=1e-6)
    assert len(driver.warnings()) == 2


def test_a_disk_that_fails_does_not_loosen_it(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> None:
        raise OSError("stale handle")

    monkeypatch.setattr(reporter_module, "read_control", fails)
    assert driver.ends_at(2000) == pytest.approx(1090, abs=1e-6)


def test_workers_that_have_stopped_are_not_called_back(driver: Driver) -> None:
    """They were told to stop; the raise comes while they save. The driver must know why they ended."""
    driver.now = 1071
    assert driver.reporter.stop_requested() is not None
    driver.answer(until(1, 1500.0))
    stop = driver.reporter.stop_requested()
    assert stop is not None
    assert (stop.reason, stop.deadline) == ("over-budget", 1490)


def test_the_driver_remembers_that_the_stop_was_due(driver: Driver) -> None:
    driver.now = 1070.0
    driver.answer(until(1, 1500.0))  # between two looks
    driver.guard.listen()
    driver.now = 1071
    stop = driver.reporter.stop_requested()
    assert stop is not None
    assert stop.reason == "over-budget"


def test_a_clock_that_is_set_back_gives_no_time(driver: Driver) -> None:
    assert driver.ends_at(1030) is None
    driver.set_back = 3600.0
    end = driver.ends_at(2000)
    assert end is not None
    assert 1090 <= end <= 1090 + LOOK_SECONDS


def test_a_clock_that_is_set_forward_takes_it(driver: Driver) -> None:
    driver.set_back = -50.0
    assert driver.ends_at(2000) == pytest.approx(1040, abs=1e-6)


def test_a_control_file_that_cannot_be_read_in_time_delays_nothing(driver: Driver) -> None:
    assert driver.ends_at(2000, listens=False) == pytest.approx(1090, abs=1e-6)


def test_the_thread_watches(tmp_path: Path) -> None:
    """By the real clock: the deadline has passed, so that the first look ends it."""
    ending, began = Recorded(), time.time() - 100
    past = HardDeadline(number=0, incarnation="i9", stop=began + 1, end=began + 2, limit=began + 3)
    guard = DeadlineGuard(FileReporter(tmp_path, "u", 1, "i9", deadline=past, began=began), ending)
    guard._hold()
    assert [failure for _, failure, _ in ending.said] == [FailureClass.OVER_BUDGET]
