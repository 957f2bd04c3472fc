"""Reads documents from files of every format, one at a time, in memory that does not depend on the file's size.

Nothing raises for what a file holds: each record comes out as text or as the reason why it does not.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from model.corpus.listing import Member, open_member
from model.corpus.skips import Kind
from model.corpus.units import Part
from model.files import local_path
from model.tokenizer import pieces

MIB = 1024 * 1024
BLOCK = 4 * MIB
PIECE_BYTES = (1024, 64 * 1024)
"""Smallest and largest aim for the documents that text is cut into."""
BORDER = 128 * 1024
"""How far to look for a blank line where a long text is divided among units."""
BOM = b"\xef\xbb\xbf"
TRUNCATED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True)
class Record:
    """One document, or why it is none."""

    place: int
    """Where in the file: a byte, a line's first byte or a row."""
    text: bytes | None
    skip: Kind | None = None


def read_part(member: Member, part: Part, text_field: str, max_document_bytes: int) -> Iterator[Record]:
    """All records of a part, in order."""
    try:
        with _opened(member) as file:
            if member.format == "parquet":
                yield from _parquet(file, part, text_field, max_document_bytes)
            elif member.format == "arrow":
                yield from _arrow(file, text_field, max_document_bytes)
            elif member.format == "jsonl":
                stop = None if member.compression else part.stop
                yield from _jsonl(file, part.start, stop, text_field, max_document_bytes)
            elif part.cut and not member.compression:
                yield from _cut_range(file, part, member.size, _aim(member.size))
            else:
                yield from _text(file, part, max_document_bytes, _aim(member.size))
    except TRUNCATED:
        yield Record(-1, None, "damaged")
    except OSError as error:
        # gzip, bz2 and pyarrow say so of damaged content too; a file system's errors have a number
        silent = isinstance(error, TimeoutError | ConnectionError)
        if silent or (local_path(member.url) is None and error.errno and not isinstance(error, PermissionError)):
            raise  # not what the file holds: a server that does not answer now
        yield Record(-1, None, "damaged" if error.errno is None else "unreadable")


@contextmanager
def _opened(member: Member) -> Iterator[Any]:
    with open_member(member.url) as raw:
        if member.compression is None:
            yield raw
        elif member.compression == "zstd":
            import pyarrow

            yield io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd"))
        else:
            openers: dict[str, Any] = {"gzip": gzip.GzipFile, "bz2": bz2.BZ2File, "xz": lzma.LZMAFile}
            if member.compression == "gzip":
                yield gzip.GzipFile(fileobj=raw)
            else:
                yield openers[member.compression](raw)


def checked(place: int, raw: bytes, max_document_bytes: int) -> Record:
    """Bytes that should be a document."""
    if len(raw) > max_document_bytes:
        return Record(place, None, "too_large")
    if b"\0" in raw:
        return Record(place, None, "binary")
    try:
        raw.decode()
    except UnicodeDecodeError:
        return Record(place, None, "undecodable")
    return Record(place, raw) if raw.strip() else Record(place, None, "empty")


# ------------------------------------------------------------------ text
def _aim(size: int) -> int:
    """Size of the documents that a text is cut into: 64 documents, within PIECE_BYTES."""
    return min(max(size // 64, PIECE_BYTES[0]), PIECE_BYTES[1])


def _text(file: Any, part: Part, max_document_bytes: int, aim: int) -> Iterator[Record]:  # noqa: ANN401
    """A whole file: one document unless it is too long for one (or the only file of its source)."""
    raw = _read(file, max_document_bytes + 1)
    if not part.cut and len(raw) <= max_document_bytes:
        yield checked(0, raw, max_document_bytes)
        return
    place = 0
    while raw:
        # all but the last piece are final: what follows cannot change where they end
        more = _read(file, BLOCK)
        *final, last = pieces(raw, aim)
        for start, stop in final if more else [*final, last]:
            yield checked(place + start, raw[start:stop], max_document_bytes)
        if not more:
            return
        place, raw = place + last[0], raw[last[0] :] + more


def _read(file: Any, size: int) -> bytes:  # noqa: ANN401
    """So many bytes, fewer at the end of the file only."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(bytes(part))
        size -= len(part)
    return b"".join(parts)


def _cut_range(file: Any, part: Part, size: int, aim: int) -> Iterator[Record]:  # noqa: ANN401
    """The documents of a range of a long text, whose ends are moved to the next good place."""
    start, stop = (_border(file, place, size) for place in (part.start, part.stop))
    file.seek(start)
    raw = _read(file, stop - start)
    if raw:
        for first, last in pieces(raw, aim):
            yield checked(start + first, raw[first:last], 2 * aim + BORDER)


def _border(file: Any, place: int, size: int) -> int:  # noqa: ANN401
    """Where a long text is divided near a place: after a blank line, else a line, else between characters."""
    if place <= 0 or place >= size:
        return max(0, min(place, size))
    file.seek(place)
    near = _read(file, BORDER)
    for mark in (b"\n\n", b"\n"):
        if (found := near.find(mark)) >= 0:
            return place + found + len(mark)
    return place + next((i for i, byte in enumerate(near) if byte & 0xC0 != 0x80), len(near))


# ------------------------------------------------------------------ JSON lines
def _jsonl(file: Any, start: int, stop: int | None, field: str, limit: int) -> Iterator[Record]:  # noqa: ANN401
    """Documents of the lines that begin in [start, stop)."""
    longest = 2 * limit + MIB  # what JSON adds for quoting
    place = start
    if start:
        file.seek(start - 1)
        place += _skip_line(file, stop) - 1
    while stop is None or place < stop:
        line = file.readline(longest)
        if not line:
            return
        first, place = place, place + len(line)
        if len(line) >= longest and not line.endswith(b"\n"):
            place += _skip_line(file, stop)
            yield Record(first, None, "too_large")
        elif line.strip(b" \t\r\n"):
            yield _json_record(first, line.removeprefix(BOM) if first == 0 else line, field, limit)


def _skip_line(file: Any, stop: int | None = None) -> int:  # noqa: ANN401
    """Read to the end of a line in small parts, not much beyond `stop`; -> how many bytes that were."""
    read = 0
    left = None if stop is None else stop - file.tell()
    while (left is None or read <= left) and (part := file.readline(MIB)):
        read += len(part)
        if part.endswith(b"\n"):
            break
    return read


def _json_record(place: int, line: bytes, field: str, limit: int) -> Record:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return Record(place, None, "undecodable")
    except (ValueError, RecursionError):
        return Record(place, None, "damaged")
    if not isinstance(row, dict):
        return Record(place, None, "damaged")
    return _text_record(place, row.get(field), limit)


def _text_record(place: int, value: object, limit: int) -> Record:
    if not isinstance(value, str):
        return Record(place, None, "no_text")
    try:
        return checked(place, value.encode(), limit)
    except UnicodeEncodeError:  # half of a surrogate pair
        return Record(place, None, "undecodable")


# ------------------------------------------------------------------ tables
def _cell_record(row: int, value: Any, limit: int) -> Record:  # noqa: ANN401
    try:
        text = value.as_py()
    except UnicodeDecodeError:
        return Record(row, None, "undecodable")
    except (ArithmeticError, ValueError, LookupError):  # a date beyond the calendar, and the like
        return Record(row, None, "no_text")
    return _text_record(row, text, limit)


def _parquet(file: Any, part: Part, field: str, limit: int) -> Iterator[Record]:  # noqa: ANN401
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=MIB)
        meta = table.metadata
        row = sum(meta.row_group(index).num_rows for index in range(part.start))
        if field not in table.schema_arrow.names:
            rows = sum(meta.row_group(index).num_rows for index in range(part.start, part.stop))
            yield from (Record(row + index, None, "no_text") for index in range(rows))
            return
        if pyarrow.types.is_string(table.schema_arrow.field(field).type):
            # as a dictionary: a long text that stands in all rows is held once
            table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=MIB, read_dictionary=[field])
        groups = list(range(part.start, part.stop))
        size = _batch_rows(meta, groups)
        for batch in table.iter_batches(batch_size=size, row_groups=groups, columns=[field], use_threads=False):
            for value in batch.column(0):
                yield _cell_record(row, value, limit)
                row += 1
    except (pyarrow.ArrowException, ValueError):
        yield Record(-1, None, "damaged")


def _batch_rows(meta: Any, groups: list[int]) -> int:  # noqa: ANN401
    """Rows to hold at once, by what one takes on average."""
    parts = [meta.row_group(index) for index in groups]
    rows = sum(part.num_rows for part in parts)
    each = sum(part.total_byte_size for part in parts) / max(rows, 1)
    return int(min(256, max(1, BLOCK / max(each, 1))))


def _arrow(file: Any, field: str, limit: int) -> Iterator[Record]:  # noqa: ANN401
    """A file of the `datasets` library: an Arrow stream."""
    import pyarrow

    row = 0
    try:
        for batch in pyarrow.ipc.open_stream(file):
            batch.validate(full=True)  # offsets that lead out of the buffer would be followed
            if field not in batch.schema.names:
                yield from (Record(row + index, None, "no_text") for index in range(batch.num_rows))
                row += batch.num_rows
                continue
            for value in batch.column(batch.schema.names.index(field)):
                yield _cell_record(row, value, limit)
                row += 1
    except (pyarrow.ArrowException, ValueError):
        yield Record(-1, None, "damaged")
