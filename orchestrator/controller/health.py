"""How the controller is, told by itself and read by others: by the API's readiness and Prometheus metrics.

Written by one thread and read by any; each number is replaced whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

STALE_SECONDS = 30.0
"""Without a turn for longer than this, the controller counts as stuck."""


@dataclass
class Health:
    """Of one controller; `clock` is monotonic."""

    clock: Callable[[], float] = time.monotonic
    turns: int = 0
    """That have ended, failed ones too."""
    failures: int = 0
    """Turns that raised an error."""
    seconds: float = 0.0
    """All turns together."""
    last_seconds: float | None = None
    """The last turn; None before the first has ended."""
    ended_at: float | None = None
    """When a turn last ended without an error."""
    began_at: float = field(init=False)
    """When the controller came up."""

    def __post_init__(self) -> None:
        self.began_at = self.clock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around each look at all jobs and what is done about it; an error is counted and goes on its way."""
        began = self.clock()
        try:
            yield
        except BaseException:
            self.failures += 1
            raise
        else:
            self.ended_at = self.clock()
        finally:
            self.last_seconds = self.clock() - began
            self.seconds += self.last_seconds
            self.turns += 1

    @property
    def age(self) -> float | None:
        """Seconds since a turn ended well; None before the first."""
        return None if self.ended_at is None else max(0.0, self.clock() - self.ended_at)

    def trouble(self, longest: float = STALE_SECONDS) -> str | None:
        """What is wrong, for people; None if all is well."""
        age = self.age
        if age is None:
            waited = self.clock() - self.began_at  # the first look takes long where much runs already
            return f"the controller has not looked at the jobs yet, for {waited:.0f} s" if waited > longest else None
        if age > longest:
            return f"the controller has not looked at the jobs for {age:.0f} s, at most {longest:.0f} are usual"
        return None
