"""The audit record: who changed what, when, from where it was asked, and what came of it; denied requests too.

Called by the API. A record is begun before the change and finished after it, so that even a crash in between leaves a
trace: a record without a status is of a request whose end nobody saw. Nothing here is ever changed or removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import RowMapping, insert, select, update

from orchestrator.errors import UsageError
from orchestrator.store.cursor import cursor, position
from orchestrator.store.database import Database
from orchestrator.store.document import timestamp
from orchestrator.store.tables import audit

MAX_LIMIT = 1000
_MAX_PATH = 500


@dataclass(frozen=True)
class Deed:
    """A request that changes something, or would."""

    principal: str
    """Name of the token; empty: none that is known."""
    method: str
    path: str
    request_id: str
    groups: str = ""
    """In which a cluster counts the principal, with commas between."""
    job: str = ""
    """The namespace and name that the body is about, where the path does not say it."""
    digest: str = ""
    """SHA-256 of the body; empty: there was none, or nobody read it."""


@dataclass(frozen=True)
class AuditRecord:
    """A deed, when it was asked for, and what came of it."""

    deed: Deed
    at: datetime
    status: int | None
    """Of the HTTP answer; None: nobody saw the end (the service was killed), or it is still going on."""

    @property
    def outcome(self) -> str:
        """In one word: done, denied (who asks may not), refused (it cannot be), failed (our fault), unknown."""
        if self.status is None:
            return "unknown"
        if self.status < 400:
            return "done"
        if self.status in (401, 403, 421, 429):
            return "denied"
        return "refused" if self.status < 500 else "failed"


@dataclass(frozen=True)
class AuditPage:
    """Newest first."""

    records: Sequence[AuditRecord]
    next: str = ""


class Audit:
    """The audit record of a home."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._clock = clock

    def begin(self, deed: Deed, status: int | None = None) -> int:
        """Before it is done; -> number of the record. With a status for what is over at once."""
        values = {
            "at": timestamp(self._clock()),
            "principal": deed.principal,
            "method": _plain(deed.method),
            "path": _plain(deed.path),
            "request_id": deed.request_id,
            "teams": _plain(deed.groups),
            "status": status,
        }
        with self._database.write() as connection:
            [number] = connection.execute(insert(audit).values(values)).inserted_primary_key or (0,)
        return int(number)

    def finish(self, number: int, status: int, *, job: str = "", digest: str = "") -> None:
        """What came of it, and what it was about, by what was read of the request."""
        values = {"status": status, "job": _plain(job), "digest": digest}
        with self._database.write() as connection:
            connection.execute(update(audit).where(audit.c.seq == number).values(values))

    def records(self, *, limit: int = 100, after: str = "") -> AuditPage:
        """UsageError for a wrong limit or cursor."""
        if not 1 <= limit <= MAX_LIMIT:
            raise UsageError(f"limit is {limit}: from 1 to {MAX_LIMIT} records fit on a page")
        wanted = select(audit).order_by(audit.c.seq.desc()).limit(limit + 1)
        if after:
            wanted = wanted.where(audit.c.seq < position(after))
        with self._database.read() as connection:
            rows = connection.execute(wanted).mappings().all()
        shown = rows[:limit]
        return AuditPage([_record(row) for row in shown], cursor(shown[-1]["seq"]) if len(rows) > limit else "")


def _plain(text: str) -> str:
    """Bounded, and without characters that a terminal would obey."""
    return "".join(one if one.isprintable() else "?" for one in text[:_MAX_PATH])


def _record(row: RowMapping) -> AuditRecord:
    names = ("principal", "method", "path", "request_id", "teams", "job", "digest")
    deed = Deed(*(row[name] for name in names))
    return AuditRecord(deed, datetime.fromisoformat(row["at"]), row["status"])
