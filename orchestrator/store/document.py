"""A stored job as the JSON document that the API answers with: the same from a `StoredJob` and from a row."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from json import dumps, loads
from typing import Any

from orchestrator.store.base import StoredJob

Document = dict[str, Any]


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: as text in the order of time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def document(stored: StoredJob) -> Document:
    """The answer about one job."""
    wish = stored.wish
    facts = {
        "uid": stored.uid,
        "generation": stored.generation,
        "version": stored.version,
        "createdAt": timestamp(stored.created_at),
        "createdBy": stored.created_by,
        "folder": stored.folder,
        "cancelledAt": None if wish.cancelled_at is None else timestamp(wish.cancelled_at),
        "deletedAt": None if wish.deleted_at is None else timestamp(wish.deleted_at),
    }
    return assembled(wish.job.document(), stored.status.document(), facts)


def text(job: str, status: str, facts: Mapping[str, Any]) -> str:
    """The same as JSON, from what the store has as JSON: of a long list most is passed on as it is."""
    head, mark, spec = job.partition(',"spec":')
    assert mark, "a job is stored by its own model, with the spec last"
    begun = loads(head + "}")
    known = {name: value for name, value in facts.items() if value is not None}
    start = dumps({**begun, "metadata": {**begun["metadata"], **known}}, ensure_ascii=False, separators=(",", ":"))
    return f'{start[:-1]},"spec":{spec[:-1]},"status":{status}}}'


def assembled(job: Document, status: Document, facts: Mapping[str, Any]) -> Document:
    """From the document of a job without status, that of its status, and what the store knows besides."""
    known = {name: value for name, value in facts.items() if value is not None}
    return {**job, "metadata": {**job["metadata"], **known}, "status": status}
