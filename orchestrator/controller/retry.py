"""Whether a failed attempt is followed by another one. Pure; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.launch.events import Ended
from orchestrator.launch.failure import FailureClass
from orchestrator.spec import Retry

Decision = Literal["succeed", "stop", "retry", "fail"]

RETRYABLE = frozenset(
    {
        FailureClass.WORKER_LOST,
        FailureClass.DRIVER_LOST,
        FailureClass.PREEMPTED,
        FailureClass.STALLED,
        FailureClass.OUT_OF_MEMORY,
        FailureClass.UNKNOWN,
    }
)
"""Failures that trying again may cure. What the user or the mathematics got wrong, it does not; nor may an attempt
that a newer one has replaced come back."""

ONCE = frozenset({FailureClass.STALLED, FailureClass.OUT_OF_MEMORY})
"""Of these, one more try: twice in a row with nothing saved in between, they are not chance."""


BLAMELESS = frozenset({FailureClass.PREEMPTED})
"""Of these, failures that say nothing of the job: they count as no attempt."""


@dataclass(frozen=True)
class Tally:
    """What is remembered of the attempts so far."""

    attempts: int = 0
    without_progress: int = 0
    """The last ones in a row that committed no checkpoint."""
    last: FailureClass | None = None
    before: FailureClass | None = None
    """How the last one failed, and the one before it."""

    def add(self, ended: Ended, *, progressed: bool) -> Tally:
        """With one more attempt; `progressed`: it committed a checkpoint."""
        if ended.failure_class in BLAMELESS:
            return replace(self, without_progress=0) if progressed else self
        without = 0 if progressed else self.without_progress + 1
        return Tally(self.attempts + 1, without, ended.failure_class, self.last)


def after_attempt(ended: Ended, retry: Retry, tally: Tally) -> Decision:
    """`tally` includes the attempt that has ended."""
    if ended.outcome == "succeeded":
        return "succeed"
    if ended.outcome == "stopped":
        return "stop"
    if ended.failure_class not in RETRYABLE:
        return "fail"
    if tally.attempts >= retry.max_attempts or tally.without_progress >= retry.stop_after_attempts_without_progress:
        return "fail"
    again = tally.last in ONCE and tally.last == tally.before and tally.without_progress > 0
    return "fail" if again else "retry"
