"""Work, checkpoints and what a failure takes away, in whole microseconds.

Called by `simulate.run`. Invariant: wall time that passed in `run` = work gained + checkpoint + slow, exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Saving:
    """When to save, in microseconds of work; `interval` is a multiple of `near_interval`."""

    interval: int
    save: int
    upload: int
    near_interval: int
    """Copies in memory; the same as `interval` if there are none."""
    near_save: int


class Training:
    """How far the work has come and what of it is safe.

    Checkpoints are due at multiples of the interval, copies in memory at the other multiples of theirs. Between two
    events the saves follow one rhythm, so that whole rounds are counted, not played.
    """

    def __init__(self, saving: Saving, target: int) -> None:
        self._saving, self._target = saving, target
        self.work = 0
        """Microseconds of work that still count."""
        self.checkpoint = 0
        self.slow = 0
        self._standstill = 0
        self._near = 0
        self._far = 0
        self._uploading: tuple[int, int] | None = None
        """Work, and the time at which the checkpoint of it counts."""

    @property
    def done(self) -> bool:
        """Whether all work is done."""
        return self.work >= self._target

    def run(self, now: int, until: int, slowdown: float) -> int:
        """Train until that time or the end of the work -> the time then. A step takes `slowdown` times as long."""
        saving = self._saving
        while now < until and not self.done:
            if self._standstill:
                step = min(self._standstill, until - now)
                now, self.checkpoint, self._standstill = now + step, self.checkpoint + step, self._standstill - step
                if not self._standstill:
                    self._saved(now)
                continue
            now = self._rounds(now, until, slowdown)
            due = min((self.work // saving.near_interval + 1) * saving.near_interval, self._target)
            whole = math.ceil((due - self.work) * slowdown)
            step = min(whole, until - now)
            gained = due - self.work if step == whole else min(int(step / slowdown), due - self.work)
            now, self.work, self.slow = now + step, self.work + gained, self.slow + step - gained
            if self.work == due and not self.done:
                self._standstill = saving.near_save if due % saving.interval else saving.save
                if not self._standstill:
                    self._saved(now)
        return now

    def _rounds(self, now: int, until: int, slowdown: float) -> int:
        """All whole intervals, then all whole intervals between copies, that fit before `until` -> the time then."""
        saving = self._saving
        copies = saving.interval // saving.near_interval
        piece = math.ceil(saving.near_interval * slowdown)
        if self.work % saving.interval == 0:
            stall = (copies - 1) * saving.near_save + saving.save
            left = (self._target - 1 - self.work) // saving.interval
            rounds = min((until - now) // (copies * piece + stall), left)
            now = self._skip(now, rounds, saving.interval, copies * piece, stall)
        if self.work % saving.near_interval == 0:
            done = self.work % saving.interval // saving.near_interval
            left = min(copies - 1 - done, (self._target - 1 - self.work) // saving.near_interval)
            rounds = min((until - now) // (piece + saving.near_save), left)
            now = self._skip(now, rounds, saving.near_interval, piece, saving.near_save)
        return now

    def _skip(self, now: int, rounds: int, work: int, wall: int, stall: int) -> int:
        if rounds <= 0:
            return now
        before = now + (rounds - 1) * (wall + stall)
        if rounds > 1 and work == self._saving.interval:
            self._uploading = (self.work + (rounds - 1) * work, before + self._saving.upload)
        self.work += rounds * work
        self.checkpoint += rounds * stall
        self.slow += rounds * (wall - work)
        now += rounds * (wall + stall)
        self._saved(now)
        return now

    def _saved(self, now: int) -> None:
        self._near = self.work
        if self.work % self._saving.interval == 0:
            self._commit(now)
            self._uploading = (self.work, now + self._saving.upload)

    def _commit(self, now: int) -> None:
        if self._uploading is not None and self._uploading[1] <= now:
            self._far, self._uploading = self._uploading[0], None

    def restore(self, now: int, in_memory: bool) -> int:
        """Back to the newest copy in memory, or to the newest checkpoint that was written -> work lost."""
        self._commit(now)
        if in_memory:
            point = max(self._near, self._far)
        else:
            point, self._uploading = self._far, None
        lost = self.work - point
        self.work = self._near = point
        self._standstill = 0
        return lost
