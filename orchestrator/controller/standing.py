"""How a job stands in the eyes of its controller, and the status that says so. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, Self

from orchestrator.controller.decide import Accept, Action, Queue, Reject, Settle, Start
from orchestrator.launch.base import Told
from orchestrator.status import REASONS, Condition, ConditionType, JobStatus, MlflowRun, Phase, Progress, Reason

_LONGEST = 1000
_OF_PHASE = {
    Phase.SUSPENDED: Reason.SUSPENDED,
    Phase.SUCCEEDED: Reason.SUCCEEDED,
    Phase.FAILED: Reason.FAILED,
    Phase.CANCELLED: Reason.CANCELLED,
}
_CLUSTER_SAYS = (REASONS[ConditionType.ADMITTED] | REASONS[ConditionType.RUNNING]) - {
    Reason.MAKING_PROGRESS, Reason.STALLED, Reason.STOPPING, Reason.CONTROLLER_ERROR,
}  # fmt: skip
RESTS = frozenset(_OF_PHASE)
"""Phases in which nothing is to be done."""
LIVE = (Phase.STARTING, Phase.RUNNING)


@dataclass(frozen=True)
class Standing:
    """What was decided last, beside what the events say."""

    phase: Phase = Phase.PENDING
    reason: Reason | None = None
    message: str = ""
    accepted: bool = False
    refused: bool = False
    """It can never run as it is written."""

    @classmethod
    def of(cls, status: JobStatus) -> Self:
        """As it was written."""
        phase, accepted = status.phase, status.condition(ConditionType.ACCEPTED)
        reason, message = _OF_PHASE.get(phase), ""
        complete, admitted = status.condition(ConditionType.COMPLETE), status.condition(ConditionType.ADMITTED)
        priced = status.condition(ConditionType.PRICED)
        if phase is Phase.QUEUED and priced is not None and priced.status == "False":
            reason, message = priced.reason, priced.message
        elif phase is Phase.QUEUED and admitted is not None:
            reason, message = admitted.reason, admitted.message
        elif complete is not None and complete.reason is Reason.LIMIT_REACHED:
            reason = Reason.LIMIT_REACHED
        if complete is not None and phase in RESTS:
            message = complete.message
        fit = accepted is not None and accepted.status == "True"
        return cls(phase, reason, message, fit, refused=accepted is not None and accepted.status == "False")

    def after(self, action: Action) -> Standing:
        """When that was done."""
        match action:
            case Accept():
                return Standing(Phase.PLANNED, accepted=True)
            case Reject(message):
                return Standing(Phase.FAILED, Reason.FAILED, message, accepted=self.accepted, refused=True)
            case Queue(reason, message):
                return Standing(Phase.QUEUED, reason, message, accepted=True)
            case Start():
                return Standing(Phase.STARTING, accepted=True)
            case Settle(phase, reason, message):
                return Standing(phase, reason, message, self.accepted, self.refused)
            case _:
                return self


def status_of(
    standing: Standing,
    base: JobStatus,
    before: JobStatus,
    now: datetime,
    *,
    alive: bool,
    ordered: str | None,
    generation: int,
    machines: str = "",
    untracked: str = "",
    admitted: Told | None = None,
    running: Told | None = None,
) -> JobStatus:
    """`base`: what the events say (`report.job_status`); `before`: the status of before, whose times of transition stay
    where nothing has changed; `machines`: what it has of them, in words; `untracked`: why MLflow lacks something of the
    run; `admitted` and `running`: what a cluster says of a living attempt."""
    if alive and admitted is not None and not admitted.yes:
        phase = Phase.QUEUED  # its attempt waits, or has lost its machines
    elif alive:  # one that has said its last word and is not gone yet is still running: what comes then, is not decided
        phase = base.phase if base.phase in LIVE else Phase.RUNNING
    else:
        phase = Phase.QUEUED if standing.phase in LIVE else standing.phase  # between two attempts
    found = {one.type: one for one in base.conditions}
    for one in _conditions(standing, phase, base, now, alive=alive, ordered=ordered, machines=machines):
        found[one.type] = one
    if alive:
        for one in _of_cluster(base, now, admitted, running, ordered=ordered):
            found[one.type] = one
    if (tracking := _tracking(base.mlflow is not None, untracked, now)) is not None:
        found[tracking.type] = tracking
    if phase is Phase.PENDING:
        found = {}
    kept = {one.type: one for one in before.conditions}
    conditions = [_since(one, kept.get(one.type), generation) for one in found.values()]
    return base.model_copy(
        update={
            "phase": phase,
            "conditions": _sorted(conditions),
            "observed_generation": generation,
            "progress": base.progress if phase is Phase.RUNNING else _as_before(base.progress, before.progress),
            "plan": base.plan or before.plan,
            "mlflow": base.mlflow or before.mlflow,
        }
    )


def differ(one: JobStatus, other: JobStatus) -> bool:
    """Whether more than figures has changed, which others should hear of at once."""

    def answers(status: JobStatus) -> Iterable[tuple[str, str, str]]:
        return [(c.type.value, c.status, c.reason.value) for c in status.conditions]

    same = (one.phase, one.observed_generation, one.attempt_count) == (
        other.phase,
        other.observed_generation,
        other.attempt_count,
    )
    return not same or answers(one) != answers(other)


def _as_before(found: Progress | None, before: Progress | None) -> Progress | None:
    """Of a run that does nothing, or waits: seen again is no news, or it is written of each job again and again."""
    if found is None or before is None:
        return found
    return before if found == before.model_copy(update={"observed_at": found.observed_at}) else found


def troubled(before: JobStatus, message: str, now: datetime, generation: int) -> JobStatus:
    """Of a job that the controller cannot look after: what is wrong, and all else as it was."""
    wrong = Condition(
        type=ConditionType.RUNNING,
        status="Unknown",
        reason=Reason.CONTROLLER_ERROR,
        message=message[:_LONGEST],
        last_transition_time=now,
    )
    kept = {one.type: one for one in before.conditions}
    others = [one for one in before.conditions if one.type is not ConditionType.RUNNING]
    return before.model_copy(update={"conditions": [*others, _since(wrong, kept.get(wrong.type), generation)]})


def farewell(before: JobStatus, now: datetime, generation: int) -> JobStatus:
    """Of a job that is deleted and of which nothing runs: as it has ended, or else Cancelled."""
    if before.phase.terminal:
        return before
    succeeded = bool(before.attempts) and before.attempts[-1].outcome == "succeeded"
    phase = Phase.SUCCEEDED if succeeded else Phase.CANCELLED
    complete = Condition(
        type=ConditionType.COMPLETE, status="True", reason=_OF_PHASE[phase], last_transition_time=now,
    )  # fmt: skip
    running = Condition(
        type=ConditionType.RUNNING, status="False", reason=Reason.ENDED, last_transition_time=now,
    )  # fmt: skip
    kept = {one.type: one for one in before.conditions}
    found = kept | {one.type: _since(one, kept.get(one.type), generation) for one in (complete, running)}
    changed = {"phase": phase, "conditions": _sorted(found.values()), "observed_generation": generation}
    return before.model_copy(update=changed)


def tracked(before: JobStatus, run: MlflowRun | None, untracked: str, now: datetime) -> JobStatus:
    """The status of a run that nobody follows, with where it is in MLflow, or why that lacks something of it."""
    found = _tracking(run is not None, untracked, now)
    if found is None:
        return before
    kept = {one.type: one for one in before.conditions}
    own = _since(found, kept.get(found.type), before.observed_generation)
    conditions = [one for one in before.conditions if one.type is not found.type] + [own]
    return before.model_copy(update={"conditions": _sorted(conditions), "mlflow": run or before.mlflow})


def _tracking(linked: bool, untracked: str, now: datetime) -> Condition | None:
    """None where MLflow has neither been reached nor refused anything yet."""
    if not linked and not untracked:
        return None
    return Condition(
        type=ConditionType.TRACKING,
        status="False" if untracked else "True",
        reason=Reason.SERVER_UNREACHABLE if untracked else Reason.LOGGED,
        message=untracked[:_LONGEST],
        last_transition_time=now,
    )


def _sorted(conditions: Iterable[Condition]) -> list[Condition]:
    return sorted(conditions, key=lambda one: list(ConditionType).index(one.type))


def _conditions(
    standing: Standing,
    phase: Phase,
    base: JobStatus,
    now: datetime,
    *,
    alive: bool,
    ordered: str | None,
    machines: str,
) -> Iterable[Condition]:
    """What the events do not know."""

    def said(kind: ConditionType, status: Literal["True", "False"], reason: Reason, text: str = "") -> Condition:
        return Condition(type=kind, status=status, reason=reason, message=text[:_LONGEST], last_transition_time=now)

    if standing.refused:
        reason = Reason.DATA_MISSING if standing.message.startswith("spec.data") else Reason.INVALID
        yield said(ConditionType.ACCEPTED, "False", reason, standing.message)
    else:
        yield said(ConditionType.ACCEPTED, "True", Reason.VALID)
        yield _priced(said, standing, base)
        yield _admitted(said, standing, phase, machines if alive else "")
    yield from _running(said, standing, phase, base, alive=alive, ordered=ordered)
    yield from _budget(said, standing, base)
    reasons = {Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED}
    if phase in reasons:
        yield said(ConditionType.COMPLETE, "True", _OF_PHASE[phase], standing.message)
    else:
        limit = standing.reason is Reason.LIMIT_REACHED and phase is Phase.SUSPENDED
        reason = Reason.LIMIT_REACHED if limit else Reason.NOT_ENDED
        yield said(ConditionType.COMPLETE, "False", reason, standing.message if limit else "")


def _of_cluster(
    base: JobStatus, now: datetime, admitted: Told | None, running: Told | None, *, ordered: str | None
) -> Iterable[Condition]:
    """What a cluster says of a living attempt; whether its workers run, they know best."""

    def said(kind: ConditionType, told: Told) -> Condition:
        status: Literal["True", "False"] = "True" if told.yes else "False"
        message = told.message[:_LONGEST]
        return Condition(type=kind, status=status, reason=told.reason, message=message, last_transition_time=now)

    if admitted is not None:
        yield said(ConditionType.ADMITTED, admitted)
    own = base.condition(ConditionType.RUNNING)
    lost = admitted is not None and not admitted.yes
    if running is not None and ordered is None and (lost or own is None or own.status != "True"):
        yield said(ConditionType.RUNNING, running)


def is_news(known: JobStatus, admitted: Told | None, running: Told | None) -> bool:
    """Whether a cluster says something else than was written last, beside the words."""
    for kind, told in ((ConditionType.ADMITTED, admitted), (ConditionType.RUNNING, running)):
        own = known.condition(kind)
        if told is not None and own is not None and own.reason in _CLUSTER_SAYS and own.reason is not told.reason:
            return True
    return False


class _Said(Protocol):
    """Makes a condition as of now."""

    def __call__(
        self, kind: ConditionType, status: Literal["True", "False"], reason: Reason, text: str = ""
    ) -> Condition: ...


def _priced(said: _Said, standing: Standing, base: JobStatus) -> Condition:
    if standing.reason is Reason.PRICE_MISSING:
        return said(ConditionType.PRICED, "False", Reason.PRICE_MISSING, standing.message)
    plan = base.plan
    known = plan is not None and plan.price_per_hour is not None
    text = f"{plan.price_per_hour} {plan.currency} per hour, {plan.price_source}" if plan is not None and known else ""
    return said(ConditionType.PRICED, "True", Reason.PRICE_FOUND, text)


def _admitted(said: _Said, standing: Standing, phase: Phase, machines: str) -> Condition:
    if phase is Phase.SUSPENDED:
        return said(ConditionType.ADMITTED, "False", Reason.SUSPENDED, standing.message)
    if phase in (Phase.QUEUED, Phase.PLANNED):
        own = standing.reason in REASONS[ConditionType.ADMITTED]
        reason = standing.reason if own and standing.reason is not None else Reason.WAITING_FOR_QUEUE
        return said(ConditionType.ADMITTED, "False", reason, standing.message)
    return said(ConditionType.ADMITTED, "True", Reason.NO_QUEUE, machines and f"it has {machines}")


def _running(
    said: _Said, standing: Standing, phase: Phase, base: JobStatus, *, alive: bool, ordered: str | None
) -> Iterable[Condition]:
    """Where the events alone would say something else."""
    own = base.condition(ConditionType.RUNNING)
    if alive and ordered is not None:
        up = own is not None and own.status == "True"
        yield said(ConditionType.RUNNING, "True" if up else "False", Reason.STOPPING, f"told to stop: {ordered}")
    elif phase is Phase.SUSPENDED:
        yield said(ConditionType.RUNNING, "False", Reason.SUSPENDED, standing.message)
    elif not alive and phase is Phase.QUEUED:
        reason = Reason.RETRYING if base.attempts else Reason.STARTING
        yield said(ConditionType.RUNNING, "False", reason, standing.message)
    elif not alive and phase in RESTS:
        yield said(ConditionType.RUNNING, "False", Reason.ENDED)


def _budget(said: _Said, standing: Standing, base: JobStatus) -> Iterable[Condition]:
    if standing.reason is Reason.LIMIT_REACHED:
        yield said(ConditionType.BUDGET_OK, "False", Reason.LIMIT_REACHED, standing.message)
    elif (own := base.condition(ConditionType.BUDGET_OK)) is not None and own.reason is Reason.LIMIT_REACHED:
        yield said(ConditionType.BUDGET_OK, "True", Reason.WITHIN_BUDGET, own.message)  # there is more money now


def _since(found: Condition, before: Condition | None, generation: int) -> Condition:
    same = before is not None and before.status == found.status
    since = before.last_transition_time if same and before is not None else found.last_transition_time
    return found.model_copy(update={"last_transition_time": since, "observed_generation": generation})
