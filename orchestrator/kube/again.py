"""Sends a request again that may be sent again, while that is worth it and we may write."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from orchestrator.errors import RateLimited, Unavailable
from orchestrator.kube.lease import LostLease
from orchestrator.kube.problems import Gone, wait_asked

T = TypeVar("T")


class Holder(Protocol):
    """Who says whether we may write."""

    def require(self) -> float:
        """-> seconds within which the write must be over; LostLease if there must be none."""


class Anybody:
    """For those who need no Lease: commands of people, whose writes the server judges by their token."""

    def require(self) -> float:
        return float("inf")


@dataclass(frozen=True)
class Patience:
    """Seconds, except `attempts`."""

    attempts: int = 5
    first: float = 0.2
    longest: float = 5.0
    """Between two attempts: doubled each time, give or take half."""
    total: float = 30.0
    """Nothing is begun again later than this after the first attempt."""


def again(
    send: Callable[[float], T], holder: Holder, patience: Patience, wait: Callable[[float], object] = time.sleep
) -> T:
    """What `send` returned; it is given the seconds that it may take, and asked for anew before each attempt.

    429, 5xx and silence are tried again, after as long as the server asked for; every other error is an answer. `send`
    must be such that twice is the same as once.
    """
    began, attempt = time.monotonic(), 1
    while True:
        seconds = holder.require()
        try:
            return send(seconds)
        except (RateLimited, Unavailable) as error:
            pause = min(patience.longest, patience.first * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.5)
            pause = max(pause, wait_asked(error))
            late = time.monotonic() - began + pause > patience.total
            if isinstance(error, Gone | LostLease) or attempt >= patience.attempts or late:
                raise
        attempt += 1
        wait(pause)
