"""The job store of one machine: documents in a SQLite file. See `store.base` for what each method promises.

A document that this version cannot read stops nobody else: `open_jobs` leaves it out and says so in the log; whoever
asks for that job is told.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from json import loads
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, RowMapping, Select, delete, func, insert, select, update

from orchestrator.errors import Conflict, NotFound, Unavailable, UsageError
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus, Phase, Reason
from orchestrator.store.base import MAX_LIMIT, DocumentPage, Page, Query, StoredJob, TextPage, Wish, is_unlinked
from orchestrator.store.cursor import cursor, position
from orchestrator.store.database import Database
from orchestrator.store.document import Document, assembled, text, timestamp
from orchestrator.store.tables import jobs
from orchestrator.store.tally import TeamTally, tally

_LOG = logging.getLogger(__name__)
_NONE: Mapping[str, tuple[int, Wish]] = MappingProxyType({})


class SqliteStore:
    """The `JobStore` of a home; one for all threads of a process."""

    def __init__(self, path: Path | Database, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """`path`: of the database file, made if there is none. Unavailable if it cannot be used."""
        self.database = path if isinstance(path, Database) else Database(path)
        self._clock = clock
        self._read: dict[tuple[str, int], StoredJob] = {}
        """Open jobs by uid and version, as they were read: the controller looks at all of them again and again."""

    def create(self, job: TrainingJob, *, by: str) -> StoredJob:
        name, namespace, now = job.metadata.name, job.metadata.namespace, self._clock()
        wish, status = Wish(job.model_copy(update={"status": None})), JobStatus()
        with self.database.write() as connection:
            if (there := _find(connection, namespace, name)) is not None:
                raise Conflict(
                    f"{namespace}/{name} exists already ({there['phase']}, of {there['created_at']}): give the job "
                    "another name, or delete that one first"
                )
            stored = StoredJob(
                uid=str(uuid.uuid4()),
                wish=wish,
                status=status,
                generation=1,
                version=1,
                created_at=now,
                created_by=by,
                folder=self._free_folder(connection, f"{name}-{now.astimezone(UTC):%Y%m%d-%H%M%S}"),
            )
            connection.execute(insert(jobs).values(_row(stored)))
        return stored

    def adopt(self, job: TrainingJob, *, uid: str, folder: str, status: JobStatus, by: str) -> StoredJob:
        """A run that was made without a store, under its own uid. Conflict if its name is taken."""
        name, namespace = job.metadata.name, job.metadata.namespace
        with self.database.write() as connection:
            if _find(connection, namespace, name) is not None:
                raise Conflict(f"{namespace}/{name} exists already: give the run another name")
            wish = Wish(job.model_copy(update={"status": None}))
            stored = StoredJob(
                uid, wish, status.model_copy(update={"observed_generation": 0}), 1, 1, self._clock(), by, folder
            )
            connection.execute(insert(jobs).values(_row(stored)))
        return stored

    def get(self, namespace: str, name: str) -> StoredJob:
        with self.database.read() as connection:
            return _stored(_require(connection, namespace, name))

    def document(self, namespace: str, name: str) -> Document:
        """As `get`, for answers."""
        with self.database.read() as connection:
            return _document(_require(connection, namespace, name))

    def by_uid(self, uid: str) -> StoredJob | None:
        with self.database.read() as connection:
            row = connection.execute(select(jobs).where(jobs.c.uid == uid)).mappings().first()
        return None if row is None else _stored(row)

    def list(self, query: Query) -> Page:
        rows, following = self._page(query)
        return Page(tuple(map(_stored, rows)), following)

    def documents(self, query: Query) -> DocumentPage:
        rows, following = self._page(query)
        return DocumentPage(tuple(map(_document, rows)), following)

    def texts(self, query: Query) -> TextPage:
        rows, following = self._page(query)
        return TextPage(tuple(text(row["job"], row["status"], _facts(row)) for row in rows), following)

    def open_jobs(self) -> Sequence[StoredJob]:
        with self.database.read() as connection:
            marks = select(jobs.c.uid, jobs.c.version).where(jobs.c.open).order_by(jobs.c.seq)
            found = [(uid, version) for uid, version in connection.execute(marks)]
            new = [uid for uid, version in found if (uid, version) not in self._read]
            rows = connection.execute(select(jobs).where(jobs.c.uid.in_(new))).mappings().all() if new else ()
        wishes = {job.uid: (job.generation, job.wish) for job in self._read.values()}
        known = self._read | {(job.uid, job.version): job for job in _readable(rows, wishes)}
        self._read = {mark: known[mark] for mark in found if mark in known}
        return tuple(self._read.values())

    def unlinked(self) -> Sequence[StoredJob]:
        away = func.instr(jobs.c.status, f'"reason":"{Reason.SERVER_UNREACHABLE}"') > 0  # or some message says so
        maybe = (func.instr(jobs.c.status, '"mlflow":{') == 0) | away
        with self.database.read() as connection:
            rows = connection.execute(select(jobs).where(maybe).order_by(jobs.c.seq)).mappings().all()
        found = _readable(rows)
        return tuple(job for job in found if is_unlinked(job.status))

    def change(
        self,
        namespace: str,
        name: str,
        edit: Callable[[Wish], Wish],
        *,
        generation: int | None = None,
        uid: str | None = None,
    ) -> StoredJob:
        with self.database.write() as connection:
            before = _stored(_require(connection, namespace, name))
            before.require(generation=generation, uid=uid)
            wish = edit(before.wish)
            if wish == before.wish:
                return before
            before.wish.require_lasting(wish)
            after = StoredJob(
                uid=before.uid,
                wish=wish,
                status=before.status,
                generation=before.generation + 1,
                version=before.version + 1,
                created_at=before.created_at,
                created_by=before.created_by,
                folder=before.folder,
            )
            connection.execute(update(jobs).where(jobs.c.uid == before.uid).values(_row(after)))
        return after

    def set_status(self, uid: str, status: JobStatus) -> bool:
        body = _status_json(status)
        with self.database.write() as connection:
            stored = connection.execute(select(jobs.c.status).where(jobs.c.uid == uid)).scalar()
            if stored is None or stored == body:  # nothing new: no version, no write to the disk
                return stored is not None
            values = {
                "status": body,
                "phase": status.phase.value,
                "observed_generation": status.observed_generation,
                "version": jobs.c.version + 1,
            }
            connection.execute(update(jobs).where(jobs.c.uid == uid).values(values))
        return True

    def remove(self, uid: str) -> None:
        with self.database.write() as connection:
            connection.execute(delete(jobs).where(jobs.c.uid == uid))

    def tally(self, team: str | None = None) -> Sequence[TeamTally]:
        wanted = select(jobs.c.namespace, jobs.c.phase, func.json_extract(jobs.c.status, "$.cost"))
        if team is not None:
            wanted = wanted.where(jobs.c.namespace == team)
        with self.database.read() as connection:
            found = connection.execute(wanted).all()
        return tally((name, Phase(phase), None if cost is None else loads(cost)) for name, phase, cost in found)

    def _page(self, query: Query) -> tuple[Sequence[RowMapping], str]:
        """The rows that were asked for, and the cursor behind them."""
        if not 1 <= query.limit <= MAX_LIMIT:
            raise UsageError(f"limit is {query.limit}: from 1 to {MAX_LIMIT} jobs fit on a page")
        with self.database.read() as connection:
            rows = connection.execute(_selected(query).limit(query.limit + 1)).mappings().all()
        shown = rows[: query.limit]
        return shown, cursor(shown[-1]["seq"]) if len(rows) > len(shown) else ""

    def _free_folder(self, connection: Connection, wanted: str) -> str:
        """A name that no job has and nothing in the home: what a forgotten job left there is not written over."""
        number, folder = 1, wanted
        while (self.database.path.parent / folder).exists() or _has_folder(connection, folder):
            number += 1
            folder = f"{wanted}-{number}"
        return folder


def _selected(query: Query) -> Select[Any]:
    wanted = select(jobs).order_by(jobs.c.seq.desc())
    if query.namespace is not None:
        wanted = wanted.where(jobs.c.namespace == query.namespace)
    if query.phases:
        wanted = wanted.where(jobs.c.phase.in_(sorted(phase.value for phase in query.phases)))
    if query.name_contains:
        wanted = wanted.where(func.instr(jobs.c.name, query.name_contains) > 0)
    if query.after:
        wanted = wanted.where(jobs.c.seq < position(query.after))
    return wanted


def _find(connection: Connection, namespace: str, name: str) -> RowMapping | None:
    wanted = select(jobs).where(jobs.c.namespace == namespace, jobs.c.name == name)
    return connection.execute(wanted).mappings().first()


def _require(connection: Connection, namespace: str, name: str) -> RowMapping:
    row = _find(connection, namespace, name)
    if row is None:
        raise NotFound(f"there is no job {namespace}/{name}: `fathom list` shows those there are")
    return row


def _has_folder(connection: Connection, folder: str) -> bool:
    return connection.execute(select(jobs.c.seq).where(jobs.c.folder == folder)).first() is not None


def _row(stored: StoredJob) -> dict[str, Any]:
    wish = stored.wish
    return {
        "uid": stored.uid,
        "namespace": stored.namespace,
        "name": stored.name,
        "phase": stored.status.phase.value,
        "generation": stored.generation,
        "observed_generation": stored.status.observed_generation,
        "version": stored.version,
        "created_at": timestamp(stored.created_at),
        "created_by": stored.created_by,
        "folder": stored.folder,
        "cancelled_at": None if wish.cancelled_at is None else timestamp(wish.cancelled_at),
        "deleted_at": None if wish.deleted_at is None else timestamp(wish.deleted_at),
        "keep_files": wish.keep_files,
        "force": wish.force,
        "granted_after": wish.granted_after,
        "resumed": wish.resumed,
        "job": wish.job.model_dump_json(by_alias=True, exclude_none=True),
        "status": _status_json(stored.status),
    }


def _status_json(status: JobStatus) -> str:
    return status.model_dump_json(by_alias=True, exclude_none=True)


def _wish(row: RowMapping) -> Wish:
    return Wish(
        job=TrainingJob.model_validate_json(row["job"]),
        cancelled_at=_moment(row["cancelled_at"]),
        deleted_at=_moment(row["deleted_at"]),
        keep_files=row["keep_files"],
        force=row["force"],
        granted_after=row["granted_after"],
        resumed=row["resumed"],
    )


def _stored(row: RowMapping, wish: Wish | None = None) -> StoredJob:
    """Unavailable where this version cannot read what is stored. `wish`: where that is known to be the same still."""
    try:
        return StoredJob(
            uid=row["uid"],
            wish=_wish(row) if wish is None else wish,
            status=JobStatus.model_validate_json(row["status"]),
            generation=row["generation"],
            version=row["version"],
            created_at=datetime.fromisoformat(row["created_at"]),
            created_by=row["created_by"],
            folder=row["folder"],
        )
    except (ValidationError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise Unavailable(
            f"what is stored of {row['namespace']}/{row['name']} cannot be read by this version of Fathom ({first}): "
            "use the version that wrote it"
        ) from error


def _readable(rows: Sequence[RowMapping], wishes: Mapping[str, tuple[int, Wish]] = _NONE) -> Iterator[StoredJob]:
    """`wishes`: those that were read before, with their generations; most jobs change by their status only."""
    for row in rows:
        generation, wish = wishes.get(row["uid"], (0, None))
        try:
            yield _stored(row, wish if generation == row["generation"] else None)
        except Unavailable as error:
            _LOG.error("left out: %s", error)


def _facts(row: RowMapping) -> dict[str, Any]:
    return {
        "uid": row["uid"],
        "generation": row["generation"],
        "version": row["version"],
        "createdAt": row["created_at"],
        "createdBy": row["created_by"],
        "folder": row["folder"],
        "cancelledAt": row["cancelled_at"],
        "deletedAt": row["deleted_at"],
    }


def _document(row: RowMapping) -> Document:
    return assembled(loads(row["job"]), loads(row["status"]), _facts(row))


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
