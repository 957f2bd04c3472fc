"""Looks into a prepared dataset: lengths of its documents, and some of them decoded. Memory does not grow with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.data.shards import TokenSplit
from model.tokenizer import Tokenizer

CHUNK = 4 * 1024 * 1024
EXACT = 4096
"""Up to this length documents are counted exactly, beyond to 1/64 of an octave."""
_OCTAVE = 64


@dataclass
class Lengths:
    """Tokens per document, end-of-text not counted."""

    documents: int = 0
    tokens: int = 0
    longest: int = 0
    _counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(EXACT + 40 * _OCTAVE, dtype=np.int64))

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Count some documents."""
        if not lengths.size:
            return
        self.documents += lengths.size
        self.tokens += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max()))
        octaves = np.log2(np.maximum(lengths, EXACT) / EXACT) * _OCTAVE
        bins = np.where(lengths < EXACT, lengths, EXACT + octaves.astype(np.int64))
        self._counts += np.bincount(bins, minlength=self._counts.size)

    def quantile(self, share: float) -> int:
        """The length that this share of the documents does not exceed."""
        if not self.documents:
            return 0
        place = int(np.searchsorted(np.cumsum(self._counts), share * self.documents))
        value = place if place < EXACT else round(EXACT * 2 ** ((place - EXACT) / _OCTAVE))
        return min(value, self.longest)


def lengths(split: TokenSplit, end_of_text: int) -> Lengths:
    """Of all documents of a split."""
    found, before = Lengths(), -1
    for start in range(0, len(split), CHUNK):
        tokens = split.read(start, min(start + CHUNK, len(split)))
        ends = np.flatnonzero(tokens == end_of_text) + start
        found.add(np.diff(ends, prepend=before) - 1)
        before = int(ends[-1]) if ends.size else before
    return found


def samples(split: TokenSplit, tokenizer: Tokenizer, count: int, seed: int, limit: int = 300) -> Iterator[str]:
    """The beginnings of some documents, at most `limit` tokens each, evenly apart from a place drawn by `seed`.

    The tokens of fill-in-the-middle are shown by their names.
    """
    names = dict(zip(tokenizer.fim or (), ("⟨prefix⟩", "⟨suffix⟩", "⟨middle⟩"), strict=False))
    first = np.random.default_rng(seed).integers(len(split)) if len(split) else 0
    for number in range(count):
        place = int(first + number * len(split) // count) % len(split)
        start = _next_document(split, place, tokenizer.end_of_text)
        tokens = split.read(start, min(start + limit, len(split)))
        ends = np.flatnonzero(tokens == tokenizer.end_of_text)
        body = tokens[: ends[0]] if ends.size else tokens
        parts: list[str] = []
        piece: list[int] = []
        for token in body.tolist():
            if token in names:
                parts += [tokenizer.decode(piece), names[token]]
                piece = []
            else:
                piece.append(token)
        yield "".join([*parts, tokenizer.decode(piece), "" if ends.size else " …"])


def _next_document(split: TokenSplit, place: int, end_of_text: int) -> int:
    """Where the first document begins at or after a place; 0 if there is none."""
    if place == 0:
        return 0
    for start in range(place - 1, len(split), CHUNK):
        tokens = split.read(start, min(start + CHUNK, len(split)))
        ends = np.flatnonzero(tokens == end_of_text)
        if ends.size:
            found = start + int(ends[0]) + 1
            return found if found < len(split) else 0
    return 0
