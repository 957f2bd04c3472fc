"""Where a page of a list ended, as text that users only pass on: the number of its last row, or when that was made."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from struct import Struct
from struct import error as StructError

from orchestrator.errors import UsageError

_MOMENT = Struct(">Q16s")


def cursor(number: int) -> str:
    """Of what follows a row."""
    return urlsafe_b64encode(str(number).encode()).decode().rstrip("=")


def position(text: str) -> int:
    """Of a cursor; UsageError for one that was never given out."""
    try:
        found = int(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if 0 < found < 2**63 and cursor(found) == text:
            return found
    except ValueError:
        pass
    raise _unknown(text)


def cursor_at(moment: int, tie: bytes) -> str:
    """Of what follows a job that was made at a moment (microseconds); `tie`: 16 bytes of its own."""
    return urlsafe_b64encode(_MOMENT.pack(moment, tie)).decode()


def position_at(text: str) -> tuple[int, bytes]:
    """Of such a cursor; UsageError for one that was never given out."""
    try:
        moment, tie = _MOMENT.unpack(urlsafe_b64decode(text))
    except (ValueError, StructError):
        raise _unknown(text) from None
    if cursor_at(moment, tie) != text:
        raise _unknown(text)
    return moment, tie


def _unknown(text: str) -> UsageError:
    return UsageError(f"cursor {text[:40]!r} is none of ours: take it from `next` of the page before, or leave it out")
