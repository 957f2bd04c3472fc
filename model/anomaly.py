"""Loss spikes and losses that are not finite: how they are found, what is done, and which data is left out.

Pure: no clock, no files, no torch. Invariant: `judge` is a function of its arguments only, so that ranks which
hold the same numbers decide the same. What happens in a run:

1. A step is anomalous: it is computed again from the last checkpoint ("replay"). A transient fault, such as a
   flipped bit, is gone then (arXiv 2604.00726 repairs silent corruption in the same way).
2. It is anomalous again: back to the checkpoint, and from then on the data of this step is left out ("skip").
3. That does not help either (MAX_SKIPS times): the data is not the cause. Go on ("accept"), or end ("fail") where
   the loss is not finite. The cause may be the update of an earlier step, whose own loss looked normal.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal

from pydantic import Field

from model.config import Frozen
from model.recipe import Anomalies

Kind = Literal["not-finite", "spike"]
Action = Literal["replay", "skip", "accept", "warn", "fail"]

MAX_SKIPS = 3
"""Data steps left out for the sake of one optimizer step; the fault is not in the data if that does not help."""
NORMAL_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
RELATIVE_FLOOR, ABSOLUTE_FLOOR = 0.01, 1e-12
"""Least deviation, relative to the median and absolute: a loss that hardly moves must not make noise a spike."""
LARGEST = 3.4e38
"""Losses are cut to the range of float32, so that no score overflows."""
EFFECTS: dict[Action, str] = {
    "replay": "going back to the last checkpoint to compute it again",
    "skip": "computing it again did not help; going back to the last checkpoint to leave its data out",
    "accept": "no further way back; going on with it",
    "warn": "going on, as anomalies.action says",
    "fail": "the attempt ends, and nothing of this step is saved",
}


class LossHistory:
    """The losses of the last `window` steps that count: of normal steps, and of accepted or warned-of spikes.

    Accepted spikes belong in it: where the loss stays on a higher level, the history gets there after half a
    window and the warnings end. A falling loss lies below the median and is no spike. Nor is a steadily rising one
    (learning-rate warm-up, slow divergence): a straight rise by r per step is r*window/2 above the median, and the
    MAD is r*window/4, which makes a score of at most 2/1.4826 = 1.35 however steep it is. Slow divergence must
    be seen elsewhere (evaluation loss). While the loss falls fast the MAD is large, and only large spikes show.
    """

    def __init__(self, policy: Anomalies, values: Iterable[float] = ()) -> None:
        """`values` as `values()` gave them: a resumed run judges like an undisturbed one."""
        self._losses = deque((_bounded(loss) for loss in values), maxlen=policy.window)
        self._minimum = min(policy.minimum, policy.window)
        self._step = 0

    def add(self, step: int, loss: float) -> None:
        """Append the finite loss of one step (1-based); a rollback needs a history as of its checkpoint."""
        if step <= self._step:
            raise ValueError(f"the history has step {self._step} already, got step {step}: restore it with the model")
        self._losses.append(_bounded(loss))
        self._step = step

    def values(self) -> list[float]:
        """At most `window` losses, oldest first: what a checkpoint stores."""
        return list(self._losses)

    def score(self, loss: float) -> float | None:
        """Robust z-score of a finite loss; None while there are fewer than `minimum` losses.

        (loss - median) / max(1.4826*MAD, 1 % of |median|, tiny): Iglewicz and Hoaglin, "How to Detect and Handle
        Outliers", 1993, with floors. Negative below the median.
        """
        loss = _bounded(loss)
        if len(self._losses) < self._minimum:
            return None
        middle = median(self._losses)
        deviation = NORMAL_MAD * median(abs(value - middle) for value in self._losses)
        return (loss - middle) / max(deviation, RELATIVE_FLOOR * abs(middle), ABSOLUTE_FLOOR)


class Verdict(Frozen):
    """What is wrong with one step, and what happens now."""

    step: int = Field(ge=1)
    """1-based number of the optimizer step that was anomalous."""
    data_step: int = Field(ge=0)
    """0-based index into the order of the data that this step used."""
    kind: Kind
    value: float | None
    """The loss, nats per token; None if it is not finite. Finite for "not-finite": the gradient norm was not."""
    score: float | None
    """Robust z-score of a spike (`LossHistory.score`)."""
    action: Action


class Incident(Verdict):
    """A verdict, and where and when it was given: what checkpoints, events and the report keep."""

    attempt: int = Field(ge=0)
    incarnation: str
    time: float
    """Unix time."""

    @classmethod
    def of(cls, verdict: Verdict, *, attempt: int, incarnation: str, time: float) -> Incident:
        """The verdict with its circumstances."""
        return cls(**verdict.model_dump(), attempt=attempt, incarnation=incarnation, time=time)


def judge(
    step: int,
    data_step: int,
    loss: float,
    grad_norm: float,
    history: LossHistory,
    policy: Anomalies,
    past: Sequence[Verdict],
) -> Verdict | None:
    """None for a normal step; else what to do about step `step` (1-based), which used `data_step`.

    `past`: all incidents of the run so far, also of earlier attempts. Only upward deviations are spikes.
    """
    finite = math.isfinite(loss) and math.isfinite(grad_norm)
    score = history.score(loss) if finite else None
    if finite and (score is None or score < policy.threshold or _accepted(step, data_step, past)):
        return None
    kind: Kind = "spike" if finite else "not-finite"
    return Verdict(
        step=step,
        data_step=data_step,
        kind=kind,
        value=loss if math.isfinite(loss) else None,
        score=score,
        action=_action(step, data_step, kind, policy, past),
    )


def skipped_data_steps(incidents: Iterable[Verdict]) -> tuple[int, ...]:
    """The data steps to leave out, sorted."""
    return tuple(sorted({incident.data_step for incident in incidents if incident.action == "skip"}))


def data_step(step: int, skipped: Iterable[int]) -> int:
    """The data step of optimizer step `step` (both 0-based): the step-th number from 0 that is not in `skipped`.

    To skip the data of step n changes nothing before n: checkpoints before it stay valid.
    """
    if step < 0:
        raise ValueError(f"steps are counted from 0, got {step}")
    number = step
    for left_out in sorted({n for n in skipped if n >= 0}):
        if left_out > number:
            break
        number += 1
    return number


def describe(verdict: Verdict) -> str:
    """One sentence for people."""
    if verdict.kind == "spike":
        what = f"loss {verdict.value:.4f} is {verdict.score:.1f} robust deviations above the median of the steps before"
    elif verdict.value is None:
        what = "the loss is not finite"
    else:
        what = f"the gradient norm is not finite (loss {verdict.value:.4f})"
    return f"step {verdict.step} (data step {verdict.data_step}): {what}: {EFFECTS[verdict.action]}"


def _accepted(step: int, data_step: int, past: Sequence[Verdict]) -> bool:
    return any((i.step, i.data_step, i.action) == (step, data_step, "accept") for i in past)


def _action(step: int, data_step: int, kind: Kind, policy: Anomalies, past: Sequence[Verdict]) -> Action:
    if policy.action == "warn":
        return "warn" if kind == "spike" else "fail"
    last_resort: Action = "accept" if kind == "spike" else "fail"
    rollbacks = sum(incident.action in ("replay", "skip") for incident in past)
    skips = sum(incident.action == "skip" and incident.step == step for incident in past)
    if rollbacks >= policy.max_rollbacks or skips >= MAX_SKIPS:
        return last_resort
    if not any((i.step, i.data_step, i.action) == (step, data_step, "replay") for i in past):
        return "replay"
    return "skip" if policy.action == "skip" else last_resort


def _bounded(loss: float) -> float:
    if not math.isfinite(loss):
        raise ValueError(f"a loss of {loss} has no place in the history")
    return max(-LARGEST, min(loss, LARGEST))
