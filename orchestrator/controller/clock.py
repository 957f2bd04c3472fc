"""The launcher's clock: unix time that never runs back, so that held time is counted though somebody sets the clock."""

from __future__ import annotations

from collections.abc import Callable


class ForwardClock:
    """Follows the wall clock, and the clock that only runs forward while the other is behind."""

    def __init__(
        self, wall: Callable[[], float], monotonic: Callable[[], float], not_before: float | None = None
    ) -> None:
        """`not_before`: unix time that has been counted already."""
        self._wall, self._monotonic = wall, monotonic
        self._then = monotonic()
        self._now = wall() if not_before is None else max(wall(), not_before)
        self.ahead = 0.0
        """Seconds before the wall clock, when asked last: more than none after that was set back."""
        self.now()

    def now(self) -> float:
        """Unix seconds."""
        then, wall = self._monotonic(), self._wall()
        self._now = max(wall, self._now + max(0.0, then - self._then))
        self._then, self.ahead = then, self._now - wall
        return self._now
