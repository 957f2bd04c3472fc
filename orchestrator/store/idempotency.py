"""The same request twice has one effect: answers by Idempotency-Key, kept for a day.

Called by the API. A request is claimed, then does its work and leaves its answer in one transaction; so a claim whose
process died stands for work that never happened, and `clear` (when a service starts) may drop all claims. Only answers
to what succeeded are kept: an error changed nothing, and may not be one the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from json import dumps, loads

from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update

from orchestrator.errors import IdempotencyInFlight, IdempotencyMismatch
from orchestrator.store.database import Database
from orchestrator.store.document import timestamp
from orchestrator.store.tables import answers

KEPT = timedelta(hours=24)
WORKED_ON = timedelta(minutes=5)
"""After which a claim counts no more: its request failed, and could not even release it, e.g. on a full disk."""


@dataclass(frozen=True)
class Request:
    """What is to happen once."""

    key: str
    principal: str
    """Name of the token: two people's keys have nothing to do with each other."""
    route: str
    digest: str
    """Hash of everything else that the request says."""

    @property
    def is_it(self) -> ColumnElement[bool]:
        return and_(answers.c.key == self.key, answers.c.principal == self.principal, answers.c.route == self.route)


@dataclass(frozen=True)
class Answer:
    """What was answered."""

    status: int
    headers: Mapping[str, str]
    body: str


class Idempotency:
    """Remembered answers of a home."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._clock = clock

    def claim(self, request: Request) -> Answer | None:
        """The answer that was given, or None: it is yours to do, and to `keep` or `release`.

        IdempotencyMismatch if the key came with another request before; IdempotencyInFlight while that one is worked
        on.
        """
        now = self._clock()
        with self._database.write() as connection:
            stuck = and_(answers.c.status.is_(None), answers.c.at < timestamp(now - WORKED_ON))
            connection.execute(delete(answers).where(or_(answers.c.at < timestamp(now - KEPT), stuck)))
            row = connection.execute(select(answers).where(request.is_it)).mappings().first()
            if row is None:
                values = {"key": request.key, "principal": request.principal, "route": request.route}
                connection.execute(insert(answers).values(values | {"request": request.digest, "at": timestamp(now)}))
                return None
        if row["request"] != request.digest:
            raise IdempotencyMismatch(
                f"Idempotency-Key {request.key!r} came with another request {row['at']}: use a new key for this one"
            )
        if row["status"] is None:
            raise IdempotencyInFlight(
                f"the request with Idempotency-Key {request.key!r} is still being worked on: try again in a second"
            )
        return Answer(row["status"], loads(row["headers"]), row["body"])

    def keep(self, request: Request, answer: Answer) -> None:
        """Within the transaction that did the work (`Database.write`)."""
        values = {"status": answer.status, "headers": dumps(dict(answer.headers)), "body": answer.body}
        with self._database.write() as connection:
            connection.execute(update(answers).where(request.is_it).values(values))

    def release(self, request: Request) -> None:
        """It failed: whoever comes next may try."""
        with self._database.write() as connection:
            connection.execute(delete(answers).where(request.is_it, answers.c.status.is_(None)))

    def clear(self) -> None:
        """Drop the claims of a service that is gone."""
        with self._database.write() as connection:
            connection.execute(delete(answers).where(answers.c.status.is_(None)))
