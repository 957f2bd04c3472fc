"""What a stuck process was doing: it writes the stacks of its threads itself, whatever its main thread waits for."""

from __future__ import annotations

import faulthandler
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import Self, TextIO

FACTOR = 10
"""A step that takes so many times the median of those before it is stuck."""
START_FACTOR = 6
"""Before the first step a process may take so many times the floor: it builds the model and reads a checkpoint."""


def stall_limit(step_seconds: float | None, floor: float) -> float:
    """Seconds without a step after which training counts as stalled; `step_seconds`: the median so far, if any."""
    return max(FACTOR * step_seconds, floor) if step_seconds is not None else floor


class StackDump:
    """While entered: unless `postpone` is called in time, the stacks are written to a file. Training is not ended.

    The timer is Python's own watchdog in C, which needs no interpreter lock: a main thread that waits in a
    collective operation, or holds the lock for ever, is dumped too. A stopped process cannot do anything.
    """

    def __init__(self, file: Path | None, floor: float) -> None:
        self._path, self._floor = file, floor
        self._stream: TextIO | None = None
        self._last: float | None = None
        self._seconds: deque[float] = deque(maxlen=100)

    def __enter__(self) -> Self:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open("a")  # what an earlier start has left stays
            faulthandler.dump_traceback_later(START_FACTOR * self._floor, file=self._stream)
        return self

    def postpone(self) -> None:
        """A step is done: the clock starts anew."""
        now = time.monotonic()
        if self._last is not None:
            self._seconds.append(now - self._last)
        self._last = now
        if self._stream is not None:
            typical = median(self._seconds) if self._seconds else None
            faulthandler.dump_traceback_later(stall_limit(typical, self._floor), file=self._stream)

    def __exit__(self, *_: object) -> None:
        if self._stream is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._stream.close()
        if self._path is not None and self._path.stat().st_size == 0:
            self._path.unlink()  # nothing happened
