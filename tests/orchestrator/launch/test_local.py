"""Locks and processes as they really are: every driver here is a child process of the test."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support.runs import resolved

from orchestrator.errors import Conflict
from orchestrator.launch import local
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointAndStop, read_control
from orchestrator.launch.local import Driver, hold_lock, order_stop, running

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from orchestrator.launch.local import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
SILENT = """
import fcntl, sys
with open(sys.argv[1], "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(sys.argv[2])
    file.flush()
    print("held", flush=True)
    sys.stdin.read()
"""
FAMILY = """
import subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
children = [subprocess.Popen(sleep, stdout=subprocess.DEVNULL, process_group=0) for _ in range(2)]
print(*(child.pid for child in children), flush=True)
sys.stdin.read()
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program in a session of its own and waits for its first line, which becomes `.args`."""
    made: list[subprocess.Popen[str]] = []

    def begin(program: str, *arguments: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        made.append(child)
        assert child.stdout is not None
        child.args = child.stdout.readline()
        return child

    yield begin
    for child in made:
        for process in psutil.process_iter():  # by its session, so that a failed test leaves nothing behind
            with suppress(ProcessLookupError):
                if os.getsid(process.pid) == child.pid:
                    os.kill(process.pid, signal.SIGKILL)
        child.communicate()


def gone(pid: int) -> bool:
    """A process that its new parent has not collected yet counts as gone."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_lock_is_held_by_one_process_and_falls_with_it(folder: RunFolder, start: Start) -> None:
    holder = start(HOLD, str(folder.lock))
    with pytest.raises(Conflict, match=f"process {holder.pid}: wait until it ends"), hold_lock(folder.lock):
        pytest.fail("two processes hold the lock")
    holder.kill()
    holder.wait()
    with hold_lock(folder.lock):
        assert json.loads(folder.lock.read_text())["pid"] == os.getpid()
    with hold_lock(folder.lock):
        pass


def test_a_living_driver_is_found_again_and_a_dead_one_is_not(folder: RunFolder, start: Start) -> None:
    assert running(folder) is None
    holder = start(HOLD, str(folder.lock))
    driver = running(folder)
    assert driver is not None
    assert driver.process.pid == holder.pid
    assert driver.alive()
    holder.kill()
    wait_until(lambda: not driver.alive())
    assert holder.returncode is None, "it is a zombie, which no driver is"
    assert running(folder) is None, "the lock's file still names it"


STRANGE = [
    "", "{", "[]", "null", '{"pid": 1}', '{"pid": 1, "started": 0, "boot": 0}', '{"pid": "x", "started": 0, "boot": 0}',
    '{"pid": null, "started": null, "boot": null}', '{"pid": [1], "started": 0, "boot": 0}',
    '{"pid": NaN, "started": 0, "boot": 0}', '{"pid": -1, "started": 0, "boot": 0}',
    '{"pid": 1e99, "started": Infinity, "boot": 0}',
]  # fmt: skip


@pytest.mark.parametrize("said", STRANGE)
def test_a_lock_held_by_nobody_who_is_known_is_a_conflict(
    folder: RunFolder, start: Start, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PATIENCE_SECONDS", 0.02)
    start(SILENT, str(folder.lock), said)
    with pytest.raises(Conflict, match="not by a driver on this machine"):
        running(folder)
    with pytest.raises(Conflict), hold_lock(folder.lock):
        pytest.fail("two processes hold the lock")


def test_another_process_with_the_drivers_number_is_not_the_driver(
    folder: RunFolder, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PATIENCE_SECONDS", 0.02)
    own = psutil.Process()
    stale = {"pid": own.pid, "started": own.create_time() - 100, "boot": psutil.boot_time()}
    start(SILENT, str(folder.lock), json.dumps(stale))
    with pytest.raises(Conflict):
        running(folder)


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "dead"])
def test_a_kill_ends_all_that_the_driver_started(start: Start, dead: bool) -> None:
    parent = start(FAMILY)
    driver = Driver(psutil.Process(parent.pid), parent)
    children = [int(pid) for pid in str(parent.args).split()]
    assert {p.pid for p in driver.session()} == {parent.pid, *children}
    assert all(os.getpgid(pid) == pid for pid in children), "killing the group would miss them"
    if dead:
        parent.kill()
        parent.wait()
    driver.kill()
    assert all(gone(pid) for pid in children)
    assert not driver.alive()
    driver.kill()


def test_a_kill_spares_everybody_else(start: Start) -> None:
    first, second = start(FAMILY), start(FAMILY)
    Driver(psutil.Process(first.pid), first).kill()
    assert second.poll() is None
    assert not any(gone(int(pid)) for pid in str(second.args).split())
    Driver(psutil.Process(second.pid), second).kill()


def test_a_second_driver_is_not_started(folder: RunFolder, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE_SECONDS", 0.02)
    holder = start(HOLD, str(folder.lock))
    order_stop(folder, "for the one that lives", 10)
    local.prepare(folder, resolved(attempt=3))
    with pytest.raises(Conflict, match=f"in the hands of process {holder.pid}"):
        local.start(folder, 3)
    assert folder.control.exists(), "its order is not taken from it"
    assert running(folder) is not None


def test_a_second_driver_that_was_started_by_hand_says_who_has_the_run(folder: RunFolder, start: Start) -> None:
    """The real driver: it finds its configuration and the lock, and touches nothing."""
    holder = start(HOLD, str(folder.lock))
    plan = resolved(attempt=3, storage=str(folder.root))
    local.prepare(folder, plan)
    done = subprocess.run([*local.DRIVER, str(folder.root), "3"], capture_output=True, text=True, timeout=180, cwd=ROOT)
    assert done.returncode == 1
    assert f"in the hands of process {holder.pid}" in done.stderr
    assert type(plan).model_validate_json(folder.resolved(3).read_text()) == plan
    assert folder.last_attempt() == 3
    assert not folder.events.exists()


def test_an_order_to_stop_carries_its_deadline(folder: RunFolder) -> None:
    order_stop(folder, "interrupted", 30)
    answer = read_control(folder.control)
    assert isinstance(answer, CheckpointAndStop)
    assert answer.reason == "interrupted"
    assert 0 < answer.deadline - time.time() <= 30
