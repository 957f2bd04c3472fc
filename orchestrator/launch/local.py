"""Attempts on this machine: each is a session of its own, with its own Ray, log and lock.

The lock file says whether a driver lives: it is held (flock) by the driver itself, and names its pid, start time and
the machine's boot, so that a later process can find it again and never mistakes another process for it.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.cost.budget import Deadlines
from orchestrator.errors import Conflict
from orchestrator.launch.base import RunFolder
from orchestrator.launch.control import amend_control
from orchestrator.launch.events import CheckpointAndStop, HardDeadline, read_control
from orchestrator.launch.processes import kill_session, session
from orchestrator.launch.resolve import Resolved

_TRIES, _PAUSE = 20, 0.05
"""Whoever only looks at a lock holds it for a moment: that much patience before it counts as taken."""

_LARGEST_PID = 2**22
"""On Linux."""


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold a run's lock; Conflict if another process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        for _ in range(_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_PAUSE)
        else:
            holder = _holder(path)
            pid = int(holder["pid"]) if holder else "unknown"
            raise Conflict(f"{path.parent} is in the hands of process {pid}: wait until it ends, or stop it")
        file.truncate(0)
        own = psutil.Process()
        json.dump({"pid": own.pid, "started": own.create_time(), "boot": psutil.boot_time()}, file)
        file.flush()
        yield


@dataclass(frozen=True)
class Driver:
    """A driver process, started by this process or found again."""

    process: psutil.Process
    child: subprocess.Popen[bytes] | None = None
    """Where this process started it."""

    def alive(self) -> bool:
        """False for a zombie too; collects the exit status of an own child."""
        if self.child is not None:
            return self.child.poll() is None
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def kill(self) -> None:
        """End it at once with everything that it started, also if it is dead itself; nothing is saved."""
        if not self._number_is_anothers():
            kill_session(self.process.pid)

    def session(self) -> list[psutil.Process]:
        """Living processes of its session, which has its number."""
        return [] if self._number_is_anothers() else session(self.process.pid)

    def _number_is_anothers(self) -> bool:
        """Which it cannot be while the session lives."""
        return psutil.pid_exists(self.process.pid) and not self.process.is_running()


def prepare(folder: RunFolder, resolved: Resolved) -> None:
    """Write the resolved configuration of an attempt, by which it is priced, too."""
    target = folder.resolved(resolved.attempt)
    draft = target.with_name(f".{target.name}.tmp")
    draft.write_text(resolved.model_dump_json(indent=1))
    draft.replace(target)  # half of one could never be read again


def start(folder: RunFolder, resolved: Resolved) -> Driver:
    """Start the driver of an attempt that is prepared, in a session of its own."""
    folder.control.unlink(missing_ok=True)
    log = folder.log(resolved.attempt)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "orchestrator.launch.entry", str(folder.root), str(resolved.attempt)]
    with log.open("ab") as stream:
        child = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
    return Driver(psutil.Process(child.pid), child)


def running(folder: RunFolder) -> Driver | None:
    """The driver that holds this run's lock, if one lives; Conflict if it is held by nobody on this machine."""
    for _ in range(_TRIES):
        try:
            with folder.lock.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
        except FileNotFoundError:
            return None
        except BlockingIOError:
            if (driver := _driver(_holder(folder.lock))) is not None:
                return driver
        time.sleep(_PAUSE)  # it has just begun and not yet said who it is, or has just ended
    raise Conflict(f"{folder.lock} is held, but not by a driver on this machine: wait until it ends, or stop it there")


def _holder(lock: Path) -> dict[str, float] | None:
    """Who says to hold a lock; None while it is being written, or if it holds something else."""
    try:
        found = json.loads(lock.read_text())
        holder = {name: float(found[name]) for name in ("pid", "started", "boot")}
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return holder if 0 < holder["pid"] <= _LARGEST_PID else None


def _driver(holder: dict[str, float] | None) -> Driver | None:
    if holder is None or abs(psutil.boot_time() - holder["boot"]) >= 5:
        return None
    try:
        process = psutil.Process(int(holder["pid"]))
        return Driver(process) if abs(process.create_time() - holder["started"]) < 1 else None
    except psutil.NoSuchProcess:
        return None


def order_stop(folder: RunFolder, reason: str, grace_seconds: float) -> None:
    """Ask the driver to write a final checkpoint and end."""
    amend_control(folder.control, order=CheckpointAndStop(deadline=time.time() + grace_seconds, reason=reason))


def give_deadline(folder: RunFolder, incarnation: str, until: Deadlines) -> None:
    """Tell the driver of this incarnation until when the money lasts now; an order to stop stays one."""
    amend_control(folder.control, until=until, incarnation=incarnation)


def given_deadline(folder: RunFolder, incarnation: str) -> HardDeadline | None:
    """What this incarnation was told last, by whichever launcher; None if nothing."""
    try:
        known = read_control(folder.control).hard_deadline
    except ValueError:
        return None
    return known if known is not None and known.incarnation == incarnation else None
