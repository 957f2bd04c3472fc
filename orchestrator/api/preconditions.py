"""`ETag` and `If-Match` (RFC 9110): a change is made to the state that its author has seen, or not at all. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.errors import PreconditionFailed, UsageError
from orchestrator.store.base import StoredJob

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_LIST = re.compile(rf"\s*{_TAG}\s*(?:,\s*{_TAG}\s*)*")


def etag(stored: StoredJob) -> str:
    """Of the wish: the status changes all the time, and nobody changes that but the controller."""
    return f'"{stored.uid}-{stored.generation}"'


def require_match(given: Sequence[str], stored: StoredJob) -> bool:
    """Whether there was a condition, which holds: one of the tags (weak ones never match), or *.

    PreconditionFailed if it does not hold; UsageError for what is no list of tags.
    """
    if not given:
        return False
    text = ", ".join(given)
    if text.strip() == "*":
        return False
    if not _LIST.fullmatch(text):
        raise UsageError(f"If-Match is {text[:80]!r}: write * or tags in quotes, as an ETag says, e.g. {etag(stored)}")
    if etag(stored) not in re.findall(_TAG, text):
        raise PreconditionFailed(
            f"{stored.namespace}/{stored.name} is at {etag(stored)}, If-Match names {text[:200]}: read it again"
        )
    return True
