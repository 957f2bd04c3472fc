"""Token shards on disk, windows over them, and the order in which training sees the windows.

Used by the training loop and by `model.prepare` (which writes the shards). Invariant: which windows a step
sees is a pure function of (seed, step, batch, number of windows), not of the world size or of a restart.
"""

from __future__ import annotations

import hashlib
import os
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from model.dataset import (
    DatasetDamaged,
    DatasetManifest,
    DatasetMissing,
    Shard,
    SplitName,
    local_path,
)

LITTLE_ENDIAN = {"uint16": "<u2", "uint32": "<u4"}
ROUNDS = 8
"""Rounds of the Feistel network that shuffles an epoch."""
_MASK = (1 << 64) - 1
REPAIR = "restore the file, or prepare the dataset again with `fathom data prepare` and --force"


class ShardWriter:
    """Writes one split as files of at most `shard_tokens` tokens; a document may cross to the next."""

    def __init__(self, folder: Path, split: SplitName, dtype: str, shard_tokens: int) -> None:
        if shard_tokens < 1:
            raise ValueError(f"a shard must hold at least 1 token, got {shard_tokens}")
        self._folder, self._split, self._dtype, self._limit = folder, split, dtype, shard_tokens
        self._shards: list[Shard] = []
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._written = 0

    def write(self, tokens: NDArray[np.int64]) -> None:
        """Append tokens; the caller has checked that they fit the data type."""
        while tokens.size:
            if self._file is None:
                self._file = (self._folder / f"{self._split}-{len(self._shards):05d}.bin").open("xb")
            part = tokens[: self._limit - self._written]
            raw = part.astype(LITTLE_ENDIAN[self._dtype]).tobytes()
            self._file.write(raw)
            self._hash.update(raw)
            self._written += part.size
            tokens = tokens[part.size :]
            if self._written == self._limit:
                self._end_shard()

    def close(self) -> tuple[Shard, ...]:
        """End the last file; what was written, in order."""
        self._end_shard()
        return tuple(self._shards)

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self._file.close()
        name = Path(self._file.name).name
        self._shards.append(Shard(name=name, tokens=self._written, sha256=self._hash.hexdigest()))
        self._file, self._hash, self._written = None, hashlib.sha256(), 0


class TokenSplit:
    """The shards of one split, seen as one array of tokens.

    Read by pread, not by memory map: a map of a file that is truncated meanwhile kills the process (SIGBUS).
    """

    def __init__(self, uri: str | Path, manifest: DatasetManifest, split: SplitName) -> None:
        """Raises DatasetMissing or DatasetDamaged if a file is absent or has the wrong size."""
        self.name: SplitName = split
        folder = local_path(uri)
        if folder is None:
            raise ValueError(
                f"training reads prepared datasets from local or mounted folders only, got {uri}: "
                "copy the dataset to a folder that every worker sees"
            )
        vocab_size = manifest.tokenizer.vocab_size
        shards = manifest.split(split).shards
        self._files = [_ShardFile(folder / shard.name, shard, manifest.dtype, vocab_size) for shard in shards]
        self._ends = list(accumulate(shard.tokens for shard in shards))

    def __len__(self) -> int:
        """Number of tokens."""
        return self._ends[-1]

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens [start, stop) as a copy, each below the vocabulary's size; IndexError outside the split.

        A read that fails is tried once more; DatasetDamaged (or the OSError) if that fails as well.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} are not within the {len(self)} of {self.name}")
        out = np.empty(stop - start, dtype=np.int64)
        done = 0
        number = bisect_right(self._ends, start)
        while done < out.size:
            file = self._files[number]
            offset = start + done - (self._ends[number] - file.tokens)
            part = file.read(offset, min(out.size - done, file.tokens - offset))
            out[done : done + part.size] = part
            done += part.size
            number += 1
        return out

    def verify(self) -> None:
        """Compare every shard's SHA-256 with the manifest; DatasetDamaged names the first that differs."""
        for shard_file in self._files:
            path, expected = shard_file.path, shard_file.sha256
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise DatasetDamaged(
                    f"{path} has SHA-256 {found}, the manifest says {expected}: prepare the dataset again with --force"
                )


class _ShardFile:
    """One shard, held open."""

    _descriptor: int
    _close: Callable[[], object]
    """Closes the descriptor, once; called when the object goes away too."""

    def __init__(self, path: Path, shard: Shard, dtype: str, vocab_size: int) -> None:
        self.path, self.tokens, self.sha256 = path, shard.tokens, shard.sha256
        self._dtype, self._vocab_size = np.dtype(LITTLE_ENDIAN[dtype]), vocab_size
        self._item_bytes = self._dtype.itemsize
        self._open()

    def read(self, offset: int, count: int) -> NDArray[np.unsignedinteger]:
        """`count` tokens from token `offset` on, which lie within the shard."""
        try:
            return self._read_checked(offset, count)
        except (DatasetDamaged, OSError):
            # Perhaps a passing fault, or the file has been restored: read once more, from the disk.
            self._forget_cached(offset, count)
            self._close()
            self._descriptor = -1  # the number may soon be that of another file
            self._open()
            return self._read_checked(offset, count)

    def _open(self) -> None:
        """Open the file, of exactly the size that the manifest says."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            raise DatasetMissing(str(self.path.parent)) from None
        self._descriptor, self._close = descriptor, weakref.finalize(self, os.close, descriptor)
        size, expected = os.fstat(descriptor).st_size, self.tokens * self._item_bytes
        if size != expected:
            raise DatasetDamaged(f"{self.path} has {size} bytes, the manifest says {expected}: {REPAIR}")

    def _read_checked(self, offset: int, count: int) -> NDArray[np.unsignedinteger]:
        tokens = np.frombuffer(self._read_bytes(offset, count), dtype=self._dtype)
        if np.maximum.reduce(tokens) >= self._vocab_size:  # tokens.max(), but for half its overhead
            wrong = int(np.argmax(tokens >= self._vocab_size))
            raise DatasetDamaged(
                f"{self.path} has token {tokens[wrong]} at position {offset + wrong} (byte "
                f"{(offset + wrong) * self._item_bytes}), the vocabulary ends at {self._vocab_size - 1}: {REPAIR}"
            )
        return tokens

    def _read_bytes(self, offset: int, count: int) -> bytes:
        first, length = offset * self._item_bytes, count * self._item_bytes
        raw = os.pread(self._descriptor, length, first)
        while len(raw) < length:  # a signal, a network file system, more than 2 GiB, or the end of the file
            more = os.pread(self._descriptor, length - len(raw), first + len(raw))
            if not more:
                raise DatasetDamaged(
                    f"{self.path} ends at byte {first + len(raw)}, the manifest says "
                    f"{self.tokens * self._item_bytes}: {REPAIR}"
                )
            raw += more
        return raw

    def _forget_cached(self, offset: int, count: int) -> None:
        """Ask the kernel to drop its copy, which may be what is wrong; macOS has no such call."""
        if hasattr(os, "posix_fadvise"):
            first, length = offset * self._item_bytes, count * self._item_bytes
            with suppress(OSError):  # a wish only
                os.posix_fadvise(self._descriptor, first, length, os.POSIX_FADV_DONTNEED)


class Windows:
    """A split cut into overlapping windows: number i is tokens [i*S, i*S + S + extra), for S tokens of input.

    `extra` is 1 + the depth of multi-token prediction. The stride is S, so each token is the next-token
    target of one window only; the last (tokens - extra) % S tokens belong to no window.
    """

    def __init__(self, split: TokenSplit, sequence_length: int, extra: int = 1) -> None:
        if sequence_length < 1 or extra < 1:
            raise ValueError(f"sequence_length ({sequence_length}) and extra ({extra}) must be at least 1")
        self.split, self.sequence_length, self.extra = split, sequence_length, extra
        self.count = (len(split) - extra) // sequence_length
        if self.count < 1:
            raise ValueError(
                f"the {split.name} split has {len(split)} tokens, but one sequence needs "
                f"{sequence_length + extra} (sequence_length {sequence_length} + {extra}): "
                "prepare more text or use shorter sequences"
            )

    def read(self, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """[len(numbers), S + extra] tokens of some windows; IndexError for a number outside 0..count-1."""
        out = np.empty((len(numbers), self.sequence_length + self.extra), dtype=np.int64)
        for row, number in enumerate(numbers):
            if not 0 <= number < self.count:
                raise IndexError(f"window {number} is not one of the {self.count} of {self.split.name}")
            start = int(number) * self.sequence_length
            out[row] = self.split.read(start, start + out.shape[1])
        return out

    def heldout_windows(self, limit_tokens: int) -> NDArray[np.int64]:
        """[n, S + extra]: the first n windows in order, n*S <= limit_tokens, but at least one window.

        Documents are stored in the order of their hash, so the first ones are a fair sample of all.
        """
        return self.read(range(min(self.count, max(1, limit_tokens // self.sequence_length))))


@dataclass(frozen=True)
class TrainingBatches:
    """What each process reads at each step, and nothing else: it holds no position."""

    windows: Windows
    seed: int
    world_size: int
    micro_batch: int
    accumulation: int

    @property
    def batch(self) -> int:
        """Sequences of one optimizer step, over all processes."""
        return self.world_size * self.micro_batch * self.accumulation

    def numbers_for(self, step: int, rank: int, k: int) -> NDArray[np.int64]:
        """Window numbers of one forward pass: k-th of the step's `accumulation`, on process `rank`.

        Of the step's `sample_indices` these are [(k*world_size + rank)*micro_batch, ... + micro_batch).
        """
        if not (0 <= rank < self.world_size and 0 <= k < self.accumulation):
            raise ValueError(
                f"rank {rank} of {self.world_size} processes, pass {k} of {self.accumulation}: out of range"
            )
        indices = sample_indices(self.seed, step, self.batch, self.windows.count)
        first = (k * self.world_size + rank) * self.micro_batch
        return indices[first : first + self.micro_batch]

    def batch_for(self, step: int, rank: int, k: int) -> NDArray[np.int64]:
        """[micro_batch, S + extra] tokens of the windows that `numbers_for` names."""
        return self.windows.read(self.numbers_for(step, rank, k))


def sample_checksum(numbers: NDArray[np.int64], windows: NDArray[np.int64]) -> int:
    """Sum over sequences of CRC-32(number, tokens), each little-endian int64: below 2**32 per sequence.

    numbers [n], windows [n, S + extra]. However a step's sequences are divided and ordered, the sums of the parts
    add up to the same: equal sequences, equal number.
    """
    rows = np.ascontiguousarray(windows, dtype="<i8")
    heads = np.ascontiguousarray(numbers, dtype="<i8")
    return sum(zlib.crc32(row, zlib.crc32(head)) for head, row in zip(heads[:, None], rows, strict=True))


def sample_indices(seed: int, step: int, batch: int, num_windows: int) -> NDArray[np.int64]:
    """[batch] window numbers of one optimizer step (counted from 0): a pure function of its arguments.

    Sample n = step*batch + j (j = 0..batch-1) is position n % num_windows of epoch n // num_windows, and each
    epoch is a permutation of its own: no window is lost or seen twice within an epoch.
    """
    if step < 0 or batch < 1 or num_windows < 1:
        raise ValueError(f"step ({step}), batch ({batch}) and num_windows ({num_windows}) must be positive")
    out = np.empty(batch, dtype=np.int64)
    done = 0
    while done < batch:
        epoch, position = divmod(step * batch + done, num_windows)
        length = min(batch - done, num_windows - position)
        positions = np.arange(position, position + length, dtype=np.uint64)
        out[done : done + length] = _permute(positions, seed, epoch, num_windows)
        done += length
    return out


def _permute(positions: NDArray[np.uint64], seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Images of some positions under the (seed, epoch) permutation of range(size), in constant memory.

    A balanced Feistel network is a bijection of the numbers of 2*half bits; applying it again to a result
    that is not below `size` (Black and Rogaway, CT-RSA 2002, "cycle walking") makes it one of range(size).
    Own arithmetic rather than numpy's generators, whose streams may change between versions.
    """
    half = ((size - 1).bit_length() + 1) // 2
    if half == 0:
        return np.zeros(positions.size, dtype=np.int64)
    keys = _round_keys(seed, epoch)
    out = _feistel(positions, keys, half)
    outside = np.flatnonzero(out >= size)
    while outside.size:
        out[outside] = _feistel(out[outside], keys, half)
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)


def _round_keys(seed: int, epoch: int) -> list[int]:
    """ROUNDS keys of 64 bits."""
    raw = hashlib.shake_128(f"fathom sample order 1 {seed} {epoch}".encode()).digest(8 * ROUNDS)
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
