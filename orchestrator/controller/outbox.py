"""Notes on their way and those that have arrived: `<home>/notes/<uid>.json`, one file for each job.

Not in the run's folder: that goes with a job that is deleted, and its last word with it; and a service that starts
again would have to look into every folder. Written by one process at a time, the service. Invariant: a file is replaced
whole; a note that is in it is never put in again.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from model.config import Frozen
from orchestrator.controller.notes import Note, body

PATIENCE_SECONDS = 24 * 3600.0
"""From the moment of which a note speaks until nobody tries to deliver it any more."""
_FIRST, _LONGEST = 10.0, 3600.0
"""Seconds to the second try, and between any two."""
_MOST = 500


class Entry(Frozen):
    """A note on its way to one address, or what became of it."""

    id: str
    to: Literal["job", "team"]
    team: str
    url: str | None = None
    """Of the job; that of a team is looked up when it is posted."""
    at: float
    text: str
    tries: int = 0
    next: float = 0.0
    """Unix time before which it is not tried again."""
    done: Literal["delivered", "given up"] | None = None
    error: str = ""
    """Of the last try."""

    def due(self, now: float) -> bool:
        """Also where the clock was set back since: no pause is longer than the longest."""
        return self.done is None and (now >= self.next or self.next - now > _LONGEST)

    def failed(self, error: str, now: float) -> Entry:
        """After one more try."""
        tries = self.tries + 1
        over = now - self.at > PATIENCE_SECONDS
        pause = min(_LONGEST, _FIRST * 2.0 ** min(tries - 1, 20))
        changed = {"tries": tries, "next": now + pause, "error": error[:500], "done": "given up" if over else None}
        return self.model_copy(update=changed)

    def delivered(self) -> Entry:
        return self.model_copy(update={"tries": self.tries + 1, "done": "delivered", "error": ""})


_ENTRIES: TypeAdapter[list[Entry]] = TypeAdapter(list[Entry])


def folder(home: Path) -> Path:
    """Of all jobs."""
    return home / "notes"


def outbox(home: Path, uid: str) -> Path:
    """Of one job."""
    return folder(home) / f"{uid}.json"


def entry(note: Note, to: Literal["job", "team"], team: str, url: str | None) -> Entry:
    """A note that has not been tried yet."""
    return Entry(id=note.id, to=to, team=team, url=url, at=note.at, text=json.dumps(body(note)))


def added(known: list[Entry], new: Iterable[Entry], now: float) -> list[Entry]:
    """With what is new and not too old; without what was done so long ago that it cannot come again. Pure."""
    there = {(one.id, one.to) for one in known}
    fresh = [one for one in new if (one.id, one.to) not in there and now - one.at <= PATIENCE_SECONDS]
    kept = [one for one in known if one.done is None or now - one.at <= 2 * PATIENCE_SECONDS]
    return (kept + fresh)[-_MOST:]


def read(path: Path) -> list[Entry]:
    """Empty where there is none; a damaged file counts as none: the next process finds its notes anew."""
    try:
        return _ENTRIES.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return []


def write(path: Path, entries: list[Entry]) -> None:
    """Whole, readable for its owner only: an address may hold a secret. Without entries there is no file."""
    if not entries:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_ENTRIES.dump_json(entries))
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
