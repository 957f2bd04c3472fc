"""Logs of an archive as text by byte offset: whole lines, made harmless. Pure, but for the source that is read.

Invariants: no piece ends within a character of UTF-8; a line is cut only if it is longer than a piece or if nothing
will follow; pieces are bounded, and a tail is found without reading what comes before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.launch.archive import Source

PIECE = 32 << 10
"""Bytes of a piece at most."""
_BACKWARDS = 64 << 10

_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, movements
    r"|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)"  # titles, links
    r"|\x1b[ -/]*[0-Z\\^-~]"
)
_DANGEROUS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Controls but tab and newline, and marks that turn the direction of what is shown."""


@dataclass(frozen=True)
class Piece:
    """Some of a log."""

    text: str
    """Without the newline that ends it."""
    next: int
    """Where to go on, in bytes."""
    whole: bool
    """Whether a newline ended it."""


def log_piece(source: Source, offset: int, *, final: bool, limit: int = PIECE) -> Piece | None:
    """Lines from byte `offset` on; None if there are none (yet). `final`: nothing will follow, so that a last line
    without its newline is one."""
    data = source.read(offset, limit)
    end = data.rfind(b"\n") + 1
    if end:
        return Piece(harmless(data[: end - 1]), offset + end, whole=True)
    if len(data) == limit:
        end = len(data) - _begun(data)
        return Piece(harmless(data[:end]), offset + end, whole=False)
    if data and final:
        return Piece(harmless(data), offset + len(data), whole=False)
    return None


def harmless(data: bytes) -> str:
    """Text that a terminal can show without being steered: no escape sequences, controls as pictures (␀), returns as
    newlines, bytes that are no UTF-8 as �."""
    text = data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return _DANGEROUS.sub(_picture, _SEQUENCES.sub("", text))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "�"


def _begun(data: bytes) -> int:
    """Length of a character at the end that is not complete; 0 where it is, or is none at all."""
    for length in range(1, min(4, len(data))):
        byte = data[-length]
        if byte >= 0xC0:  # the first one of several
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return length if length < needed else 0
        if byte < 0x80:
            return 0
    return 0


def tail_offset(source: Source, lines: int) -> int:
    """Where the last `lines` lines begin, one without its newline counted too; read backwards in blocks."""
    end = source.size()
    if lines <= 0 or end == 0:
        return end
    wanted = lines + (source.read(end - 1, 1) == b"\n")
    while end > 0:
        begin = max(0, end - _BACKWARDS)
        data = source.read(begin, end - begin)
        found = data.count(b"\n")
        if found >= wanted:
            at = len(data)
            for _ in range(wanted):
                at = data.rfind(b"\n", 0, at)
            return begin + at + 1
        wanted -= found
        end = begin
    return 0
