"""The GPUs of this machine among all processes that start jobs of one home.

A service and several `fathom train` may do so at once. What a job has stands in its newest attempt, which is written
before its driver starts. Invariant: whoever starts a driver with GPUs has the home's lock from his last look at what
others have until that driver lives, so that no GPU is given twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from pathlib import Path

from orchestrator.controller.standing import RESTS
from orchestrator.errors import FathomError
from orchestrator.launch.base import Launcher, RunFolder
from orchestrator.launch.locks import is_locked, locked
from orchestrator.launch.resolve import read_resolved
from orchestrator.launch.slots import Holding, Place, need_of
from orchestrator.store.base import StoredJob

LOCK = "gpus.lock"
"""In the home."""
BUSY = "another process of this home gives out GPUs just now"
_PATIENCE_SECONDS = 0.2
_FRESH_SECONDS = 1.0
"""So long it counts what was seen of other processes' jobs, but for who has the lock."""


class Lending:
    """Of one process; used by one thread."""

    def __init__(self, home: Path, launcher: Launcher, jobs: Callable[[], Iterable[StoredJob]]) -> None:
        """`jobs`: those that may run."""
        self._home, self._launcher, self._jobs = home, launcher, jobs
        self._seen: tuple[float, list[Holding]] | None = None

    def share(
        self, own: Collection[str], placed: Callable[[list[Holding]], dict[str, Place]], turn: ExitStack
    ) -> dict[str, Place]:
        """What is `placed` beside the GPUs of drivers that this process does not follow; `own`: uids of those that it
        does. Where some are given, the lock is held until the end of the turn."""
        now = time.monotonic()
        if self._seen is None or now >= self._seen[0] + _FRESH_SECONDS:
            self._seen = now, self._others(own)
        found = placed(self._seen[1])
        if not any(place.gpus for place in found.values()):
            return found
        if why := self._lock(turn):
            return {key: Place(why) if place.gpus else place for key, place in found.items()}
        self._seen = now, self._others(own)
        return placed(self._seen[1])

    def _lock(self, turn: ExitStack) -> str:
        """Why that cannot be; empty if it is locked until the end of the turn."""
        try:
            mine = turn.enter_context(locked(self._home / LOCK, patience=_PATIENCE_SECONDS))
        except OSError as error:
            return f"{self._home / LOCK} cannot be locked: {error.strerror}"
        return "" if mine else BUSY

    def _others(self, own: Collection[str]) -> list[Holding]:
        others = (job for job in self._jobs() if job.uid not in own and need_of(job.wish.job).gpus)
        return [Holding(0, gpus) for job in others if (gpus := self._held(job)) != ()]

    def _held(self, job: StoredJob) -> tuple[str, ...] | None:
        """By a driver that lives, or by what it has left; as `Resolved.gpus_held`."""
        folder = RunFolder(self._home / job.folder)
        settled = job.status.phase in RESTS and job.status.observed_generation == job.generation
        if settled and not is_locked(folder.lock):
            return ()  # nothing is left of it, which `look` would search all processes for
        try:
            if not (last := folder.last_attempt()):
                return ()
            sight = self._launcher.look(folder, last)
            return read_resolved(folder.resolved(last)).gpus_held if sight.alive or sight.left else ()
        except (FathomError, OSError):
            return None  # who cannot be looked at may have any
