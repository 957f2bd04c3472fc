"""Attempts on this machine: each is a process group of its own, with its own Ray, log and lock.

The lock file says whether a driver lives: it is held (flock) by the driver itself, and names its pid, start time and
the machine's boot, so that a later process can find it again and never mistakes another process for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.errors import Conflict
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointAndStop, write_control
from orchestrator.launch.resolve import Resolved


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the run's lock; Conflict if another driver lives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"{path.parent} is being trained by another process: {path.read_text()}") from None
        file.truncate(0)
        own = psutil.Process()
        json.dump({"pid": own.pid, "started": own.create_time(), "boot": psutil.boot_time()}, file)
        file.flush()
        yield


@dataclass(frozen=True)
class Driver:
    """A driver process, started by this process or found again."""

    process: psutil.Process

    def alive(self) -> bool:
        """False for a zombie too; collects the exit status of an own child."""
        try:
            if self.process.status() == psutil.STATUS_ZOMBIE:
                self.process.wait(0)
                return False
            return self.process.is_running()
        except psutil.NoSuchProcess:
            return False

    def kill(self) -> None:
        """End the whole process group at once; nothing is saved."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # its session leader: group id and pid are equal
        except ProcessLookupError:
            return


def start(folder: RunFolder, resolved: Resolved) -> Driver:
    """Write the resolved configuration and start the driver of this attempt in a session of its own."""
    folder.resolved(resolved.attempt).write_text(resolved.model_dump_json(indent=1))
    folder.control.unlink(missing_ok=True)
    folder.failure.unlink(missing_ok=True)
    log = folder.log(resolved.attempt)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "orchestrator.launch.entry", str(folder.root), str(resolved.attempt)]
    with log.open("ab") as stream:
        child = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
    return Driver(psutil.Process(child.pid))


def running(folder: RunFolder) -> Driver | None:
    """The driver that holds this run's lock, if one lives."""
    try:
        with folder.lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        found = json.loads(folder.lock.read_text())
    try:
        process = psutil.Process(found["pid"])
        same = abs(process.create_time() - found["started"]) < 1 and abs(psutil.boot_time() - found["boot"]) < 5
    except psutil.NoSuchProcess:
        return None
    return Driver(process) if same else None


def order_stop(folder: RunFolder, reason: str, grace_seconds: float) -> None:
    """Ask the driver to write a final checkpoint and end."""
    write_control(folder.control, CheckpointAndStop(deadline=time.time() + grace_seconds, reason=reason))
