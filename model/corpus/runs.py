"""Documents on disk in runs, each sorted by hash: an external sort, in which equal documents meet.

A run is a file of texts and an index beside it. Buckets are ranges of hashes; taking a bucket from all runs and sorting
its few index rows gives all documents in the order of their hash, whatever file or process they came from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

RUN_BYTES = 32 * 1024 * 1024
RUN_DOCUMENTS = 200_000
INDEX = np.dtype(
    [("sha", "S32"), ("source", "<u2"), ("member", "<u4"), ("place", "<i8"), ("offset", "<u8"), ("length", "<u4")]
)
"""One document of a run: hash, where it came from, and where its text lies in the run's file."""
Index = NDArray[Any]


@dataclass
class RunWriter:
    """Collects documents and writes them as runs `<stem>.<k>`."""

    folder: Path
    stem: str
    runs: int = 0
    repeated: list[tuple[int, int, int]] = field(default_factory=list)
    """(source, member, place) of documents that a run has already; never more than one run's."""
    _texts: list[bytes] = field(default_factory=list)
    _rows: list[tuple[bytes, int, int, int]] = field(default_factory=list)
    _bytes: int = 0

    def add(self, source: int, member: int, place: int, text: bytes) -> None:
        """Take a document."""
        self._texts.append(text)
        self._rows.append((hashlib.sha256(text).digest(), source, member, place))
        self._bytes += len(text)
        if self._bytes >= RUN_BYTES or len(self._rows) >= RUN_DOCUMENTS:
            self.flush()

    def flush(self) -> None:
        """Write what was taken."""
        if not self._rows:
            return
        order, last = [], b""
        for number in sorted(range(len(self._rows)), key=self._rows.__getitem__):
            sha, *where = self._rows[number]
            if sha == last:
                self.repeated.append((where[0], where[1], where[2]))
            else:
                order.append(number)
            last = sha
        index = np.empty(len(order), dtype=INDEX)
        offset = 0
        path = self.folder / f"{self.stem}.{self.runs}"
        with path.with_suffix(path.suffix + ".txt").open("wb") as file:
            for row, number in enumerate(order):
                text = self._texts[number]
                index[row] = (*self._rows[number], offset, len(text))
                file.write(text)
                offset += len(text)
        with path.with_suffix(path.suffix + ".idx").open("wb") as file:
            index.tofile(file)
        self.runs += 1
        self._texts, self._rows, self._bytes = [], [], 0


def bucket_count(total_bytes: int, documents: int, bytes_each: int, documents_each: int) -> int:
    """A power of two, so that a bucket holds about so much at most."""
    wanted = max(total_bytes / bytes_each, documents / documents_each, 1)
    return 1 << max(0, int(np.ceil(np.log2(wanted))))


def bucket_bounds(bucket: int, buckets: int) -> tuple[bytes, bytes | None]:
    """First hash of a bucket, and the first one after it (None for the last)."""
    step = (1 << 256) // buckets
    last = bucket == buckets - 1
    return (bucket * step).to_bytes(32, "big"), None if last else ((bucket + 1) * step).to_bytes(32, "big")


def bucket_rows(path: Path, bucket: int, buckets: int) -> Index:
    """Index rows of one run that belong to a bucket; only those are read."""
    size = path.stat().st_size // INDEX.itemsize
    if not size:
        return np.empty(0, dtype=INDEX)
    with path.open("rb") as file:
        low, high = bucket_bounds(bucket, buckets)
        start = _lower_bound(file, size, low)
        stop = size if high is None else _lower_bound(file, size, high)
        file.seek(start * INDEX.itemsize)
        return np.fromfile(file, dtype=INDEX, count=stop - start)


def _lower_bound(file: BinaryIO, size: int, sha: bytes) -> int:
    """Number of rows whose hash is below `sha`, by bisection on the file."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if os.pread(file.fileno(), 32, middle * INDEX.itemsize) < sha:
            low = middle + 1
        else:
            high = middle
    return low


def hashes(index: Index) -> NDArray[np.uint8]:
    """[n, 32] bytes of the hashes; a text type would lose zeros at the end."""
    return np.ascontiguousarray(index["sha"]).view(np.uint8).reshape(-1, 32)


class Texts:
    """Reads texts from many runs; keeps a few files open."""

    def __init__(self, folder: Path, runs: list[str], limit: int = 200) -> None:
        self._folder, self._runs, self._limit = folder, runs, limit
        self._open: dict[int, int] = {}

    def read(self, run: int, offset: int, length: int) -> bytes:
        """One text."""
        descriptor = self._open.get(run)
        if descriptor is None:
            if len(self._open) >= self._limit:
                self.close()
            descriptor = self._open[run] = os.open(self._folder / f"{self._runs[run]}.txt", os.O_RDONLY)
        raw = os.pread(descriptor, length, offset)
        if len(raw) != length:
            raise OSError(f"{self._runs[run]}.txt ends at byte {offset + len(raw)}: remove {self._folder.parent}")
        return raw

    def close(self) -> None:
        """Close all files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def __enter__(self) -> Texts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def batches(rows: Iterator[tuple[Any, bytes]], size: int) -> Iterator[list[tuple[Any, bytes]]]:
    """Rows with their texts, in groups of `size` bytes or a little more."""
    batch: list[tuple[Any, bytes]] = []
    held = 0
    for row, text in rows:
        batch.append((row, text))
        held += len(text)
        if held >= size:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
