"""Events of an archive in pages by byte offset. Pure, but for the source that is read.

Invariants: a last line without its newline is never served, a line that is no event stops nobody, a page needs memory
for a few blocks only, whatever the file; following `next` serves every event once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import UsageError
from orchestrator.launch.archive import Source
from orchestrator.launch.events import Event

BLOCK = 1 << 20
"""Bytes that are read at once; a longer line is no event."""
MAX_SCAN = 256 << 20
"""Bytes that are looked through for one page, however few events of the wanted kind are in them."""
MAX_EVENTS = 1000
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)
_LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""What a date can say."""


@dataclass(frozen=True)
class Entry:
    """An event, and where the line after it begins."""

    event: Event
    next: int


@dataclass(frozen=True)
class EventPage:
    """Some events in the order of the file."""

    entries: tuple[Entry, ...]
    next: int
    """Where to go on."""
    more: bool
    """Whether complete lines follow already."""


def event_page(source: Source, offset: int = 0, *, limit: int = MAX_EVENTS, kind: str | None = None) -> EventPage:
    """At most `limit` events from byte `offset` on, of all kinds or of one. UsageError for an offset beyond the end."""
    require_within(source, offset)
    entries: list[Entry] = []
    at = offset
    for line, end in _lines(source, offset):
        if len(entries) == limit or at - offset >= MAX_SCAN:
            return EventPage(tuple(entries), at, more=True)
        at = end
        if kind is None or kind.encode() in line:  # cheap, and never wrong: validation decides
            event = _event(line)
            if event is not None and kind in (None, event.kind):
                entries.append(Entry(event, end))
    return EventPage(tuple(entries), at, more=False)


def require_within(source: Source, offset: int) -> None:
    """UsageError for a place that is not there."""
    if not 0 <= offset <= (size := source.size()):
        raise UsageError(f"offset {offset} is beyond the end at {size}: take it from `next` of a page, or begin at 0")


def _lines(source: Source, offset: int) -> Iterator[tuple[bytes, int]]:
    """Complete lines and where each ends; nothing in place of one that is too long, or begun before `offset`."""
    inside = offset > 0 and source.read(offset - 1, 1) != b"\n"
    while True:
        data = source.read(offset, BLOCK)
        lines = data.split(b"\n")
        for line in lines[:-1]:
            offset += len(line) + 1
            yield (b"" if inside else line), offset
            inside = False
        if len(data) < BLOCK:
            return
        if len(lines) == 1:  # a block without an end of line
            inside = True
            offset += len(data)
            yield b"", offset


def _event(line: bytes) -> Event | None:
    try:
        event = _EVENT.validate_json(line)
    except ValidationError:
        return None
    return event if event.time <= _LATEST else None
