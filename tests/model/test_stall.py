"""A stuck process writes its stacks itself; one that goes on leaves no file."""

import faulthandler
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.stall import FACTOR, StackDump, stall_limit

SHORT = 0.2
PATIENCE = 120.0


@pytest.mark.parametrize(
    ("step_seconds", "floor", "limit"),
    [
        (None, 300.0, 300.0),
        (None, 0.2, 0.2),
        (1.0, 300.0, 300.0),
        (30.0, 300.0, 300.0),
        (31.0, 300.0, 310.0),
        (600.0, 300.0, 6000.0),
        (0.0, 300.0, 300.0),
    ],
)
def test_the_limit(step_seconds: float | None, floor: float, limit: float) -> None:
    assert stall_limit(step_seconds, floor) == limit
    assert FACTOR == 10


def until(there: Callable[[], bool]) -> None:
    """The watchdog is a thread in C that tells nobody: look again and again, for a bounded time."""
    end = time.monotonic() + PATIENCE
    while not there() and time.monotonic() < end:
        threading.Event().wait(0.005)
    assert there()


def holds(file: Path, text: str) -> Callable[[], bool]:
    return lambda: text in file.read_text()


def test_a_stuck_process_writes_the_stacks_of_all_threads(tmp_path: Path) -> None:
    file, gate = tmp_path / "deep" / "stack-0.txt", threading.Event()

    def stuck_elsewhere() -> None:
        gate.wait(PATIENCE)

    other = threading.Thread(target=stuck_elsewhere)
    other.start()
    try:
        with StackDump(file, SHORT) as dump:
            dump.postpone()
            until(holds(file, "test_a_stuck_process_writes_the_stacks_of_all_threads"))
            until(holds(file, "stuck_elsewhere"))
            dump.postpone()  # it goes on: what was written stays
        text = file.read_text()
    finally:
        gate.set()
        other.join(PATIENCE)
    assert "Timeout" in text
    assert text.count("Thread 0x") >= 2


def test_a_process_that_goes_on_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "stack-0.txt"
    with StackDump(file, 300.0) as dump:
        for _ in range(5):
            dump.postpone()
            assert file.read_text() == ""
    assert not file.exists()


def test_nothing_is_written_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog is called off before its file is closed."""
    calls: list[str] = []
    cancel = faulthandler.cancel_dump_traceback_later
    file = tmp_path / "stack-0.txt"
    with StackDump(file, 300.0) as dump:
        dump.postpone()
        assert dump._stream is not None
        stream = dump._stream

        def called_off() -> None:
            calls.append("closed" if stream.closed else "open")
            cancel()

        monkeypatch.setattr("model.stall.faulthandler.cancel_dump_traceback_later", called_off)
    assert calls == ["open"]
    assert stream.closed


def test_an_error_inside_goes_through(tmp_path: Path) -> None:
    file = tmp_path / "stack-0.txt"

    def fail() -> None:
        with StackDump(file, 300.0) as dump:
            dump.postpone()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert not file.exists()


def test_without_a_file_there_is_no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("a watchdog was set or called off")

    monkeypatch.setattr("model.stall.faulthandler.dump_traceback_later", never)
    monkeypatch.setattr("model.stall.faulthandler.cancel_dump_traceback_later", never)
    with StackDump(None, 0.001) as dump:
        dump.postpone()
        dump.postpone()


def test_the_limit_follows_the_median_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow step (an evaluation, say) does not change it."""
    now, limits = [0.0], []
    monkeypatch.setattr("model.stall.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(
        "model.stall.faulthandler.dump_traceback_later", lambda limit, file: limits.append(limit) or None
    )
    with StackDump(tmp_path / "stack-0.txt", 300.0) as dump:
        dump.postpone()
        for seconds in (40.0, 40.0, 4000.0, 50.0, 1.0):
            now[0] += seconds
            dump.postpone()
    assert limits == [1800.0, 300.0, 400.0, 400.0, 400.0, 450.0, 400.0]


def test_stacks_of_before_survive_a_new_start_of_the_process(tmp_path: Path) -> None:
    """Workers that were started again write to the same file."""
    file = tmp_path / "stack-0.txt"
    file.write_text("stacks of the process before\n")
    with StackDump(file, 300.0) as dump:
        dump.postpone()
    assert file.exists()
    assert "stacks of the process before" in file.read_text()
