"""What a follower of a job is sent next: a look at its archive and at where the job stands, again and again. Pure, but
for what is read.

Invariant: where the job stands is asked before its files are read, so that what a job wrote before it ended is sent
before its end is told. Each message carries the place behind it: whoever goes on from there loses and doubles nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.errors import NotFound, UsageError
from orchestrator.launch.archive import Archive
from orchestrator.launch.logtext import PIECE, log_piece, tail_offset
from orchestrator.launch.pages import Entry, event_page, require_within
from orchestrator.status import Phase

_EVENTS_A_LOOK = 256
_PIECES_A_LOOK = 8


@dataclass(frozen=True)
class Standing:
    """Where a job stands."""

    phase: Phase
    over: bool
    """Whether nothing more will come of it, as things are."""
    gone: bool = False
    """Whether it was deleted."""


@dataclass(frozen=True)
class Message:
    """What is sent at once."""

    data: str
    id: str


@dataclass(frozen=True)
class Look:
    """What one look has found."""

    messages: Sequence[Message]
    end: Standing | None = None
    """Set when all was sent."""


class Follower(Protocol):
    """Called again and again, from any thread, by one caller at a time."""

    def __call__(self) -> Look: ...


AskStanding = Callable[[], Standing]


class RecordFollower:
    """Events of all kinds or of one, from a byte offset on."""

    def __init__(
        self, archive: Archive, ask: AskStanding, show: Callable[[Entry], str], *, offset: int, kind: str | None = None
    ) -> None:
        """UsageError for an offset beyond the end."""
        self._source, self._ask, self._show, self._kind = archive.events(), ask, show, kind
        self._offset = offset
        require_within(self._source, offset)

    def __call__(self) -> Look:
        standing = self._ask()
        page = event_page(self._source, self._offset, limit=_EVENTS_A_LOOK, kind=self._kind)
        self._offset = page.next
        messages = [Message(self._show(entry), str(entry.next)) for entry in page.entries]
        return Look(messages, standing if standing.over and not page.more else None)


@dataclass(frozen=True)
class Place:
    """In the logs of a job."""

    attempt: int
    offset: int = 0

    @classmethod
    def read(cls, text: str) -> Place:
        """As `str` writes it; UsageError for anything else."""
        attempt, dot, offset = text.partition(".")
        if dot and all(part.isascii() and part.isdecimal() and len(part) <= 15 for part in (attempt, offset)):
            return cls(int(attempt), int(offset))
        raise UsageError(f"Last-Event-ID {text[:40]!r} is none of ours, which are ATTEMPT.OFFSET: leave it out")

    def __str__(self) -> str:
        return f"{self.attempt}.{self.offset}"


class LogFollower:
    """Logs from a place on: to the end of its attempt, and, unless it is `alone`, of those that follow."""

    def __init__(self, archive: Archive, ask: AskStanding, place: Place, *, alone: bool = False) -> None:
        self._archive, self._ask, self._place, self._alone = archive, ask, place, alone

    def __call__(self) -> Look:
        standing, newest = self._ask(), self._archive.newest_attempt()
        messages: list[Message] = []
        while len(messages) < _PIECES_A_LOOK:
            past = self._place.attempt < newest
            if (message := self._next(final=past or standing.over)) is not None:
                messages.append(message)
            elif past and not self._alone:
                self._place = Place(self._place.attempt + 1)
            else:
                return Look(messages, standing if standing.over or past else None)
        return Look(messages)

    def _next(self, *, final: bool) -> Message | None:
        attempt, offset = self._place.attempt, self._place.offset
        piece = log_piece(self._archive.log(attempt), offset, final=final, limit=PIECE)
        if piece is None:
            return None
        self._place = Place(attempt, piece.next)
        return Message(piece.text, str(self._place))


def beginning(archive: Archive, attempt: int | None, tail: int | None) -> Place:
    """Where to begin: in an attempt, or in the newest one; with the last `tail` lines, or with all.

    NotFound for an attempt that never was.
    """
    newest = archive.newest_attempt()
    if attempt is not None and attempt > newest:
        had = f"it has had {newest}" if newest else "it has had none yet"
        raise NotFound(f"there is no attempt {attempt}: {had}")
    chosen = newest if attempt is None else attempt
    return Place(chosen, 0 if tail is None or not chosen else tail_offset(archive.log(chosen), tail))


def resumed(archive: Archive, last: str) -> Place:
    """The place that a reader has come to; UsageError for one that is not there."""
    place = Place.read(last)
    newest = archive.newest_attempt()
    if place.attempt > newest:
        raise UsageError(f"Last-Event-ID {last} is of attempt {place.attempt}, and there are {newest}: leave it out")
    require_within(archive.log(place.attempt), place.offset)
    return place


def read_offset(text: str) -> int:
    """Of events; UsageError for what is none."""
    if text.isascii() and text.isdecimal() and len(text) <= 15:
        return int(text)
    raise UsageError(f"{text[:40]!r} is no offset: take `next` of a page or the id of an event, or leave it out")


def end_data(standing: Standing) -> str:
    """What the last event of a stream says."""
    return json.dumps({"phase": standing.phase.value, "deleted": standing.gone})
