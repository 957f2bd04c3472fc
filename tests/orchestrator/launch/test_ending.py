"""The end of an attempt by force, in sessions of the tests' own."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from support.runs import event, resolved

from orchestrator.launch import processes
from orchestrator.launch.base import RunFolder
from orchestrator.launch.ending import Ending, last_step
from orchestrator.launch.events import Ended, EventLog, FailureClass, read

ROOT = Path(__file__).parents[3]
STUCK = """
import fcntl, os, signal, subprocess, sys, threading
from pathlib import Path
from orchestrator.launch.base import RunFolder
from orchestrator.launch.ending import Ending
from orchestrator.launch.events import FailureClass
from orchestrator.launch.resolve import Resolved

folder, plan = RunFolder(Path(sys.argv[1])), Resolved.model_validate_json(sys.argv[2])
lock = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(99)"
folder.events.parent.mkdir(parents=True)
worker = subprocess.Popen(
    [sys.executable, "-c", lock, str(folder.events)], stdout=subprocess.PIPE, process_group=0
)
worker.stdout.readline()
os.kill(worker.pid, signal.SIGSTOP)
print(worker.pid, flush=True)
ending = Ending(folder, plan)
thread = threading.Thread(target=ending.at_once, args=("failed", FailureClass.STALLED, "stuck"))
thread.start()
worker.wait()
ending.write("failed", FailureClass.WORKER_LOST, "what the main thread sees of it")
print("not reached", flush=True)
"""


def ends(folder: RunFolder) -> list[Ended]:
    return [e for e in read(folder.events)[0] if isinstance(e, Ended)]


def test_all_is_ended_even_a_stopped_worker_that_holds_the_lock_and_only_one_end_is_told(tmp_path: Path) -> None:
    folder, plan = RunFolder(tmp_path / "run"), resolved()
    command = [sys.executable, "-c", STUCK, str(folder.root), plan.model_dump_json()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=180, start_new_session=True, check=False
    )
    assert done.returncode == 1, done.stderr
    [pid] = done.stdout.split()
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    [end] = ends(folder)
    assert (end.outcome, end.failure_class, end.message) == ("failed", FailureClass.STALLED, "stuck")


def test_the_first_word_is_the_last(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    ending = Ending(folder, resolved())
    ending.write("succeeded", None, "")
    ending.at_once("failed", FailureClass.STALLED, "too late: this must not end the tests")
    late = threading.Thread(target=ending.write, args=("stopped", None, ""), daemon=True)
    late.start()
    late.join(0.05)
    assert late.is_alive(), "it waits for the end of the process"
    assert [end.outcome for end in ends(folder)] == ["succeeded"]


def test_started_by_hand_it_spares_the_session_it_did_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[object] = []
    monkeypatch.setattr(os, "getsid", lambda pid: 1)
    monkeypatch.setattr(os, "getpgrp", lambda: 1)
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(processes, "kill_session", lambda *a, **k: pytest.fail("a person's shell"))
    Ending(RunFolder(tmp_path), resolved()).at_once("stopped", FailureClass.OVER_BUDGET, "m")
    assert ended == [1]
    assert [end.failure_class for end in ends(RunFolder(tmp_path))] == [FailureClass.OVER_BUDGET]


def test_an_end_that_cannot_be_written_is_still_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[object] = []
    monkeypatch.setattr(os, "getsid", lambda pid: 1)
    monkeypatch.setattr(os, "getpgrp", lambda: 1)
    monkeypatch.setattr(os, "_exit", ended.append)
    (tmp_path / "events").write_text("not a folder")
    Ending(RunFolder(tmp_path), resolved()).at_once("failed", FailureClass.STALLED, "m")
    assert ended == [1]
    assert "Traceback" in capsys.readouterr().err


def test_the_last_step_of_an_attempt(tmp_path: Path) -> None:
    folder, log = RunFolder(tmp_path), EventLog(tmp_path / "events" / "events.jsonl")
    assert last_step(folder, resolved()) is None
    for one in (
        event("started", 1.0, step=3, tokens=0, world_size=2),
        event("progress", 2.0, step=7, tokens=0),
        event("started", 3.0, step=5, tokens=0, world_size=2),
        event("progress", 4.0, attempt=2, step=9, tokens=0),
        event("evaluated", 5.0, step=8, tokens=0),
        event("machine-load", 6.0, attempt=2, node="n"),
    ):
        log.append(**one.model_dump(exclude={"seq", "version"}))
    assert last_step(folder, resolved()) == 5, "a restart goes back: what came before no longer counts"
    assert last_step(folder, resolved(attempt=2)) == 9


HOOKED = """
import sys
from pathlib import Path
from orchestrator.launch.base import RunFolder
from orchestrator.launch.ending import Ending
from orchestrator.launch.events import FailureClass, read
from orchestrator.launch.resolve import Resolved

folder, plan = RunFolder(Path(sys.argv[1])), Resolved.model_validate_json(sys.argv[2])

def first():
    print("first", len(read(folder.events)[0]), flush=True)

def last(failure):
    print("last", len(read(folder.events)[0]), failure, flush=True)

ending = Ending(folder, plan, first=first, last=last)
if sys.argv[3] == "write":
    ending.write("succeeded", None, "")
else:
    ending.at_once("failed", FailureClass.STALLED, "stuck")
"""


@pytest.mark.parametrize(("how", "expected"), [("write", ["last 1 None"]), ("at once", ["first 0", "last 1 stalled"])])
def test_the_last_word_is_taken_on_when_it_is_written(tmp_path: Path, how: str, expected: list[str]) -> None:
    command = [sys.executable, "-c", HOOKED, str(tmp_path / "run"), resolved().model_dump_json(), how]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=180, start_new_session=True, check=False
    )
    assert done.stdout.splitlines() == expected, done.stderr
    assert done.returncode == (0 if how == "write" else 1)
