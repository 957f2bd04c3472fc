"""Sequences of a dataset as windows over its tokens. Numbers only: which window comes when is `model.data.order`'s."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.data.order import Order
from model.data.shards import TokenSplit
from model.dataset import DatasetManifest


class Windows:
    """A split cut into overlapping windows: number i is tokens [i*S, i*S + S + extra), for S tokens of input.

    `extra` is 1 + the depth of multi-token prediction. The stride is S, so each token is the next-token
    target of one window only; the last (tokens - extra) % S tokens belong to no window.
    """

    def __init__(self, split: TokenSplit, sequence_length: int, extra: int = 1) -> None:
        if sequence_length < 1 or extra < 1:
            raise ValueError(f"sequence_length ({sequence_length}) and extra ({extra}) must be at least 1")
        self.split, self.sequence_length, self.extra = split, sequence_length, extra
        self.count = max(0, len(split) - extra) // sequence_length

    def read(self, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """[len(numbers), S + extra] tokens of some windows; IndexError for a number outside 0..count-1."""
        out = np.empty((len(numbers), self.sequence_length + self.extra), dtype=np.int64)
        for row, number in enumerate(numbers):
            if not 0 <= number < self.count:
                raise IndexError(f"window {number} is not one of the {self.count} of {self.split.name}")
            start = int(number) * self.sequence_length
            out[row] = self.split.read(start, start + out.shape[1])
        return out


class TrainingWindows:
    """The training side of all sources; windows are numbered through, those of each source after each other."""

    def __init__(
        self,
        uri: str | Path,
        manifest: DatasetManifest,
        sequence_length: int,
        extra: int = 1,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """`weights` by source take the place of the manifest's. ValueError for a source without a whole window."""
        sources = manifest.sources
        self.names = tuple(source.name for source in sources)
        splits = [TokenSplit(uri, manifest, source, "train") for source in sources]
        self.parts = [Windows(split, sequence_length, extra) for split in splits]
        for part in self.parts:
            if part.count < 1:
                raise ValueError(
                    f"{part.split.name} has {len(part.split)} tokens, but one sequence needs {sequence_length + extra} "
                    f"(sequence_length {sequence_length} + {extra}): prepare more text or use shorter sequences"
                )
        own = {source.name: source.weight for source in sources if source.weight is not None}
        chosen = {**own, **(weights or {})}
        counts = tuple(part.count for part in self.parts)
        self.order = Order(counts, tuple(chosen[name] for name in self.names) if chosen else None)
        self.ends = list(accumulate(counts))
        """First window after each source."""

    @property
    def count(self) -> int:
        """Windows of all sources."""
        return self.ends[-1]

    def source_of(self, number: int) -> int:
        """Which source, by its place, a window belongs to."""
        return bisect_right(self.ends, number)

    def read(self, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """[len(numbers), S + extra] tokens of some windows."""
        rows = []
        for number in numbers:
            if not 0 <= number < self.count:
                raise IndexError(f"window {number} is not one of the {self.count} to train on")
            source = self.source_of(int(number))
            part = self.parts[source]
            rows.append(part.read([int(number) - (self.ends[source] - part.count)])[0])
        return np.stack(rows)

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Compare every shard's SHA-256 with the manifest; each of several processes its share."""
        for part in self.parts:
            part.split.verify(rank, world_size)


def heldout_windows(
    uri: str | Path, manifest: DatasetManifest, sequence_length: int, extra: int, limit_tokens: int
) -> dict[str, NDArray[np.int64]]:
    """By source, [n, S + extra]: the first n windows of its held-out side, in order.

    `limit_tokens` are shared among the sources by their held-out windows, at least one window each; a source that has
    none is left out, ValueError if all are. Documents are stored in the order of their hash, so the first ones are a
    fair sample of all.
    """
    parts = {
        source.name: Windows(TokenSplit(uri, manifest, source, "heldout"), sequence_length, extra)
        for source in manifest.sources
        if source.heldout.tokens
    }
    counts = {name: part.count for name, part in parts.items() if part.count}
    if not counts:
        raise ValueError(
            f"the held-out side has {manifest.tokens('heldout')} tokens, but one sequence needs "
            f"{sequence_length + extra} (sequence_length {sequence_length} + {extra}): prepare more text or use "
            "shorter sequences"
        )
    total, wanted = sum(counts.values()), max(1, limit_tokens // sequence_length)
    share = min(1.0, wanted / total)
    return {name: parts[name].read(range(max(1, int(count * share)))) for name, count in counts.items()}


def verify_heldout(uri: str | Path, manifest: DatasetManifest, rank: int = 0, world_size: int = 1) -> None:
    """Compare every held-out shard's SHA-256 with the manifest; each of several processes its share."""
    for source in manifest.sources:
        TokenSplit(uri, manifest, source, "heldout").verify(rank, world_size)
