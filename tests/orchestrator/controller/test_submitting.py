"""Jobs run by hand, in the store of a home."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.runs import tiny_job

from orchestrator.controller.record import Record
from orchestrator.controller.submitting import find, serves, submit, suspend, take_up
from orchestrator.errors import Conflict, NotFound
from orchestrator.launch.local import hold_lock
from orchestrator.settings import Settings
from orchestrator.store.sqlite import SqliteStore


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load({"FATHOM_HOME": str(tmp_path)})


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "fathom.db")


def test_a_taken_name_gets_the_next_free_one_and_that_is_said(store: SqliteStore) -> None:
    said: list[str] = []
    made = [submit(store, tiny_job(), said.append) for _ in range(3)]
    assert [one.name for one in made] == ["tiny", "tiny-2", "tiny-3"]
    assert [one.wish.job.spec.tracking.experiment for one in made] == [None, "tiny", "tiny"]
    assert said == [f"the name tiny is taken by an earlier job: this one is tiny-{number}" for number in (2, 3)]
    assert len({one.folder for one in made}) == 3


def test_the_longest_name_has_room_for_a_number(store: SqliteStore) -> None:
    name = "a" * 40
    made = [submit(store, tiny_job(name=name), lambda _: None) for _ in range(2)]
    assert made[1].name == "a" * 38 + "-2"


def test_a_run_without_a_place_in_the_store_gets_one_when_it_is_taken_up(
    store: SqliteStore, settings: Settings
) -> None:
    record = Record.create(settings.home, tiny_job())
    record.folder.resolved(3).write_text("{}")
    stored = take_up(store, record, settings, lambda _: None)
    assert (stored.uid, stored.folder, stored.wish.granted_after) == (record.uid, record.folder.root.name, 3)
    assert store.open_jobs()[0].uid == record.uid
    again = take_up(store, record, settings, lambda _: None)
    assert (again.uid, again.wish.resumed) == (record.uid, 2)


def test_a_run_of_another_folder_stays_there(store: SqliteStore, settings: Settings, tmp_path: Path) -> None:
    record = Record.create(tmp_path / "elsewhere", tiny_job())
    stored = take_up(store, record, settings, lambda _: None)
    assert settings.home / stored.folder == record.folder.root


def test_a_suspended_job_is_suspended_no_longer_and_a_cancelled_one_stays(
    store: SqliteStore, settings: Settings
) -> None:
    stored = submit(store, tiny_job(), lambda _: None)
    record = Record.take(settings.home / stored.folder, stored.uid, stored.wish.job)
    suspend(store, stored)
    assert store.get("default", "tiny").wish.job.spec.suspend
    assert not take_up(store, record, settings, lambda _: None).wish.job.spec.suspend
    store.change("default", "tiny", lambda wish: replace(wish, cancelled_at=datetime.now(UTC)))
    with pytest.raises(Conflict, match="default/tiny was cancelled, and cannot go on"):
        take_up(store, record, settings, lambda _: None)


def test_a_run_is_found_by_its_folder_and_by_its_name(store: SqliteStore, settings: Settings) -> None:
    stored = submit(store, tiny_job(), lambda _: None)
    root = settings.home / stored.folder
    Record.take(root, stored.uid, stored.wish.job)
    assert find(store, settings, str(root)).uid == stored.uid
    assert find(store, settings, "tiny").uid == stored.uid
    assert find(store, settings, "default/tiny").uid == stored.uid
    with pytest.raises(NotFound, match="there is nothing of that name"):
        find(store, settings, "nowhere")


def test_whether_a_service_looks_after_a_home(tmp_path: Path) -> None:
    assert not serves(tmp_path)
    with hold_lock(tmp_path / "service.lock"):
        assert serves(tmp_path)
    assert not serves(tmp_path)
