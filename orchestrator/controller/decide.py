"""What to do when an attempt has ended. Pure; no I/O."""

from __future__ import annotations

from typing import Literal

from orchestrator.launch.events import Ended, FailureClass
from orchestrator.spec import Retry

Decision = Literal["succeed", "stop", "retry", "fail"]

RETRYABLE = frozenset(
    {FailureClass.WORKER_LOST, FailureClass.DRIVER_LOST, FailureClass.PREEMPTED, FailureClass.UNKNOWN}
)
"""Failures that trying again may cure. What the user or the mathematics got wrong, it does not."""


def after_attempt(ended: Ended, retry: Retry, attempts: int, without_progress: int) -> Decision:
    """`attempts`: all so far; `without_progress`: the last ones in a row that committed no checkpoint."""
    if ended.outcome == "succeeded":
        return "succeed"
    if ended.outcome == "stopped":
        return "stop"
    if ended.failure_class not in RETRYABLE:
        return "fail"
    if attempts >= retry.max_attempts or without_progress >= retry.stop_after_attempts_without_progress:
        return "fail"
    return "retry"
