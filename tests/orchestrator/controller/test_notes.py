from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from support.runs import event, tiny_job

from orchestrator.controller.notes import Note, body, notes
from orchestrator.launch.events import Event
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def stamp(minutes: float = 0) -> str:
    return (NOW + timedelta(minutes=minutes)).isoformat()


def status(phase: str = "Running", **parts: Any) -> JobStatus:  # noqa: ANN401
    return JobStatus.model_validate_json(json.dumps({"phase": phase} | parts))


def tried(number: int, outcome: str | None = None, reason: str | None = None) -> dict[str, Any]:
    ended = None if outcome is None else stamp(number)
    return {"number": number, "startedAt": stamp(), "endedAt": ended, "outcome": outcome, "reason": reason}


def budget(reason: str, true: str) -> dict[str, Any]:
    return {"type": "BudgetOK", "reason": reason, "status": true, "lastTransitionTime": stamp(), "message": "5 of 5"}


def job() -> TrainingJob:
    document = tiny_job().document()
    document["spec"]["budget"] = {"limit": "5.00"}
    return TrainingJob.model_validate(document)


def found(before: JobStatus | None, after: JobStatus, events: list[Event] | None = None) -> list[Note]:
    return notes("u1", job(), before, after, events or [], NOW)


def share(number: float, *, limit: str = "5.00", attempt: int = 1) -> Event:
    return event(
        "budget", 50, attempt=attempt, about="share-spent", share=number, limit=limit, spent="4", message="80 %"
    )


def test_nothing_new_says_nothing() -> None:
    same = status(attempts=[tried(1, "failed", "stalled: x"), tried(2)], conditions=[budget("LimitReached", "False")])
    assert found(same, same) == []
    assert found(status("Failed"), status("Failed")) == []
    assert found(None, status(attempts=[tried(1)])) == []
    assert found(status(), status("Suspended")) == []


def test_an_attempt_that_failed_is_told_also_when_it_is_tried_again() -> None:
    (note,) = found(status(attempts=[tried(1)]), status(attempts=[tried(1, "failed", "stalled: no step"), tried(2)]))
    assert (note.id, note.kind, note.at) == ("u1-1-failed", "failed", (NOW + timedelta(minutes=1)).timestamp())
    told = body(note)
    assert told["class"] == "stalled"
    assert told["message"] == "no step"
    assert told["sentence"].startswith("attempt 1 of tiny has failed (stalled): no step was done")
    assert told["job"] == {"namespace": "default", "name": "tiny", "uid": "u1"}
    assert told["time"] == "2026-06-01T12:01:00Z"


def test_the_end_is_told_once_for_each_way_and_attempt() -> None:
    after = status("Failed", attempts=[tried(1, "failed", "user-error: y")])
    failed, ended = found(status(attempts=[tried(1)]), after)
    assert [failed.id, ended.id] == ["u1-1-failed", "u1-1-ended-failed"]
    assert body(ended)["sentence"].startswith("tiny has failed after attempt 1 ended user-error")
    assert "fathom apply" in body(ended)["advice"]
    (again,) = found(
        status(attempts=[tried(1, "failed", "x"), tried(2)]),
        status("Succeeded", attempts=[tried(1, "failed", "x"), tried(2, "succeeded")]),
    )
    assert again.id == "u1-2-ended-succeeded"
    (gone,) = found(status("Queued"), status("Cancelled"))
    assert gone.id == "u1-0-ended-cancelled"


def test_warnings_of_the_budget_are_told_for_each_share_and_limit() -> None:
    events = [share(0.8), share(0.95), share(0.8, limit="9.00")]
    assert [note.id for note in found(status(), status(), events)] == [
        "u1-1-budget-800-of-5_00",
        "u1-1-budget-950-of-5_00",
        "u1-1-budget-800-of-9_00",
    ]
    changed = event("budget", 51, about="limit-changed", limit="9.00", message="more")
    assert found(status(), status(), [changed]) == []


def test_a_limit_that_is_reached_is_told() -> None:
    before = status(conditions=[budget("NearLimit", "True")])
    (note,) = found(
        before,
        status(
            "Suspended", attempts=[tried(2, "stopped", "over-budget: x")], conditions=[budget("LimitReached", "False")]
        ),
    )
    assert (note.id, note.kind) == ("u1-2-budget-limit-5_00", "budget-warning")
    assert "`fathom budget tiny --limit AMOUNT`" in body(note)["advice"]


def test_another_process_finds_the_same_notes() -> None:
    """So that none is sent twice, and none that the first one had no time to write down is lost."""
    first, events = status(attempts=[tried(1)]), [share(0.8)]
    second = status(attempts=[tried(1, "failed", "stalled: x"), tried(2)], conditions=[budget("NearLimit", "True")])
    last = status("Failed", attempts=[tried(1, "failed", "stalled: x"), tried(2, "failed", "stalled: x")])
    seen = [*found(None, first), *found(first, second, events), *found(second, last)]
    assert sorted(note.id for note in seen) == sorted(note.id for note in found(None, last, events))
    assert all(set(note.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") for note in seen)
    assert len(seen) == 4
