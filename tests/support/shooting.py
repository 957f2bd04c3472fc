"""A `fathom serve` that is shot and started again, and who watches that no job ever has two drivers."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from orchestrator.controller.record import Record
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointCommitted, Ended, Event, Started, read
from orchestrator.launch.processes import MARK
from support.stand_in import BIRTHS, COMMAND

ROOT = Path(__file__).parents[2]
PATIENCE = 480.0


class Service:
    """Of one home, at a port of its own each time. Its words are in `service.log` beside the home."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home, self.log = home, home.with_name("service.log")
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        foreign = ("FATHOM_", "MLFLOW_", "RAY_")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        self._environment = clean | {"FATHOM_HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, die_at: str = "") -> None:
        """Does not wait for it."""
        command = [sys.executable, "-m", "support.serving", "--port", "0"]
        with self.log.open("ab") as log:
            more = {"TEST_DIE_AT": die_at} if die_at else {}
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment | more, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def is_up(self) -> bool:
        """Whether this one serves, and not the one before."""
        assert self.process is not None
        try:
            found: dict[str, object] = json.loads((self.home / "service.json").read_text())
        except FileNotFoundError:
            return False
        return found["pid"] == self.process.pid

    def shoot(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, f"it ended by itself:\n{self.words()}"
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def has_shot_itself(self) -> None:
        """Wait until it has."""
        assert self.process is not None
        assert self.process.wait(PATIENCE) == -signal.SIGKILL, self.words()

    def end(self) -> int:
        """As Ctrl-C does; -> its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)

    def words(self) -> str:
        return self.log.read_text()[-6000:]


class Watcher(threading.Thread):
    """Looks all the time at which drivers live; more than one of a run is remembered."""

    def __init__(self, home: Path) -> None:
        super().__init__(daemon=True)
        self._home, self._ended = home, threading.Event()
        self._strangers: Counter[psutil.Process] = Counter()
        self.twice: list[str] = []
        self.looks = self.most = 0

    def run(self) -> None:
        while not self._ended.wait(0.02):
            living = Counter(filter(None, map(self._folder, psutil.process_iter())))
            self.twice += [folder for folder, number in living.items() if number > 1]
            self.looks, self.most = self.looks + 1, max(self.most, len(living))

    def _folder(self, process: psutil.Process) -> str | None:
        """Whose driver it is. What was none in a hundred looks will be none: to ask all of them takes half a core."""
        if self._strangers[process] > 100:
            return None
        folder = driven(process, self._home)
        self._strangers[process] += folder is None
        return folder

    def end(self) -> None:
        self._ended.set()
        self.join()


def driven(process: psutil.Process, home: Path) -> str | None:
    """The run whose driver this process is. What is between fork and exec is no driver yet, nor a child of one."""
    try:
        command = process.cmdline()
        if COMMAND[1] not in command or process.status() == psutil.STATUS_ZOMBIE:
            return None
        if (parent := process.parent()) is not None and parent.cmdline() == command:
            return None
        folder = command[command.index(COMMAND[1]) + 1]
        return folder if Path(folder).parent == home else None
    except (psutil.Error, IndexError):
        return None


def drivers(home: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if driven(process, home)]


def left(home: Path) -> list[str]:
    """Living processes that belong to this home: services, their children, drivers, and what those have started."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            mine = environment.get("FATHOM_HOME") == str(home) or environment.get(MARK, "").startswith(f"{home}/")
            if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.Error:
            continue
    return found


def wait_until(true: Callable[[], object], why: Callable[[], object], seconds: float = PATIENCE) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, why()
        time.sleep(0.05)


# What is left of runs


def births(home: Path) -> Counter[tuple[str, int]]:
    """How many drivers each attempt of each run has had."""
    lines = (home / BIRTHS).read_text().splitlines()
    return Counter((folder, int(attempt)) for folder, attempt, _ in (line.split() for line in lines))


def require_whole(folder: Path, born: Counter[tuple[str, int]]) -> None:
    """What holds for every run: attempts one after the other, each from where the one before had saved, paid for once.

    An attempt has one end and one start at most (its driver may be shot before that); the intervals in which devices
    were held follow each other, and each covers its attempt's own events.
    """
    run, events = RunFolder(folder), read(RunFolder(folder).events)[0]
    attempts = list(range(1, run.last_attempt() + 1))
    assert {number for name, number in born if name == folder.name} <= set(attempts)
    starts = [event for event in events if isinstance(event, Started)]
    assert [event.attempt for event in starts] == sorted({event.attempt for event in starts}), "each starts once"
    ends = [event.attempt for event in events if isinstance(event, Ended)]
    assert ends == attempts, "each ends once"
    newest = 0
    for event in events:
        if isinstance(event, CheckpointCommitted):
            newest = event.step
        elif isinstance(event, Started):
            assert event.step == newest, "it goes on from the last checkpoint"
    held = Record.open(folder).held()
    assert [one.attempt for one in held] == attempts
    for before, after in itertools.pairwise(held):
        assert before.end <= after.start, "no second is paid for twice"
    for one in held:
        own: list[Event] = [event for event in events if event.attempt == one.attempt and event.kind != "budget"]
        assert one.start <= own[0].time, "it is paid for from the start on"
        assert own[-1].time <= one.end + 0.1, "and until its end"
