"""Cuts the work of reading into units of about the same size, each done by one process and kept when done.

Invariant: units depend on the listing only, so that a command that is started again finds the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from model.corpus.listing import Member, open_member
from model.corpus.skips import Skips

UNIT_BYTES = 32 * 1024 * 1024
"""Aim for what one unit reads."""
FILES = 20_000
"""The most files of one unit."""
HEAD = 4096


@dataclass(frozen=True)
class Part:
    """Bytes (or, in Parquet, row groups) [start, stop) of a file; `cut`: text is cut into documents."""

    member: int
    """Place in the listing."""
    start: int
    stop: int
    cut: bool


@dataclass(frozen=True)
class Unit:
    """Parts that are read one after the other."""

    number: int
    parts: tuple[Part, ...]
    size: int
    """Bytes of the files, for progress."""


def make_units(members: list[Member], max_document_bytes: int, skips: dict[int, Skips]) -> list[Unit]:
    """Everything that is to be read."""
    units: list[Unit] = []
    parts: list[Part] = []
    size = 0

    def end() -> None:
        nonlocal parts, size
        if parts:
            units.append(Unit(len(units), tuple(parts), size))
            parts, size = [], 0

    for number, member in enumerate(members):
        for part, weight in _parts(number, member, max_document_bytes, skips.setdefault(member.source, Skips())):
            if parts and (size + weight > UNIT_BYTES or len(parts) >= FILES):
                end()
            parts.append(part)
            size += weight
    end()
    return units


def _parts(number: int, member: Member, max_document_bytes: int, skips: Skips) -> Iterable[tuple[Part, int]]:
    """-> parts of one file, and the bytes that each stands for."""
    if member.format == "parquet":
        return _row_groups(number, member, skips)
    large = member.size > max_document_bytes
    if member.compression or member.format == "arrow":
        return [(Part(number, 0, member.size, member.alone), member.size)]
    if member.format == "jsonl":
        return list(_ranges(number, member, cut=False))
    if not (member.alone or large):
        return [(Part(number, 0, member.size, cut=False), member.size)]
    try:
        with open_member(member.url) as file:
            binary = b"\0" in file.read(HEAD)
    except (FileNotFoundError, PermissionError):
        skips.add("unreadable", member.name)
        return []
    if binary:  # a film, for one: not to be read to its end
        skips.add("binary", member.name)
        return []
    return list(_ranges(number, member, cut=True))


def _ranges(number: int, member: Member, *, cut: bool) -> Iterator[tuple[Part, int]]:
    for start in range(0, max(member.size, 1), UNIT_BYTES):
        stop = min(start + UNIT_BYTES, member.size)
        yield Part(number, start, stop, cut), stop - start


def _row_groups(number: int, member: Member, skips: Skips) -> list[tuple[Part, int]]:
    """Groups of row groups; the file's end tells them."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with open_member(member.url) as file:
            meta = parquet.ParquetFile(file).metadata
            sizes = [meta.row_group(index).total_byte_size for index in range(meta.num_row_groups)]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        skips.add("unreadable" if isinstance(error, PermissionError) else "damaged", member.name)
        return []
    parts: list[tuple[Part, int]] = []
    start = size = 0
    for index, one in enumerate(sizes):
        size += one
        if size >= UNIT_BYTES or index == len(sizes) - 1:
            parts.append((Part(number, start, index + 1, cut=False), size))
            start, size = index + 1, 0
    return parts
