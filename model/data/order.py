"""The order in which training sees the sequences of a dataset: pure arithmetic, no state.

Invariant: sample n of a run is the same whatever the world size, the batch or the number of restarts; within one
epoch of a source no sequence is lost or seen twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
"""Rounds of the Feistel network that shuffles an epoch."""
BLOCK = 4096
"""Within each block of so many samples a mixture's weights hold exactly; they are rounded to 1/4096."""
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Order:
    """Sequences 0..sum(counts)-1, those of each source after each other, in the order of training.

    Without weights all sequences are shuffled together: every source is seen once an epoch. With weights each block of
    BLOCK samples takes from every source by its share, in an order of its own, and each source has its own epochs: none
    of its sequences is seen again before all of them were.
    """

    counts: tuple[int, ...]
    """Sequences of each source."""
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"every source needs at least one sequence, got {self.counts}")
        if self.weights is not None and (len(self.weights) != len(self.counts) or min(self.weights) <= 0):
            raise ValueError(f"{len(self.counts)} sources need as many positive weights, got {self.weights}")

    def samples(self, seed: int, first: int, count: int) -> NDArray[np.int64]:
        """[count] sequence numbers of the samples [first, first + count), counted from 0 over the whole run."""
        if first < 0 or count < 1:
            raise ValueError(f"first ({first}) must be at least 0 and count ({count}) at least 1")
        numbers = np.arange(first, first + count, dtype=np.int64)
        if self.weights is None:
            return _shuffled(numbers, f"fathom sample order 1 {seed}", sum(self.counts))
        source, nth = _sources(numbers, seed, shares(self.weights))
        offsets = np.cumsum((0, *self.counts[:-1]))
        out = np.empty_like(numbers)
        for index in np.unique(source):
            mine = source == index
            key = f"fathom sample order 1 {seed} source {index}"
            out[mine] = offsets[index] + _shuffled(nth[mine], key, self.counts[index])
        return out

    def epochs(self, samples: int) -> tuple[float, ...]:
        """How often each source has been seen after so many samples, on average."""
        if self.weights is None:
            return tuple(samples / sum(self.counts) for _ in self.counts)
        quotas = shares(self.weights)
        return tuple(samples * quota / BLOCK / size for quota, size in zip(quotas, self.counts, strict=True))


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Samples of each source in a block of BLOCK: largest remainders, at least one each."""
    if len(weights) > BLOCK:
        raise ValueError(f"{len(weights)} sources do not fit a block of {BLOCK}")
    exact = [Fraction(weight) * (BLOCK - len(weights)) / sum(map(Fraction, weights)) for weight in weights]
    found = [int(part) + 1 for part in exact]
    order = sorted(range(len(weights)), key=lambda i: (int(exact[i]) - exact[i], i))
    for index in order[: BLOCK - sum(found)]:
        found[index] += 1
    return tuple(found)


def _sources(
    numbers: NDArray[np.int64], seed: int, quotas: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each sample the source, and how many samples of that source come before it."""
    source, nth = np.empty_like(numbers), np.empty_like(numbers)
    blocks, places = np.divmod(numbers, BLOCK)
    for block in np.unique(blocks):
        mine = blocks == block
        order, before = _block(seed, int(block), quotas)
        source[mine] = order[places[mine]]
        nth[mine] = before[places[mine]] + block * np.array(quotas)[source[mine]]
    return source, nth


@lru_cache(maxsize=16)
def _block(seed: int, block: int, quotas: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[BLOCK] source of each sample of a block, and how many of the same source come before it in the block."""
    slots = _permute(np.arange(BLOCK, dtype=np.uint64), f"fathom mixture 1 {seed} {block}", BLOCK)
    source = np.searchsorted(np.cumsum(quotas), slots, side="right")
    before = np.empty_like(source)
    for index, quota in enumerate(quotas):
        before[source == index] = np.arange(quota)
    return source, before


def _shuffled(numbers: NDArray[np.int64], key: str, size: int) -> NDArray[np.int64]:
    """Number n is position n % size of epoch n // size, and each epoch is a permutation of its own."""
    out = np.empty(numbers.size, dtype=np.int64)
    epochs, positions = np.divmod(numbers, size)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        out[mine] = _permute(positions[mine].astype(np.uint64), f"{key} {epoch}", size)
    return out


def _permute(positions: NDArray[np.uint64], key: str, size: int) -> NDArray[np.int64]:
    """Images of some positions under the permutation of range(size) that `key` names, in constant memory.

    A balanced Feistel network is a bijection of the numbers of 2*half bits; applying it again to a result
    that is not below `size` (Black and Rogaway, CT-RSA 2002, "cycle walking") makes it one of range(size).
    Own arithmetic rather than numpy's generators, whose streams may change between versions.
    """
    half = ((size - 1).bit_length() + 1) // 2
    if half == 0:
        return np.zeros(positions.size, dtype=np.int64)
    keys = _round_keys(key)
    out = _feistel(positions, keys, half)
    outside = np.flatnonzero(out >= size)
    while outside.size:
        out[outside] = _feistel(out[outside], keys, half)
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)


def _round_keys(key: str) -> list[int]:
    """ROUNDS keys of 64 bits."""
    raw = hashlib.shake_128(key.encode()).digest(8 * ROUNDS)
    return [int.from_bytes(raw[8 * i : 8 * i + 8], "little") for i in range(ROUNDS)]


def _feistel(values: NDArray[np.uint64], keys: list[int], half: int) -> NDArray[np.uint64]:
    """One pass through the network over numbers of 2*half bits."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right, key) & mask)
    return (left << shift) | right


def _mix(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of value + key, modulo 2**64."""
    x = values + np.uint64(key & _MASK)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
