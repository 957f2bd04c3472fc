"""Fill in the middle: some documents are rearranged so that a model learns to write what stands between two texts.

As in DeepSeek-V3 (arXiv 2412.19437, section 4.1): prefix, suffix, middle, at document level, for a tenth of them.
Invariant: which documents, and where they are divided, follows from their hash alone.
"""

from __future__ import annotations

RATE = 0.1


def is_rearranged(sha256: bytes, rate: float) -> bool:
    """Whether a document of this hash is one of the share `rate`. Other bytes of the hash decide the held-out side."""
    return int.from_bytes(sha256[8:16], "big") < rate * 2**64


def divide(text: str, sha256: bytes) -> tuple[str, str, str] | None:
    """Prefix, middle and suffix, divided between any two characters alike; None for less than three characters."""
    if len(text) < 3:
        return None
    places = (int.from_bytes(sha256[16:24], "big"), int.from_bytes(sha256[24:32], "big"))
    first, second = sorted(place * (len(text) + 1) >> 64 for place in places)
    return text[:first], text[first:second], text[second:]
