"""When an attempt no longer gets anywhere: its events and a clock in, a verdict out. Pure.

Used by the driver (`launch.guard`), which ends its own attempt, and by the launcher, should the driver hang too.
Silence is counted only while somebody looks: a machine that slept, or a watcher that was stopped, is no stall.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from model.stall import START_FACTOR, stall_limit
from orchestrator.launch.events import (
    Anomaly,
    CheckpointCommitted,
    Event,
    Progress,
    Started,
    WorkersLost,
)
from orchestrator.launch.failure import FailureClass, Verdict
from orchestrator.launch.resolve import Resolved

DRIVER = 2
"""So many limits are the driver's own, for the launcher that watches it."""
DRIVER_SECONDS = 60.0
_LOOK_SECONDS = 10.0
"""The most that one look counts for."""


@dataclass
class Watch:
    """What is known of one attempt; feed all of its events, then look again and again."""

    attempt: int
    incarnation: str
    floor: float
    """Seconds without a sign of life that are never a stall."""
    restarts_allowed: int
    """In a row, without a new checkpoint."""
    steps: int
    eval_every_steps: int
    eval_steps: float
    """An evaluation takes no longer than this many optimizer steps."""
    scores_tasks: bool = False
    """Whether evaluations go on with tasks, of which only the end of each is told."""
    step: int = 0
    silent: float = 0.0
    """Seconds since the last sign of life of the workers."""
    restarts: int = 0
    """Of the workers, since the last checkpoint."""
    reason: str = "not known"
    """Why workers were last lost."""
    _moving: bool = False
    _lost: bool = False
    _started: bool = False
    _rollback: bool = False
    """The next restart is the workers' own wish, which has a limit of its own (`anomalies.maxRollbacks`)."""
    _looked: float | None = None
    _progress: tuple[int, float] | None = None
    _paces: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    @classmethod
    def of(cls, resolved: Resolved) -> Watch:
        """For this attempt."""
        recipe = resolved.recipe
        return cls(
            attempt=resolved.attempt,
            incarnation=resolved.incarnation,
            floor=resolved.stall_seconds,
            restarts_allowed=resolved.restarts_without_progress,
            steps=recipe.steps,
            eval_every_steps=recipe.eval_every_steps,
            scores_tasks=bool(recipe.eval_tasks),
            eval_steps=recipe.eval_tokens / (recipe.batches.at(0) * recipe.sequence_length),
        )

    def add(self, event: Event) -> None:
        """Take an event into account; those of other attempts are passed over."""
        if (event.attempt, event.incarnation) != (self.attempt, self.incarnation):
            return
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Progress):
            self._move(event)
        elif isinstance(event, CheckpointCommitted):
            self.restarts = 0
        elif isinstance(event, WorkersLost):
            self.restarts += not self._rollback
            self.reason, self._lost, self._moving, self._rollback = event.message, True, False, False
        elif isinstance(event, Anomaly):
            self._rollback = event.action in ("replay", "skip")
        else:
            return
        self.silent = 0.0

    def _start(self, event: Started) -> None:
        if self._started and not self._lost and not self._rollback:
            self.restarts += 1  # otherwise counted when they were lost
        self._started, self._lost, self._moving, self._rollback = True, False, False, False
        self.step, self._progress = event.step, None

    def _move(self, event: Progress) -> None:
        if self._progress is not None and event.step > self._progress[0]:
            steps, seconds = event.step - self._progress[0], event.time - self._progress[1]
            self._paces.append(max(0.0, seconds) / steps)
        self._progress = (event.step, event.time)
        self.step, self._moving = event.step, True

    @property
    def limit(self) -> float:
        """Seconds of silence that are a stall now."""
        following = self.step + 1
        evaluates = following % self.eval_every_steps == 0 or following >= self.steps
        limit = stall_limit(self._pace * (1 + (self.eval_steps if evaluates else 0)), self.floor)
        # a step that was evaluated has been reported, and its tasks are being scored
        scoring = self.scores_tasks and self.step % self.eval_every_steps == 0
        between = self._moving and self.step < self.steps and not scoring
        return limit if between else max(limit, START_FACTOR * self.floor)

    @property
    def _pace(self) -> float:
        return median(self._paces) if self._paces else 0.0

    def look(self, now: float) -> Verdict | None:
        """The verdict at this moment of a clock that only runs forward."""
        if self._looked is not None:
            self.silent += min(max(0.0, now - self._looked), _LOOK_SECONDS)
        self._looked = now
        if self.restarts > self.restarts_allowed:
            return Verdict(
                FailureClass.WORKER_LOST,
                f"workers died {self.restarts} times without a new checkpoint in between, and "
                f"retry.stopAfterAttemptsWithoutProgress is {self.restarts_allowed}; the last time: {self.reason}",
            )
        if self.silent > self.limit:
            return Verdict(FailureClass.STALLED, f"{self._silence()}, the limit is {self.limit:.0f} s")
        return None

    def driver_hangs(self) -> bool:
        """Whether the driver should have ended the attempt long ago."""
        return self.silent > DRIVER * self.limit + DRIVER_SECONDS

    def _silence(self) -> str:
        if not self._moving:
            what = f"no first step for {self.silent:.0f} s after the workers were started"
            return f"{what} (the last loss of workers: {self.reason})" if self._lost else what
        if self.step >= self.steps:
            return f"no end for {self.silent:.0f} s after the last step"
        return f"no step after step {self.step} for {self.silent:.0f} s (a step takes {self._pace:.3g} s)"
