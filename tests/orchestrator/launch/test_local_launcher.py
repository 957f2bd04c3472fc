"""The launcher of this machine with real processes, killed between any two of its steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.runs import resolved
from support.stand_in import COMMAND

from orchestrator.errors import Conflict, UsageError
from orchestrator.launch import local
from orchestrator.launch.base import Capacity, RunFolder
from orchestrator.launch.events import Ended, read
from orchestrator.launch.local import LocalLauncher
from orchestrator.launch.processes import session
from orchestrator.settings import Settings

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[3]
STARTER = """
import os, signal, sys
from pathlib import Path
from orchestrator.launch import local
from orchestrator.launch.base import RunFolder
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
where, folder, command = sys.argv[1], RunFolder(Path(sys.argv[2])), sys.argv[3:]
if where == "before": local.subprocess.Popen = die
if where == "after": local._name = die
local.start(folder, 1, command)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    found = RunFolder(tmp_path / "run")
    found.root.mkdir()
    tell(found, seconds=60.0)
    local.prepare(found, resolved())
    yield found
    if (driver := local.running(found)) is not None:
        driver.kill()


@pytest.fixture
def mine(folder: RunFolder) -> Iterator[LocalLauncher]:
    """Starts drivers, and has seen the end of all of them when the test is over."""
    made = launcher()
    yield made
    made.kill(folder, 1)
    wait_until(lambda: not made.look(folder, 1).alive)


def tell(folder: RunFolder, **story: object) -> None:
    (folder.root.parent / "story.json").write_text(json.dumps({"outcome": "succeeded"} | story))


def launcher() -> LocalLauncher:
    """As another process would have it."""
    return LocalLauncher(Settings.load({"FATHOM_HOME": "/nowhere", "FATHOM_CPUS": "8"}), COMMAND)


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def start_and_die(folder: RunFolder, where: str) -> None:
    command = [sys.executable, "-c", STARTER, where, str(folder.root), *COMMAND]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL


def test_whoever_starts_a_driver_dies_before_there_is_one(folder: RunFolder, mine: LocalLauncher) -> None:
    start_and_die(folder, "before")
    seen = launcher().look(folder, 1)
    assert (seen.alive, seen.begun) == (False, False), "the same attempt may be started"
    mine.start(folder, 1)
    assert mine.look(folder, 1).alive


def test_whoever_starts_a_driver_dies_before_he_has_named_it(folder: RunFolder) -> None:
    """The driver holds the lock from before its first instruction on, and gives its name itself."""
    start_and_die(folder, "after")
    assert launcher().look(folder, 1).alive
    with pytest.raises(Conflict):
        launcher().start(folder, 1)
    wait_until(lambda: launcher().look(folder, 1).began is not None)
    driver = local.running(folder)
    assert driver is not None
    assert len(session(driver.process.pid)) >= 1


def test_a_driver_lives_ends_and_what_it_left_is_seen_and_ended(folder: RunFolder, mine: LocalLauncher) -> None:
    tell(folder, seconds=0.3)
    mine.start(folder, 1)
    pid = json.loads(folder.lock.read_text())["pid"]
    wait_until(lambda: not mine.look(folder, 1).alive)
    for one in (mine, launcher()):
        seen = one.look(folder, 1)
        assert (seen.alive, seen.begun, seen.left) == (False, True, True), "its child has outlived it"
    launcher().kill(folder, 1)
    wait_until(lambda: not launcher().look(folder, 1).left)
    assert session(pid) == []
    assert isinstance(read(folder.events)[0][-1], Ended)


def test_a_shot_driver_leaves_the_lock_to_the_next_one(folder: RunFolder, mine: LocalLauncher) -> None:
    mine.start(folder, 1)
    wait_until(lambda: folder.events.exists())
    os.kill(json.loads(folder.lock.read_text())["pid"], signal.SIGKILL)
    wait_until(lambda: not mine.look(folder, 1).alive)
    assert mine.look(folder, 1).left
    mine.kill(folder, 1)
    wait_until(lambda: not mine.look(folder, 1).left)
    local.prepare(folder, resolved(attempt=2))
    assert not mine.look(folder, 2).begun
    mine.start(folder, 2)
    assert mine.look(folder, 2).alive


def test_an_order_is_obeyed_and_an_old_one_does_not_stop_the_next(folder: RunFolder, mine: LocalLauncher) -> None:
    mine.order_stop(folder, "of an earlier attempt", 10)
    mine.start(folder, 1)
    assert mine.look(folder, 1).ordered is None
    mine.order_stop(folder, "suspended", 10)
    seen = launcher().look(folder, 1)
    assert seen.ordered == "suspended"
    assert seen.deadline is not None
    wait_until(lambda: not mine.look(folder, 1).alive)
    last = read(folder.events)[0][-1]
    assert isinstance(last, Ended)
    assert (last.outcome, last.message) == ("stopped", "suspended")


def test_no_process_of_a_driver_holds_its_lock(folder: RunFolder, mine: LocalLauncher) -> None:
    mine.start(folder, 1)
    wait_until(lambda: folder.events.exists())
    pid = json.loads(folder.lock.read_text())["pid"]
    children = psutil.Process(pid).children()
    assert children
    for child in children:
        held = {os.path.realpath(f"/proc/{child.pid}/fd/{one}") for one in os.listdir(f"/proc/{child.pid}/fd")}
        assert str(folder.lock) not in held


def test_a_removed_run_is_gone_and_a_half_removed_one_goes_too(folder: RunFolder) -> None:
    one = launcher()
    one.remove(folder)
    assert not folder.root.exists()
    half = folder.root.with_name(".removing-run")
    for begun_again in (False, True):  # by the next controller, which finds the job in the store
        one._remover.wait()
        half.mkdir()
        (half / "file").touch()
        if begun_again:
            folder.root.mkdir()
        else:
            one._remover.sweep(folder.root.parent)
        one.remove(folder)
        assert not folder.root.exists()
        one._remover.wait()
        assert list(folder.root.parent.glob("*run*")) == []
        assert list(folder.root.parent.glob(".*")) == []


def test_cores_are_counted_or_given() -> None:
    assert launcher().capacity().cpus == Capacity(8).cpus
    with pytest.raises(UsageError, match="FATHOM_CPUS"):
        Settings.load({"FATHOM_CPUS": "0"})
