"""What is known of a running job at a moment: events folded into one value. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from orchestrator.launch.events import (
    Anomaly,
    BudgetNote,
    CheckpointCommitted,
    Ended,
    Evaluated,
    Event,
    Progress,
    Started,
    Warning_,
    WorkersLost,
)


@dataclass
class Observation:
    """The newest facts of a job, from its events."""

    steps: int
    total_tokens: int = 0
    """Of the whole run."""
    step: int = 0
    tokens: int = 0
    attempt: int = 0
    running: bool = False
    """Workers of the current attempt are up."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Newest value of each metric."""
    speeds: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    checkpoint_step: int = 0
    restarts: int = 0
    warnings: list[str] = field(default_factory=list)
    ended: Ended | None = None
    from_step: dict[int, int] = field(default_factory=dict)
    """Step that each attempt first went on from."""

    def add(self, event: Event) -> None:
        """Take one event into account."""
        if isinstance(event, Evaluated | BudgetNote):  # begins no attempt and is no news of training
            self.warnings += [event.message] if isinstance(event, BudgetNote) else []
            return
        if event.attempt > self.attempt:
            self.attempt, self.running, self.ended = event.attempt, False, None
        if isinstance(event, Started):
            self.restarts += event.attempt in self.from_step
            self.from_step.setdefault(event.attempt, event.step)
            self.running, self.step, self.tokens = True, event.step, event.tokens
        elif isinstance(event, Progress):
            self.step, self.tokens = event.step, event.tokens
            self.metrics |= event.metrics
            if speed := event.metrics.get("train/tokens_per_second"):
                self.speeds.append(speed)
        elif isinstance(event, CheckpointCommitted):
            self.checkpoint_step = max(self.checkpoint_step, event.step)
        elif isinstance(event, WorkersLost):
            self.running = False
        elif isinstance(event, Ended):
            self.ended, self.running = event, False
        if (remark := remark_on(event)) is not None:
            self.warnings.append(remark)

    @property
    def tokens_per_second(self) -> float | None:
        """Median of the last steps."""
        return sorted(self.speeds)[len(self.speeds) // 2] if self.speeds else None

    @property
    def seconds_left(self) -> float | None:
        """To the last step, at the present pace."""
        speed = self.tokens_per_second
        if not speed or not self.step:
            return None
        return max(0, self.total_tokens - self.tokens) / speed


def remark_on(event: Event) -> str | None:
    """What a person should be told at once."""
    if isinstance(event, WorkersLost):
        return f"workers are started again: {event.message}"
    if isinstance(event, Started) and event.arithmetic[:4] not in ("", "fp32"):
        return event.arithmetic  # asked for, so it matters what came of it
    return event.message if isinstance(event, Anomaly | BudgetNote | Warning_) else None
