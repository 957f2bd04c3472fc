"""How an attempt that did not succeed has ended. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FailureClass(StrEnum):
    """Why an attempt did not succeed; decides about the next one."""

    USER_ERROR = "user-error"
    OUT_OF_MEMORY = "out-of-memory"
    NOT_FINITE = "not-finite"
    STALLED = "stalled"
    WORKER_LOST = "worker-lost"
    DRIVER_LOST = "driver-lost"
    PREEMPTED = "preempted"
    OVER_BUDGET = "over-budget"
    INTERRUPTED = "interrupted"
    FENCED = "fenced"
    """A newer attempt or incarnation has begun."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """Why an attempt must end, or has ended, by the word of whoever watched it."""

    failure: FailureClass
    message: str

    def refines(self, said: FailureClass | None) -> bool:
        """Whether it tells more than the driver's own last word: a driver sees a worker go, and not that the node has
        killed it for want of memory; it is told to end, and not that it makes room for another job."""
        return (said, self.failure) in _REFINED


_REFINED = {
    (FailureClass.WORKER_LOST, FailureClass.OUT_OF_MEMORY),
    (FailureClass.INTERRUPTED, FailureClass.PREEMPTED),
}
