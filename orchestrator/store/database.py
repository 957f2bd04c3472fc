"""The database file of a home: one SQLite file, used by several threads and processes at once.

Write-ahead log, so that readers never wait; writers take their turn from the first statement on (`BEGIN IMMEDIATE`), so
that what a transaction has read is still true when it writes. A commit is on the disk before it is answered. The file
is readable by its owner only: it holds who may do what. Everything SQLite refuses becomes `Unavailable`, in words.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from orchestrator.errors import Unavailable
from orchestrator.store.tables import STEPS, VERSION, metadata

NAME = "fathom.db"
"""Of the file in a home."""
PATIENCE_SECONDS = 20.0
"""How long a transaction waits for another one to end."""
_KEPT_CONNECTIONS = 4
_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "journal_size_limit = 16777216")


class Database:
    """Open it once in a process and share it between threads; another process opens the file itself."""

    def __init__(self, path: Path, *, patience: float = PATIENCE_SECONDS) -> None:
        """The file is made if there is none. Unavailable if it cannot be used."""
        self.path = path.absolute()
        self._make_file()
        self._engine = _engine(self.path, patience)
        self._here = threading.local()
        with self._in_words():
            self._require_version()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of everything; inside `write` of the same thread also what that wrote."""
        if (outer := self._outer()) is not None:
            yield outer
            return
        with self._in_words(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction alone among the writers: all of it happens, or, after an error or a crash, nothing.

        Inside another one of the same thread it is a part of that: what several stores write there is one.
        """
        if (outer := self._outer()) is not None:
            yield outer
            return
        with self._in_words(), self._engine.execution_options(immediate=True).begin() as connection:
            self._here.writing = connection
            try:
                yield connection
            finally:
                self._here.writing = None

    def _outer(self) -> Connection | None:
        """That of the transaction that this thread is writing in."""
        found: Connection | None = getattr(self._here, "writing", None)
        return found

    def close(self) -> None:
        """Give back files and memory; using it again opens them again."""
        self._engine.dispose()

    def _make_file(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives the log the same mode
        except OSError as error:
            raise Unavailable(
                f"{self.path} cannot be opened for writing: {error.strerror}; set FATHOM_HOME to a folder of your own"
            ) from None

    def _require_version(self) -> None:
        with self.read() as connection:
            found = _version(connection)
        if found == 0:
            with self.write() as connection:
                found = _version(connection)  # another process may have been first
                if found == 0:
                    metadata.create_all(connection)
                    connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")
                    return
        if found < VERSION:
            found = self._bring_up()
        if found != VERSION:
            raise Unavailable(
                f"{self.path} was written by a newer version of Fathom (form {found}, this one knows {VERSION}): use "
                "that version, or set FATHOM_HOME to another folder"
            )

    def _bring_up(self) -> int:
        """From an older version, all of it or nothing; -> the version now."""
        with self.write() as connection:
            found = _version(connection)  # another process may have been first
            while found < VERSION:
                for statement in STEPS[found]:
                    connection.exec_driver_sql(statement)
                found += 1
                connection.exec_driver_sql(f"PRAGMA user_version = {found}")
        return found

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if (words := _words(str(error.orig))) is None:
                raise
            raise Unavailable(f"{self.path} {words}") from error


def _version(connection: Connection) -> int:
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())


def _words(message: str) -> str | None:
    """What SQLite's message means for whoever runs the service; None: an error of ours."""
    known = {
        "locked": "is held by another process for too long: end it, or try again",
        "full": "cannot grow, the disk is full: make room, then try again",
        "not a database": "is no database: put it back from a backup, or move it away to begin with an empty one",
        "malformed": "is damaged: put it back from a backup, or move it away to begin with an empty one",
        "disk I/O": "cannot be read or written, the disk reports an error: check the disk and the room on it",
        "readonly": "may not be written: give its folder and files to the user that runs Fathom",
        "unable to open": "cannot be opened: check that its folder exists and is yours",
    }
    return next((f"{words} ({message})" for sign, words in known.items() if sign in message), None)


def _engine(path: Path, patience: float) -> Engine:
    url = URL.create("sqlite", database=str(path))
    engine = create_engine(
        url, poolclass=QueuePool, pool_size=_KEPT_CONNECTIONS, max_overflow=-1, connect_args={"timeout": patience}
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # sqlite3 begins nothing by itself
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
