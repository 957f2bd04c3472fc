"""Keys that are to be looked at, as client-go's work queue hands them out.

A key is in one pair of hands at a time; one that is added while it is worked on comes again afterwards; one that failed
comes again after a while that doubles. `Waiting` is all of it without threads or clock; `WorkQueue` adds both.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Backoff:
    """Seconds before a key that failed comes again."""

    first: float = 0.5
    longest: float = 300.0

    def after(self, failures: int) -> float:
        """For the n-th failure in a row, from 1."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 60))


@dataclass
class Waiting:
    """What is due, in hands, or for later. `now`: seconds of a clock that never goes back."""

    backoff: Backoff = field(default_factory=Backoff)
    due: deque[str] = field(default_factory=deque)
    """First come, first served; a key once."""
    wanted: set[str] = field(default_factory=set)
    """Due, or to become so when the hands that hold it let go."""
    held: set[str] = field(default_factory=set)
    later: dict[str, float] = field(default_factory=dict)
    times: list[tuple[float, str]] = field(default_factory=list)
    """A heap over `later`; entries that it no longer agrees with are passed over."""
    failures: dict[str, int] = field(default_factory=dict)

    def add(self, key: str) -> None:
        """Once, however often it is added before it is handed out."""
        if key in self.wanted:
            return
        self.wanted.add(key)
        if key not in self.held:
            self.due.append(key)

    def add_at(self, key: str, when: float) -> None:
        """The earliest time counts."""
        if when < self.later.get(key, float("inf")):
            self.later[key] = when
            heapq.heappush(self.times, (when, key))

    def take(self, now: float) -> str | None:
        """The next one; None: nothing is due."""
        while (at := self.next_at()) is not None and at <= now:
            _, key = heapq.heappop(self.times)
            del self.later[key]
            self.add(key)
        if not self.due:
            return None
        key = self.due.popleft()
        self.wanted.discard(key)
        self.held.add(key)
        return key

    def done(self, key: str) -> None:
        """By whoever took it."""
        assert key in self.held, f"{key} is in nobody's hands"
        self.held.discard(key)
        if key in self.wanted:
            self.due.append(key)

    def failed(self, key: str, now: float, at_least: float = 0.0) -> float:
        """It comes again; -> after how many seconds. `at_least`: what a server asked for."""
        self.failures[key] = self.failures.get(key, 0) + 1
        seconds = max(at_least, self.backoff.after(self.failures[key]))
        self.add_at(key, now + seconds)
        return seconds

    def forget(self, key: str) -> None:
        """It went well: its next failure is its first."""
        self.failures.pop(key, None)

    def next_at(self) -> float | None:
        """When one that is for later becomes due."""
        while self.times and self.later.get(self.times[0][1]) != self.times[0][0]:
            heapq.heappop(self.times)
        return self.times[0][0] if self.times else None


class WorkQueue:
    """For threads."""

    def __init__(self, backoff: Backoff | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._waiting = Waiting(backoff or Backoff())
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = False

    def add(self, key: str) -> None:
        """To be looked at as soon as may be."""
        with self._changed:
            self._waiting.add(key)
            self._changed.notify()

    def add_after(self, key: str, seconds: float) -> None:
        """Not before; an earlier time that was asked for stands."""
        with self._changed:
            self._waiting.add_at(key, self._clock() + seconds)
            self._changed.notify()

    def get(self) -> str | None:
        """Waits for one; hand it back with `done`. None: the queue was shut down."""
        with self._changed:
            while not self._closed:
                if (key := self._waiting.take(self._clock())) is not None:
                    return key
                at = self._waiting.next_at()
                self._changed.wait(None if at is None else max(0.0, at - self._clock()))
            return None

    def done(self, key: str) -> None:
        """In any case, after `forget` or `failed`."""
        with self._changed:
            self._waiting.done(key)
            self._changed.notify()

    def failed(self, key: str, at_least: float = 0.0) -> float:
        """It comes again; -> after how many seconds."""
        with self._changed:
            seconds = self._waiting.failed(key, self._clock(), at_least)
            self._changed.notify()
            return seconds

    def forget(self, key: str) -> None:
        """It went well."""
        with self._changed:
            self._waiting.forget(key)

    def shut_down(self) -> None:
        """Whoever waits gets None; what was waiting is found again by the list of the next one who leads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        """Due now."""
        with self._changed:
            return len(self._waiting.due)
