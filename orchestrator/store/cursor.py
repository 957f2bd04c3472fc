"""Where a page of a list ended: the number of its last row, as text that users only pass on."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

from orchestrator.errors import UsageError


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
    raise UsageError(f"cursor {text[:40]!r} is none of ours: take it from `next` of the page before, or leave it out")
