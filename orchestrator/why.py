"""Why a job is where it is, in one sentence, and what to do about it: from its status alone. Pure.

Called by `fathom why`, by the API and by what is sent to webhooks. The texts are those of `orchestrator.reasons`.
Invariant: whatever the status, there is a sentence and an advice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from orchestrator.launch.events import FailureClass
from orchestrator.reasons import ACCEPTED, CONDITIONS, FAILURES, Text, Ways
from orchestrator.spec import TrainingJob
from orchestrator.status import Attempt, Condition, ConditionType, JobStatus, Phase, Reason

SLOW = Decimal("1.25")
"""Times the longest forecast from which on a run counts as slow."""
SILENT = timedelta(minutes=5)
"""A status that is older, of a job that holds machines: nobody looks after it."""
_INVALID = ACCEPTED[Reason.INVALID].urgency
_STARTED = {Phase.STARTING, Phase.RUNNING}
_DETAILS = {
    (ConditionType.BUDGET_OK, Reason.NEAR_LIMIT),
    (ConditionType.BUDGET_OK, Reason.LIMIT_REACHED),
    (ConditionType.TRACKING, Reason.SERVER_UNREACHABLE),
    (ConditionType.RUNNING, Reason.STALLED),
    (ConditionType.RUNNING, Reason.RETRYING),
}
"""What a person should hear of even where something else explains where the job is."""


@dataclass(frozen=True)
class Why:
    """The answer."""

    sentence: str
    advice: str
    details: tuple[str, ...]
    """Facts behind it: attempts, progress, money."""


def why(job: TrainingJob, status: JobStatus, now: datetime, *, ways: Ways | None = None) -> Why:
    """`now` with a time zone; `ways`: the commands to name, by default those of the service."""
    ways = ways or Ways.by_name(job.metadata.name)
    leading = max(status.conditions, key=lambda one: _text(one).urgency, default=None)
    said, do = _special(job, status, leading, now) or _plain(status, leading)
    sentence = f"{ways.job} {said}".rstrip(".") + "."
    return Why(sentence, _filled(do, ways), tuple(_details(status, leading, now)))


def failure_of(attempt: Attempt) -> tuple[FailureClass, str] | None:
    """Class and message of an attempt that did not succeed, from what its status says; None where it says neither."""
    kind, _, message = (attempt.reason or "").partition(": ")
    if attempt.outcome in (None, "succeeded"):
        return None
    try:
        return FailureClass(kind), message
    except ValueError:
        return FailureClass.UNKNOWN, attempt.reason or ""


def _text(condition: Condition) -> Text:
    return CONDITIONS[condition.type][condition.reason]


def _filled(do: str, ways: Ways) -> str:
    return do.format(**asdict(ways))


def _plain(status: JobStatus, leading: Condition | None) -> tuple[str, str]:
    """By the condition that explains most; by the phase where nothing was said yet."""
    if leading is not None and _text(leading).urgency:
        text = _text(leading)
        return _with(text.says, leading.message), text.do
    text = _BY_PHASE[status.phase]
    return text.says, text.do


_BY_PHASE = {
    Phase.PENDING: Text("was submitted and nobody has looked at it yet", "wait; if it stays so, start {follow}"),
    Phase.PLANNED: CONDITIONS[ConditionType.PRICED][Reason.PRICE_FOUND],
    Phase.QUEUED: CONDITIONS[ConditionType.ADMITTED][Reason.WAITING_FOR_QUEUE],
    Phase.STARTING: CONDITIONS[ConditionType.RUNNING][Reason.STARTING],
    Phase.RUNNING: CONDITIONS[ConditionType.RUNNING][Reason.MAKING_PROGRESS],
    Phase.SUSPENDED: CONDITIONS[ConditionType.RUNNING][Reason.SUSPENDED],
    Phase.SUCCEEDED: CONDITIONS[ConditionType.COMPLETE][Reason.SUCCEEDED],
    Phase.FAILED: CONDITIONS[ConditionType.COMPLETE][Reason.FAILED],
    Phase.CANCELLED: CONDITIONS[ConditionType.COMPLETE][Reason.CANCELLED],
}


# What several facts together say


def _special(job: TrainingJob, status: JobStatus, leading: Condition | None, now: datetime) -> tuple[str, str] | None:
    """A better sentence than a condition alone gives."""
    last = status.attempts[-1] if status.attempts else None
    urgency, reason = (-1, None) if leading is None else (_text(leading).urgency, leading.reason)
    if status.phase is Phase.FAILED and last is not None and urgency < _INVALID:
        return _failed(status, last)
    if reason is Reason.CONTROLLER_ERROR:
        return None
    if status.phase is Phase.SUSPENDED and last is not None and not job.spec.suspend:
        return _stopped(last, money=reason is Reason.LIMIT_REACHED)
    if status.phase in _STARTED and last is not None and last.outcome == "succeeded":
        return (
            "has done all its steps, and its machines are about to be free",
            "wait; {look} shows when it has succeeded",
        )
    if status.phase is Phase.RUNNING and (silent := _silent(status, now)) is not None:
        return silent
    if status.phase is Phase.RUNNING and reason is Reason.MAKING_PROGRESS:
        return _training(status)
    return None


def _failed(status: JobStatus, last: Attempt) -> tuple[str, str] | None:
    found = failure_of(last)
    if found is None:
        return None
    kind, message = found
    tries = f"attempt {last.number}" if status.attempt_count <= 1 else f"{status.attempt_count} attempts, the last"
    said = f"has failed after {tries} ended {kind}, which means that {FAILURES[kind].says}"
    return _with(said, message), FAILURES[kind].do


def _stopped(last: Attempt, *, money: bool) -> tuple[str, str] | None:
    """An attempt that was stopped, by a person or by its budget; None where `money` came to an end later."""
    found = failure_of(last)
    if last.outcome != "stopped" or found is None:
        return None
    kind, message = found
    if money and kind is not FailureClass.OVER_BUDGET:
        return None
    at = "" if last.to_step is None else f" at step {last.to_step:,}"
    if kind is FailureClass.OVER_BUDGET:
        says = CONDITIONS[ConditionType.BUDGET_OK][Reason.LIMIT_REACHED].says
        return _with(says.replace("stopped", f"stopped{at}", 1), message), FAILURES[kind].do
    return _with(f"is suspended{at} because {FAILURES[kind].says}", message), FAILURES[kind].do


def _silent(status: JobStatus, now: datetime) -> tuple[str, str] | None:
    """The controller writes the time whenever it looks at one that trains."""
    if status.progress is None or now - status.progress.observed_at <= SILENT:
        return None
    since = _duration((now - status.progress.observed_at).total_seconds())
    at = f"{status.progress.step:,} of {status.progress.steps:,}"
    return (
        f"was at step {at} when somebody last looked after it, {since} ago",
        "it may be training still, or have died with its machine: start {follow}, which finds out and goes on",
    )


def _training(status: JobStatus) -> tuple[str, str] | None:
    """How far it is, and whether that is slower than was expected."""
    progress = status.progress
    if progress is None:
        return None
    left = "" if progress.eta_seconds is None else f", about {_duration(progress.eta_seconds)} to go"
    said = f"is training: step {progress.step:,} of {progress.steps:,}{left}"
    hours, expected = _hours(status), _expected(status)
    if hours is None or expected is None or hours <= SLOW * expected:
        return said, CONDITIONS[ConditionType.RUNNING][Reason.MAKING_PROGRESS].do
    times = hours / expected
    return (
        f"is training slowly: at the pace of step {progress.step:,} of {progress.steps:,} the run takes "
        f"{_duration(float(hours) * 3600)}, {times:.1f} times the {_duration(float(expected) * 3600)} that were "
        "forecast at most",
        "look whether something else uses the machines (`fathom doctor`), and where the time goes with "
        "`fathom goodput` and {look}",
    )


def _expected(status: JobStatus) -> Decimal | None:
    """Hours that were forecast at most."""
    hours = None if status.plan is None else status.plan.hours_high
    return None if hours is None or Decimal(hours) <= 0 else Decimal(hours)


def _hours(status: JobStatus) -> Decimal | None:
    """What the whole run takes at the present pace."""
    progress = status.progress
    if progress is None or progress.tokens_per_second is None or not progress.step or not progress.steps:
        return None
    speed = Decimal(progress.tokens_per_second)
    if speed <= 0:
        return None
    return Decimal(progress.tokens) / progress.step * progress.steps / speed / 3600


# The facts behind it


def _details(status: JobStatus, leading: Condition | None, now: datetime) -> list[str]:
    lines = [f"phase {status.phase}"]
    for one in status.conditions:
        if one is not leading and (one.type, one.reason) in _DETAILS:
            lines.append(_with(f"{one.type} {one.reason}: it {_text(one).says}", one.message))
    if leading is not None:
        since = _duration(max(0.0, (now - leading.last_transition_time).total_seconds()))
        lines.append(f"{leading.type} is {leading.status} ({leading.reason}) for {since}")
    if status.attempts:
        lines.append(_attempt(status, status.attempts[-1]))
    if (cost := status.cost) is not None:
        lines.append(f"spent {cost.spent} {cost.currency}, of which {cost.wasted} trained nothing")
    return lines


def _attempt(status: JobStatus, last: Attempt) -> str:
    how = "runs" if last.outcome is None else last.outcome
    return _with(f"attempt {last.number} of {max(status.attempt_count, last.number)} so far {how}", last.reason or "")


def _with(said: str, message: str) -> str:
    """Whole messages stay readable: on one line, without the full stop that the sentence brings; and none steers the
    terminal that it is printed on."""
    words = " ".join("".join(c if c.isprintable() else " " for c in message).split()).rstrip(".")
    return f"{said}: {words}" if words else said


def _duration(seconds: float) -> str:
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}s"
    return f"{seconds:.0f} seconds"
