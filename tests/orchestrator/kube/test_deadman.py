"""A process that is stopped when its time comes is dead then, and so are its locks."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.kube import deadman as deadman_module
from orchestrator.kube.deadman import Deadman, deadman
from orchestrator.kube.lease import steady
from orchestrator.launch.locks import is_locked

pytestmark = pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="timers of Linux")

_HOLDS = """
import fcntl, sys
from orchestrator.kube.deadman import Deadman
from orchestrator.kube.lease import steady
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
die_at = Deadman()
die_at(steady() + 300)
for wait in sys.argv[2:]:
    die_at(None if wait == "never" else steady() + float(wait))
print("armed", flush=True)
sys.stdin.read()
"""


def holder(lock: Path, *waits: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(lock), *waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"armed\n"
    return process


def test_one_that_is_stopped_dies_and_its_locks_fall(tmp_path: Path) -> None:
    with holder(tmp_path / "lock", "0.5") as process:
        process.send_signal(signal.SIGSTOP)
        assert is_locked(tmp_path / "lock")
        assert process.wait(30) == -signal.SIGKILL
        assert not is_locked(tmp_path / "lock")


def test_what_is_past_is_at_once(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDS, str(tmp_path / "lock"), "-1e9"]) as process:
        assert process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("waits", [("0.2", "300"), ("0.2", "never")])
def test_what_was_said_last_counts(tmp_path: Path, waits: tuple[str, ...]) -> None:
    with holder(tmp_path / "lock", *waits) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.6)
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_where_there_is_no_such_timer_it_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deadman_module.ctypes, "CDLL", lambda *_, **__: object())
    deadman()(steady() - 1)
    assert "has no timers" in caplog.text


def test_the_first_process_of_a_container_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It would live on, as was seen."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    deadman()(steady() - 1)
    assert "shareProcessNamespace" in caplog.text


def test_what_the_kernel_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Deadman()
    monkeypatch.setattr(made, "_timer", ctypes.c_void_p(12345))
    with pytest.raises(OSError, match=os.strerror(22)):
        made(steady() + 300)
