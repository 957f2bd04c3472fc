import time
from pathlib import Path

import pytest
from support.runs import resolved

from orchestrator.launch import control
from orchestrator.launch.attempt import Terminated, how_it_ended
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointAndStop, FailureClass, read_control, write_control
from orchestrator.launch.locks import locked
from orchestrator.launch.reporter import FileReporter


class WorkerGroupError(Exception):
    """Named as Ray's."""


@pytest.fixture
def reporter(tmp_path: Path) -> FileReporter:
    return FileReporter(tmp_path, "u", 1, "i1")


def order(reporter: FileReporter, reason: str) -> None:
    write_control(reporter.root / "control.json", CheckpointAndStop(deadline=1.0, reason=reason))


def test_all_steps_are_success_even_if_a_stop_came_late(reporter: FileReporter) -> None:
    order(reporter, "interrupted")
    assert how_it_ended(resolved(), reporter, None, 8) == ("succeeded", None, "")


@pytest.mark.parametrize(
    ("reason", "failure"), [("interrupted", FailureClass.INTERRUPTED), ("over-budget", FailureClass.OVER_BUDGET)]
)
def test_an_ordered_stop(reporter: FileReporter, reason: str, failure: FailureClass) -> None:
    order(reporter, reason)
    assert how_it_ended(resolved(), reporter, None, 5) == ("stopped", failure, reason)


def test_workers_that_leave_for_no_reason_have_failed(reporter: FileReporter) -> None:
    outcome, failure, message = how_it_ended(resolved(), reporter, None, 5)
    assert (outcome, failure) == ("failed", FailureClass.UNKNOWN)
    assert "step 5 of 8" in message


@pytest.mark.parametrize("error", [None, WorkerGroupError("m")])
def test_a_workers_own_word_comes_first(reporter: FileReporter, error: Exception | None) -> None:
    reporter.failed("fenced", "attempt 2 has begun")
    order(reporter, "interrupted")
    expected = ("failed", FailureClass.FENCED, "attempt 2 has begun")
    assert how_it_ended(resolved(), reporter, error, 8) == expected


def test_what_ray_says(reporter: FileReporter) -> None:
    lost = how_it_ended(resolved(), reporter, WorkerGroupError("rank 1 died"), 5)
    assert lost == ("failed", FailureClass.WORKER_LOST, "rank 1 died")
    strange = how_it_ended(resolved(), reporter, OSError("no space"), 5)
    assert strange == ("failed", FailureClass.UNKNOWN, "OSError: no space")


def test_the_failure_of_another_attempt_is_not_this_ones(reporter: FileReporter) -> None:
    FileReporter(reporter.root, "u", 2, "i2").failed("fenced", "m")
    assert how_it_ended(resolved(), reporter, None, 8) == ("succeeded", None, "")


def test_a_signal_orders_the_stop_though_what_it_interrupted_has_the_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    terminated = Terminated(folder)
    terminated.start()
    with locked(folder.control.with_name(".control.json.lock")) as mine:
        assert mine
        for _ in range(3):
            terminated.tell()
        assert not folder.control.exists(), "nobody writes beside the one whose turn it is"
    until = time.monotonic() + 120
    while not folder.control.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    answer = read_control(folder.control)
    assert isinstance(answer, CheckpointAndStop)
    assert answer.reason == "terminated"


def test_a_turn_that_never_comes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE_SECONDS", 0.02)
    path = tmp_path / "control.json"
    with locked(path.with_name(".control.json.lock")) as mine:
        assert mine
        with pytest.raises(OSError, match="written by another process"):
            control.amend_control(path, order=CheckpointAndStop(deadline=1.0, reason="m"))
    assert not path.exists()
