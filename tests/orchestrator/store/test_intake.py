"""What is not claimed yet waits without costing anything."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast

import pytest
from support.store import small_document

from orchestrator.kube.resources import Json
from orchestrator.kube.writes import Writer
from orchestrator.store import intake
from orchestrator.store.base import StoredJob
from orchestrator.store.index import Row
from orchestrator.store.resource import stored_of


def row(version: int) -> Row:
    found = small_document("mini")
    found["metadata"] |= {
        "uid": "00000000-0000-0000-0000-000000000001",
        "resourceVersion": str(version),
        "generation": 1,
        "creationTimestamp": "2026-03-01T12:00:00Z",
    }
    return Row.of(found)


def test_a_job_that_waits_to_be_claimed_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reads(found: Json, before: StoredJob | None = None) -> StoredJob:
        read.append(found["metadata"]["resourceVersion"])
        return stored_of(found, before)

    monkeypatch.setattr(intake, "stored_of", reads)
    monkeypatch.setattr(intake, "_CLAIM_SECONDS", -1.0)  # there is no time for it
    nobody = cast(Writer, None)  # asked for nothing
    own = intake.Intake(nobody, intake.Pause(), lambda found: found, lambda: datetime.now(UTC))
    for _ in range(3):
        assert own.look([row(5)]) == ()
    assert read == ["5"]
    known = own.read_of(row(5))
    assert known is not None
    assert known.version == 5
    assert own.read_of(row(6)) is None
    assert own.look([row(6)]) == ()
    assert read == ["5", "6"]
    assert own.look([]) == ()
    assert own.look([row(6)]) == ()
    assert read == ["5", "6", "6"], "what is gone is forgotten"
    own.stop()
