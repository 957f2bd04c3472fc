"""Answers that hold for a moment: bounded in number and in age. Pure but for its lock."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Remembered(Generic[V]):
    """The oldest goes first. Threads may share it."""

    def __init__(self, seconds: float, most: int, clock: Callable[[], float]) -> None:
        self._seconds, self._most, self._clock = seconds, most, clock
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[float, V]] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """None: unknown, or too old. Being asked for makes nothing younger."""
        with self._lock:
            held = self._values.get(key)
            if held is None:
                return None
            if self._clock() - held[0] < self._seconds:
                return held[1]
            del self._values[key]
            return None

    def put(self, key: Hashable, value: V, asked_at: float) -> None:
        """`asked_at`: when the question was sent."""
        with self._lock:
            self._values[key] = (asked_at, value)
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)

    def __len__(self) -> int:
        with self._lock:
            return len(self._values)
