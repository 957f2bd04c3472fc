"""What only the store in a file does; `test_job_store` has what both do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from support.store import in_phase, small_job, suspended

from orchestrator.status import Phase
from orchestrator.store.base import Query
from orchestrator.store.sqlite import SqliteStore

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_a_second_store_on_the_file_sees_it(store: SqliteStore) -> None:
    made = store.create(small_job(), by="ann")
    assert SqliteStore(store.database.path).get("default", "mini") == made


def test_folders_are_unique_in_the_store_and_on_the_disk(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "fathom.db", clock=lambda: NOON)
    (tmp_path / "mini-20260301-120000-2").mkdir()
    folders = [store.create(small_job(namespace=team), by="ann").folder for team in ("a", "b", "c")]
    assert folders == ["mini-20260301-120000", "mini-20260301-120000-3", "mini-20260301-120000-4"]


def test_open_jobs_are_read_again_when_they_changed(store: SqliteStore) -> None:
    made = store.create(small_job(), by="ann")
    [before] = store.open_jobs()
    assert store.open_jobs()[0] is before, "not validated again"
    other = SqliteStore(store.database.path)
    other.change("default", "mini", suspended)
    assert store.open_jobs() == (other.get("default", "mini"),)
    other.set_status(made.uid, in_phase(Phase.RUNNING))
    assert store.open_jobs() == (other.get("default", "mini"),)
    other.remove(made.uid)
    assert store.open_jobs() == ()


def test_changes_are_counted_one_by_one(store: SqliteStore) -> None:
    made = store.create(small_job(), by="ann")
    assert (made.generation, made.version) == (1, 1)
    for _ in range(3):
        assert store.set_status(made.uid, in_phase(Phase.RUNNING))
    store.change("default", "mini", lambda wish: replace(suspended(wish), cancelled_at=NOON, deleted_at=NOON))
    now = store.get("default", "mini")
    assert (now.generation, now.version) == (2, 3)
    assert now.wish.deleted_at == NOON


def test_one_document_is_that_of_the_list(store: SqliteStore) -> None:
    store.create(small_job(budget={"limit": "1.00"}), by="ann")
    assert (store.document("default", "mini"),) == store.documents(Query()).documents
