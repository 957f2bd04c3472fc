"""What a job's webhook is told, from how its status changed and what happened. Pure; no I/O.

Invariant: a note has the same id whoever finds it and whenever, so that a restart never makes a second one of it: with
`before` None all notes are found that the status and the events still tell of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from orchestrator.launch.events import BudgetNote, Event
from orchestrator.reasons import FAILURES
from orchestrator.spec import TrainingJob
from orchestrator.status import Attempt, ConditionType, JobStatus, Phase
from orchestrator.why import failure_of, why

Kind = Literal["failed", "budget-warning", "ended"]


@dataclass(frozen=True)
class Note:
    """One word about a job."""

    id: str
    """Of letters, digits, "-" and "_" only."""
    kind: Kind
    at: float
    """When it happened, in unix seconds."""
    content: dict[str, Any]
    """What is posted, but for the id, the kind and the time."""


def notes(
    uid: str,
    job: TrainingJob,
    before: JobStatus | None,
    after: JobStatus,
    events: Iterable[Event],
    now: datetime,
    *,
    deleted: bool = False,
) -> list[Note]:
    """Those that `after` and `events` tell of and `before` does not yet, in the order in which they happened.
    `deleted`: these are the last ones."""
    found = [
        *_failures(uid, job, before, after, now),
        *_warnings(uid, job, before, after, events, now),
        *_ends(uid, job, before, after, now, deleted=deleted),
    ]
    return sorted(found, key=lambda note: note.at)


def body(note: Note) -> dict[str, Any]:
    """What is posted."""
    at = datetime.fromtimestamp(note.at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"id": note.id, "kind": note.kind, "time": at} | note.content


def _failures(uid: str, job: TrainingJob, before: JobStatus | None, after: JobStatus, now: datetime) -> Iterator[Note]:
    known = {one.number for one in (before.attempts if before else []) if one.outcome == "failed"}
    for one in after.attempts:
        if one.outcome == "failed" and one.number not in known:
            yield Note(
                id=f"{uid}-{one.number}-failed",
                kind="failed",
                at=(one.ended_at or now).timestamp(),
                content=_content(uid, job, after, one.number) | _failure(job, one),
            )


def _failure(job: TrainingJob, attempt: Attempt) -> dict[str, Any]:
    found = failure_of(attempt)
    assert found is not None, "the attempt has failed"
    kind, message = found
    said = f"attempt {attempt.number} of {job.metadata.name} has failed ({kind}): {FAILURES[kind].says}"
    return {"class": str(kind), "sentence": f"{said}.", "message": message}


def _warnings(
    uid: str, job: TrainingJob, before: JobStatus | None, after: JobStatus, events: Iterable[Event], now: datetime
) -> Iterator[Note]:
    for event in events:
        if isinstance(event, BudgetNote) and event.about == "share-spent" and event.share is not None:
            share = f"{event.share * 1000:.0f}-of-{_plain(event.limit)}"
            yield Note(
                id=f"{uid}-{event.attempt}-budget-{share}",
                kind="budget-warning",
                at=event.time,
                content=_content(uid, job, after, event.attempt)
                | {"share": event.share, "limit": event.limit, "spent": event.spent, "sentence": event.message},
            )
    if _at_limit(after) and not (before is not None and _at_limit(before)):
        limit = None if job.spec.budget is None else job.spec.budget.limit
        condition = after.condition(ConditionType.BUDGET_OK)
        assert condition is not None
        yield Note(
            id=f"{uid}-{_attempt(after)}-budget-limit-{_plain(limit)}",
            kind="budget-warning",
            at=condition.last_transition_time.timestamp(),
            content=_content(uid, job, after, _attempt(after)) | {"limit": limit} | _explained(job, after, now),
        )


def _ends(
    uid: str, job: TrainingJob, before: JobStatus | None, after: JobStatus, now: datetime, *, deleted: bool
) -> Iterator[Note]:
    if not after.phase.terminal or (before is not None and before.phase is after.phase):
        return
    complete = after.condition(ConditionType.COMPLETE)
    ended = after.attempts[-1].ended_at if after.attempts else None
    at = complete.last_transition_time if complete is not None and complete.status == "True" else ended or now
    number = _attempt(after)
    yield Note(
        id=f"{uid}-{number}-ended-{after.phase.lower()}",
        kind="ended",
        at=at.timestamp(),
        content=_content(uid, job, after, number) | {"deleted": deleted} | _ending(job, after, now, deleted=deleted),
    )


def _ending(job: TrainingJob, after: JobStatus, now: datetime, *, deleted: bool) -> dict[str, Any]:
    """Of a job that was deleted before it had ended there is nothing to be looked at any more."""
    if not deleted or after.phase is not Phase.CANCELLED:
        return _explained(job, after, now)
    return {
        "sentence": f"{job.metadata.name} was deleted.",
        "advice": "nothing; `fathom apply FILE` starts another job",
    }


def _at_limit(status: JobStatus) -> bool:
    condition = status.condition(ConditionType.BUDGET_OK)
    return condition is not None and condition.status == "False"


def _plain(amount: str | None) -> str:
    return (amount or "none").replace(".", "_")


def _attempt(status: JobStatus) -> int:
    """The newest; 0 if there was none."""
    return max(status.attempt_count, status.attempts[-1].number if status.attempts else 0)


def _explained(job: TrainingJob, status: JobStatus, now: datetime) -> dict[str, Any]:
    found = why(job, status, now)
    return {"sentence": found.sentence, "advice": found.advice}


def _content(uid: str, job: TrainingJob, status: JobStatus, attempt: int) -> dict[str, Any]:
    cost, progress = status.cost, status.progress
    return {
        "job": {"namespace": job.metadata.namespace, "name": job.metadata.name, "uid": uid},
        "phase": str(status.phase),
        "attempt": attempt,
        "step": None if progress is None else progress.step,
        "spent": None if cost is None else cost.spent,
        "currency": None if cost is None else cost.currency,
    }
