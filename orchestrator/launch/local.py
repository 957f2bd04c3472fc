"""Attempts on this machine: each is a session of its own, with its own Ray, log and lock.

The lock file says whether a driver lives: the lock (flock) is taken before the driver is started, and handed to it, so
that there is no moment in which the driver lives and the lock is free. The file names pid, start time and boot of the
driver, so that a later process can find it again and never mistakes another process for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.cost.budget import Deadlines
from orchestrator.errors import Conflict
from orchestrator.launch.base import Capacity, RunFolder, Sight, Told
from orchestrator.launch.control import amend_control
from orchestrator.launch.control import ordered as ordered_by
from orchestrator.launch.devices import own, visible_gpus
from orchestrator.launch.events import CheckpointAndStop, HardDeadline, read_control, scan
from orchestrator.launch.evidence import describe
from orchestrator.launch.files import replace_file
from orchestrator.launch.locks import is_locked, take
from orchestrator.launch.processes import MARK, kill_session, session
from orchestrator.launch.removing import Remover
from orchestrator.launch.resolve import Resolved, read_resolved
from orchestrator.launch.slots import usable_cores
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

PATIENCE_SECONDS = 1.0
"""Whoever only looks at a lock holds it for a moment: that much patience before it counts as taken."""

DRIVER = (sys.executable, "-m", "orchestrator.launch.entry")

_SEEN_SECONDS = 1.0
"""Where many are looked at several times a second, the process table is asked this often."""
_LARGEST_PID = 2**22
"""On Linux."""


@contextmanager
def hold_lock(path: Path, attempt: int = 0) -> Iterator[None]:
    """Hold a run's lock; Conflict if another process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not take(descriptor, patience=PATIENCE_SECONDS):
            raise _conflict(path)
        _name(descriptor, os.getpid(), attempt)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def keep_lock(descriptor: int, path: Path, attempt: int) -> Iterator[None]:
    """In a driver: the lock that it was started with, which no process that it starts gets to hold."""
    os.set_inheritable(descriptor, False)
    if not take(descriptor):
        raise _conflict(path)
    _name(descriptor, os.getpid(), attempt)
    try:
        yield
    finally:
        os.close(descriptor)


def _conflict(path: Path) -> Conflict:
    holder = _holder(path)
    pid = int(holder["pid"]) if holder else "unknown"
    return Conflict(f"{path.parent} is in the hands of process {pid}: wait until it ends, or stop it")


def _name(descriptor: int, pid: int, attempt: int) -> None:
    """Write down who holds the lock."""
    started = psutil.Process(pid).create_time()
    text = json.dumps({"pid": pid, "started": started, "boot": psutil.boot_time(), "attempt": attempt}).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


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
    replace_file(folder.resolved(resolved.attempt), resolved.model_dump_json(indent=1), durable=True)


def start(folder: RunFolder, attempt: int, command: Sequence[str] = DRIVER) -> Driver:
    """Start the driver of an attempt that is prepared, in a session of its own, with the run's lock in its hands.

    It finds the GPUs that it was given and no other. Conflict if a driver lives. Whoever calls may be killed at any
    moment: there is no driver, or it has the lock.
    """
    log, gpus = folder.log(attempt), read_resolved(folder.resolved(attempt)).gpus_held
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not take(descriptor, patience=PATIENCE_SECONDS):
            raise _conflict(folder.lock)
        os.ftruncate(descriptor, 0)  # it named the driver before
        folder.control.unlink(missing_ok=True)
        with log.open("ab") as stream:
            child = subprocess.Popen(
                [*command, str(folder.root), str(attempt), str(descriptor)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(descriptor,),
                env=os.environ | {MARK: str(folder.root)} | ({} if gpus is None else own(gpus)),
            )
        _name(descriptor, child.pid, attempt)  # so will the driver, which takes a second to come to that
    finally:
        os.close(descriptor)  # the driver's own stays open
    return Driver(psutil.Process(child.pid), child)


def running(folder: RunFolder) -> Driver | None:
    """The driver that holds this run's lock, if one lives; Conflict if it is held by nobody on this machine."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        if not is_locked(folder.lock):
            return None
        if (driver := _driver(_holder(folder.lock))) is not None:
            return driver
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)  # it has just begun and not yet said who it is, or has just ended
    raise Conflict(f"{folder.lock} is held, but not by a driver on this machine: wait until it ends, or stop it there")


def _holder(lock: Path) -> dict[str, float] | None:
    """Who says to hold a lock; None while it is being written, or if it holds something else."""
    try:
        found = json.loads(lock.read_text())
        holder = {name: float(found[name]) for name in ("pid", "started", "boot")}
        holder["attempt"] = float(found.get("attempt", 0))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class LocalLauncher:
    """The `Launcher` of this machine."""

    def __init__(
        self, settings: Settings, command: Sequence[str] = DRIVER, *, say: Callable[[str], None] = _say
    ) -> None:
        """`command` starts a driver when given a run's folder, the attempt and the descriptor of its lock; `say` is
        called from another thread, too."""
        self._home, self._remover = settings.home, Remover(say)
        self._gpus, self._command = visible_gpus(os.environ), command
        self._capacity = Capacity(settings.cpus or usable_cores(), len(self._gpus))
        self._children: dict[Path, Driver] = {}
        """Those that this process has started."""
        self._seen: dict[Path, tuple[float, dict[str, float] | None]] = {}
        """When the holder of a lock was last seen to live; and who that is."""

    def look(self, folder: RunFolder, attempt: int) -> Sight:
        child = self._children.get(folder.root)
        if child is not None and not child.alive():  # which collects its exit status
            del self._children[folder.root]
        holder = _holder(folder.lock)
        if is_locked(folder.lock):
            if holder is not None and not self._is_drivers(folder, holder):
                return Sight(alive=False, left=True)  # something else has the driver's lock
            ordered, deadline = ordered_by(folder.control)
            return Sight(True, began=holder["started"] if holder else None, ordered=ordered, deadline=deadline)
        self._seen.pop(folder.root, None)
        if not _begun(folder, attempt, _holder(folder.lock)):
            return Sight(alive=False, begun=False)
        ordered, deadline = ordered_by(folder.control)
        return Sight(False, left=bool(_left(folder)), ordered=ordered, deadline=deadline)

    def _is_drivers(self, folder: RunFolder, holder: dict[str, float]) -> bool:
        """Whether who names himself on the lock lives; one that did a moment ago counts as living."""
        now, (seen, known) = time.monotonic(), self._seen.get(folder.root, (0.0, None))
        if known == holder and now - seen < _SEEN_SECONDS:
            return True
        if _driver(holder) is None and _driver(_holder(folder.lock)) is None:
            self._seen.pop(folder.root, None)
            return False
        self._seen[folder.root] = now, holder
        return True

    def start(self, folder: RunFolder, attempt: int) -> None:
        self._children[folder.root] = start(folder, attempt, self._command)

    def order_stop(self, folder: RunFolder, reason: str, grace_seconds: float) -> None:
        order_stop(folder, reason, grace_seconds)

    def kill(self, folder: RunFolder, attempt: int) -> None:
        self._seen.pop(folder.root, None)
        driver = self._children.get(folder.root) or _driver(_holder(folder.lock))
        if driver is not None:
            driver.kill()
        for process in _left(folder):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def remove(self, folder: RunFolder) -> None:
        self._remover.remove(folder.root)

    def sweep(self) -> None:
        self._remover.sweep(self._home)

    def capacity(self) -> Capacity:
        return self._capacity

    def gpus(self) -> tuple[str, ...]:
        return self._gpus

    def check(self, job: TrainingJob, resolved: Resolved) -> None:
        """What runs here was found out when it was resolved."""

    def obstacle(self, job: TrainingJob) -> Told | None:
        return None

    def describe(self, folder: RunFolder, attempt: int) -> str:
        driver = _driver(_holder(folder.lock))
        return describe(folder, read_resolved(folder.resolved(attempt)), driver.session if driver else list)


def _begun(folder: RunFolder, attempt: int, holder: dict[str, float] | None) -> bool:
    """Whether a driver of this attempt was ever started: by its name on the lock, its log, or its events."""
    if holder is not None and holder.get("attempt") == attempt:
        return True
    log = folder.log(attempt)
    if log.exists() and log.stat().st_size:
        return True
    return any(event.attempt == attempt for event in scan(folder.events).events)


def _left(folder: RunFolder) -> list[psutil.Process]:
    """What the driver that held the lock last has left in its session."""
    holder = _holder(folder.lock)
    if holder is None or abs(psutil.boot_time() - holder["boot"]) >= 5:
        return []
    pid = int(holder["pid"])
    if psutil.pid_exists(pid) and _driver(holder) is None:
        return []  # its number is another's now, which it cannot be while its session lives
    return [process for process in session(pid) if process.pid == pid or _is_of(process, folder)]


def _is_of(process: psutil.Process, folder: RunFolder) -> bool:
    """Whether the run's driver has started it: by what it was started with, which Ray writes its own title over."""
    try:
        environment = process.environ()
        ours = environment.get(MARK) == str(folder.root)
        return ours or ("PATH" not in environment and "ray" in " ".join(process.cmdline()))
    except psutil.Error:
        return False
