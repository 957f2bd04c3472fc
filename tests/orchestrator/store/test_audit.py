from __future__ import annotations

import pytest

from orchestrator.errors import UsageError
from orchestrator.store.audit import Audit, AuditRecord, Deed
from orchestrator.store.sqlite import SqliteStore

DEED = Deed("ann", "POST", "/v1/jobs", "r-1")


def test_a_deed_is_begun_and_finished(store: SqliteStore) -> None:
    audit = Audit(store.database)
    number = audit.begin(DEED)
    [record] = audit.records().records
    assert (record.deed, record.status, record.outcome) == (DEED, None, "unknown")
    audit.finish(number, 201)
    [record] = Audit(store.database).records().records
    assert (record.status, record.outcome) == (201, "done")


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "done"),
        (401, "denied"),
        (403, "denied"),
        (404, "refused"),
        (409, "refused"),
        (429, "denied"),
        (500, "failed"),
    ],
)
def test_outcomes_in_a_word(store: SqliteStore, status: int, outcome: str) -> None:
    audit = Audit(store.database)
    audit.begin(DEED, status)
    assert audit.records().records[0].outcome == outcome


def test_pages_newest_first(store: SqliteStore) -> None:
    audit = Audit(store.database)
    for number in range(5):
        audit.begin(Deed("ann", "POST", f"/{number}", "r"), 200)
    first = audit.records(limit=3)
    audit.begin(DEED, 200)
    second = audit.records(limit=3, after=first.next)
    assert [record.deed.path for record in (*first.records, *second.records)] == ["/4", "/3", "/2", "/1", "/0"]
    assert second.next == ""
    with pytest.raises(UsageError):
        audit.records(limit=0)
    with pytest.raises(UsageError):
        audit.records(after="x")


def test_what_is_recorded_is_bounded_and_plain(store: SqliteStore) -> None:
    audit = Audit(store.database)
    audit.begin(Deed("", "POST", "/\r\n\x1b[2J\u202e" + "x" * 10_000, "r"), 404)
    record: AuditRecord = audit.records().records[0]
    assert record.deed.path.startswith("/???[2J?xxx")
    assert len(record.deed.path) == 500
