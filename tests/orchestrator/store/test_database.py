from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text
from support.store import small_job

from orchestrator.errors import Conflict, Unavailable
from orchestrator.store.audit import Audit, Deed
from orchestrator.store.base import Query, Wish
from orchestrator.store.database import Database
from orchestrator.store.sqlite import SqliteStore

TESTS = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS)))}
HEAD = """
import sys
from dataclasses import replace
from pathlib import Path
from orchestrator.errors import Conflict
from orchestrator.store.sqlite import SqliteStore
from support.store import small_job
store = SqliteStore(Path(sys.argv[1]))
"""
CREATES = """
won = 0
for number in range(40):
    try:
        store.create(small_job(f"race-{number}"), by=sys.argv[2])
        won += 1
    except Conflict:
        pass
for _ in range(40):
    store.change("default", "counted", lambda wish: replace(wish, granted_after=wish.granted_after + 1))
print(won)
"""
DIES_INSIDE = """
def edit(wish):
    print("inside", flush=True)
    sys.stdin.read()

store.create(small_job("before"), by="child")
store.change("default", "before", edit)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEAD + code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=ENVIRONMENT)


def test_two_processes_race_and_nothing_is_lost(store: SqliteStore) -> None:
    store.create(small_job("counted"), by="ann")
    racers = [start(CREATES, store.database.path, who) for who in ("one", "two")]
    won = [int(racer.communicate(timeout=180)[0]) for racer in racers]
    assert sum(won) == 40
    assert len(store.list(Query(name_contains="race")).jobs) == 40
    counted = store.get("default", "counted")
    assert (counted.wish.granted_after, counted.generation) == (80, 81)


def test_threads_race_and_nothing_is_lost(store: SqliteStore) -> None:
    store.create(small_job("counted"), by="ann")

    def step(number: int) -> bool:
        store.change("default", "counted", lambda wish: replace(wish, granted_after=wish.granted_after + 1))
        store.documents(Query())
        try:
            store.create(small_job(f"race-{number % 10}"), by="ann")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(step, range(60))) == 10
    assert store.get("default", "counted").wish.granted_after == 60


def test_two_changes_of_one_generation_have_one_winner(store: SqliteStore) -> None:
    store.create(small_job(), by="ann")
    both = threading.Barrier(2)

    def change(attempts: int) -> bool:
        both.wait()
        try:
            store.change("default", "mini", lambda wish: replace(wish, granted_after=attempts), generation=1)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(change, (1, 2))) == [False, True]


def test_killed_inside_a_transaction_leaves_what_was_before(store: SqliteStore) -> None:
    child = start(DIES_INSIDE, store.database.path)
    assert child.stdout is not None
    assert child.stdout.readline() == "inside\n"
    assert store.get("default", "before").generation == 1, "readers do not wait for a writer"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=180)
    assert store.get("default", "before").wish == Wish(small_job("before"))
    assert store.change("default", "before", lambda wish: replace(wish, granted_after=1)).generation == 2


def test_a_writer_that_holds_it_for_long_is_named(tmp_path: Path) -> None:
    store = SqliteStore(Database(tmp_path / "fathom.db", patience=0.05))
    other = sqlite3.connect(store.database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match=r"fathom\.db is held by another process"):
        store.create(small_job(), by="ann")
    other.close()
    store.create(small_job(), by="ann")


def test_a_full_disk_is_said_and_loses_nothing(store: SqliteStore) -> None:
    made = store.create(small_job(), by="ann")
    with store.database.write() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
    full = Database(store.database.path)
    with full.read() as connection:
        connection.execute(text(f"PRAGMA max_page_count = {pages}"))
    crowded = SqliteStore(full)

    def fill() -> None:
        for number in range(1000):
            crowded.create(small_job(f"j{number}"), by="ann")

    with pytest.raises(Unavailable, match="the disk is full: make room"):
        fill()
    assert store.get("default", "mini") == made
    store.create(small_job("again"), by="ann")


def test_what_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "fathom.db").write_text("not a database " * 100)
    with pytest.raises(Unavailable, match=r"fathom\.db is no database: put it back from a backup"):
        SqliteStore(tmp_path / "fathom.db")


def test_damage_is_said(store: SqliteStore) -> None:
    for number in range(100):
        store.create(small_job(f"j{number}"), by="ann")
    path = store.database.path
    with store.database.read() as connection:
        connection.execute(text("SELECT 1"))
    store.database.close()
    body = bytearray(path.read_bytes())
    size = 4096
    body[size:] = b"\xa5" * (len(body) - size)
    path.write_bytes(body)
    for log in path.parent.glob("fathom.db-*"):
        log.unlink()
    with pytest.raises(Unavailable, match="is damaged: put it back from a backup"):
        SqliteStore(path).list(Query())


def test_a_newer_form_is_refused(store: SqliteStore) -> None:
    with sqlite3.connect(store.database.path) as raw:
        raw.execute("PRAGMA user_version = 7")
    with pytest.raises(Unavailable, match=r"newer version of Fathom \(form 7, this one knows 3\)"):
        SqliteStore(store.database.path)


def test_a_file_of_the_first_form_is_brought_up(store: SqliteStore) -> None:
    before = store.create(small_job(), by="ann")
    store.database.close()
    with sqlite3.connect(store.database.path) as raw:
        raw.execute("ALTER TABLE jobs DROP COLUMN force")
        for name in ("teams", "job", "digest"):
            raw.execute(f"ALTER TABLE audit DROP COLUMN {name}")
        raw.execute("PRAGMA user_version = 1")
    opened = [SqliteStore(store.database.path) for _ in range(2)]
    assert opened[1].get("default", "mini") == before
    opened[0].change("default", "mini", lambda wish: replace(wish, deleted_at=before.created_at, force=True))
    assert opened[1].get("default", "mini").wish.force is True
    opened[1].create(small_job("later"), by="ann")
    audit = Audit(opened[0].database)
    audit.finish(audit.begin(Deed("ann", "POST", "/v1/jobs", "r", "g")), 201, job="a/b", digest="d")
    assert audit.records().records[0].deed == Deed("ann", "POST", "/v1/jobs", "r", "g", "a/b", "d")
    with sqlite3.connect(store.database.path) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (3,)
    for one in opened:
        one.database.close()


def test_one_unreadable_job_stops_nobody_else(store: SqliteStore, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("good", "bad", "fine"):
        store.create(small_job(name), by="ann")
    with store.database.write() as connection:
        connection.execute(text("""UPDATE jobs SET job = '{"spec": 1}' WHERE name = 'bad'"""))
    assert [job.name for job in store.open_jobs()] == ["good", "fine"]
    assert "default/bad cannot be read by this version" in caplog.text
    with pytest.raises(Unavailable, match="default/bad cannot be read"):
        store.get("default", "bad")


def test_only_the_owner_reads_it(store: SqliteStore) -> None:
    store.create(small_job(), by="ann")
    files = list(store.database.path.parent.glob("fathom.db*"))
    assert len(files) == 3, "the file, its log, and the index of that"
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_home_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="set FATHOM_HOME"):
        SqliteStore(tmp_path / "file" / "fathom.db")
