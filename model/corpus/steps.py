"""The pieces of work of each step; every function runs in any process and leaves its result on disk.

A piece that is done already says so by its marker and is not done again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.corpus.fim import divide, is_rearranged
from model.corpus.listing import Member, client_errors, stamp_of
from model.corpus.records import read_part
from model.corpus.runs import INDEX, Index, RunWriter, Texts, batches, bucket_rows, hashes
from model.corpus.skips import Skips
from model.corpus.units import Unit
from model.corpus.workspace import Workspace, read_marker, write_marker
from model.data.shards import LITTLE_ENDIAN
from model.tokenizer import Tokenizer, pieces

ENCODE_BYTES = 2 * 1024 * 1024
"""Text handed to the tokenizer at once; longer documents are encoded in pieces of this size."""
SIDES = ("train", "heldout")
COPY_BYTES = 4 * 1024 * 1024


# ------------------------------------------------------------------ read
@dataclass(frozen=True)
class Reading:
    """Read a unit into runs."""

    unit: Unit
    members: tuple[Member, ...]
    """Those of the unit's parts."""
    fields: tuple[str, ...]
    """Field of the text, by source."""
    max_document_bytes: int
    work: Workspace


@dataclass(frozen=True)
class Read:
    """What a unit has given."""

    unit: int
    size: int
    runs: tuple[str, ...]
    documents: int
    bytes: int
    skips: dict[int, Skips]


def read(job: Reading) -> Read:
    """ValueError if a file is no longer what was listed."""
    stem = f"unit-{job.unit.number:06d}"
    marker = job.work.runs / f"{stem}.json"
    if (found := read_marker(marker)) is not None:
        skips = {int(source): Skips(**value) for source, value in found.pop("skips").items()}
        return Read(**{**found, "runs": tuple(found["runs"])}, skips=skips)
    writer, skips, documents, size = RunWriter(job.work.runs, stem), {}, 0, 0
    by_number = {part.member: member for part, member in zip(job.unit.parts, job.members, strict=True)}

    def drop_repeated() -> None:
        for source, number, place in writer.repeated:
            skips.setdefault(source, Skips()).add("duplicate", label(by_number[number], place))
        writer.repeated.clear()

    for part, member in zip(job.unit.parts, job.members, strict=True):
        _require_unchanged(member)
        own = skips.setdefault(member.source, Skips())
        with client_errors(member.url):
            for record in read_part(member, part, job.fields[member.source], job.max_document_bytes):
                if record.text is None:
                    assert record.skip is not None
                    own.add(record.skip, label(member, record.place))
                else:
                    writer.add(member.source, part.member, record.place, record.text)
                    documents, size = documents + 1, size + len(record.text)
                if writer.repeated:
                    drop_repeated()
        _require_unchanged(member)
    writer.flush()
    drop_repeated()
    names = tuple(f"{stem}.{number}" for number in range(writer.runs))
    result = Read(job.unit.number, job.unit.size, names, documents, size, skips)
    files = [job.work.runs / f"{name}.{ending}" for name in names for ending in ("txt", "idx")]
    write_marker(marker, {**vars(result), "skips": {source: vars(one) for source, one in skips.items()}}, files)
    return result


def label(member: Member, place: int) -> str:
    """A record by its file, and where in it."""
    whole = member.format == "text" and place == 0
    return member.name if whole or place < 0 else f"{member.name}[{place}]"


def _require_unchanged(member: Member) -> None:
    try:
        now = stamp_of(member.url)
    except FileNotFoundError as error:
        raise ValueError(f"{member.url} was there a moment ago: {error}; run the command again") from None
    if now != (member.size, member.stamp):
        raise ValueError(f"{member.url} changed while it was being prepared: run the command again")


# ------------------------------------------------------------------ select
SELECTED = np.dtype([("sha", "S32"), ("source", "<u2"), ("run", "<u4"), ("offset", "<u8"), ("length", "<u4")])


@dataclass(frozen=True)
class Selecting:
    """Take one bucket from all runs and drop what is there twice."""

    bucket: int
    buckets: int
    runs: tuple[str, ...]
    threshold: bytes
    """Hashes below are held out."""
    sources: int
    work: Workspace


@dataclass(frozen=True)
class Selected:
    """By source: documents and bytes of each side, the smallest and the largest hash, duplicates."""

    bucket: int
    documents: tuple[tuple[int, int], ...]
    bytes: tuple[tuple[int, int], ...]
    lowest: tuple[str | None, ...]
    highest: tuple[str | None, ...]
    duplicates: tuple[int, ...]
    examples: tuple[tuple[tuple[int, int], ...], ...]
    """(member, place) of the first duplicates."""


def select(job: Selecting) -> Selected:
    """The first of equal documents stays, by order of sources and files."""
    marker = job.work.selected / f"bucket-{job.bucket:05d}.json"
    if (found := read_marker(marker)) is not None:
        return Selected(**{key: _tuples(value) for key, value in found.items()})
    parts, numbers = [], []
    for number, name in enumerate(job.runs):
        rows = bucket_rows(job.work.runs / f"{name}.idx", job.bucket, job.buckets)
        parts.append(rows)
        numbers.append(np.full(len(rows), number, dtype=np.uint32))
    index = np.concatenate(parts) if parts else np.empty(0, INDEX)
    run = np.concatenate(numbers) if numbers else np.empty(0, np.uint32)
    order = np.lexsort((index["place"], index["member"], index["source"], index["sha"]))
    index, run = index[order], run[order]
    first = np.ones(len(index), dtype=bool)
    first[1:] = index["sha"][1:] != index["sha"][:-1]
    chosen = np.empty(int(first.sum()), dtype=SELECTED)
    for name in ("sha", "source", "offset", "length"):
        chosen[name] = index[name][first]
    chosen["run"] = run[first]
    path = marker.with_suffix(".idx")
    with path.open("wb") as file:
        chosen.tofile(file)
    result = _counted(job, chosen, index[~first])
    write_marker(marker, vars(result), [path])
    return result


def _counted(job: Selecting, chosen: Index, repeated: Index) -> Selected:
    below = chosen["sha"] < np.bytes_(job.threshold)
    documents, sizes, lowest, highest, duplicates, examples = [], [], [], [], [], []
    for source in range(job.sources):
        mine, again = chosen["source"] == source, repeated[repeated["source"] == source]
        sides = (mine & ~below, mine & below)
        documents.append((int(sides[0].sum()), int(sides[1].sum())))
        sizes.append((int(chosen["length"][sides[0]].sum()), int(chosen["length"][sides[1]].sum())))
        shas = hashes(chosen[mine][[0, -1]] if mine.any() else chosen[:0])
        lowest.append(shas[0].tobytes().hex() if len(shas) else None)
        highest.append(shas[1].tobytes().hex() if len(shas) else None)
        duplicates.append(len(again))
        examples.append(tuple((int(row["member"]), int(row["place"])) for row in again[:5]))
    return Selected(
        job.bucket, tuple(documents), tuple(sizes), tuple(lowest), tuple(highest), tuple(duplicates), tuple(examples)
    )


def _tuples(value: Any) -> Any:  # noqa: ANN401 - JSON
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def selected_rows(work: Workspace, bucket: int) -> Index:
    """The documents of a bucket, in the order of their hash."""
    return np.fromfile(work.selected / f"bucket-{bucket:05d}.idx", dtype=SELECTED)


def sides_of(rows: Index, limits: tuple[bytes, ...]) -> NDArray[np.intp]:
    """0 (training) or 1 (held out) of each document, by the limit of its source."""
    sides: NDArray[np.intp] = (rows["sha"] < np.array(limits, dtype="S32")[rows["source"]]).astype(np.intp)
    return sides


# ------------------------------------------------------------------ encode
@dataclass(frozen=True)
class Encoding:
    """Encode one bucket."""

    bucket: int
    runs: tuple[str, ...]
    limits: tuple[bytes, ...]
    """Hashes below are held out, by source."""
    tokenizer: Path
    tokenizer_sha256: str
    tokenizer_name: str
    """For errors: the file that the user gave."""
    dtype: str
    fim_rate: float
    work: Workspace


@dataclass(frozen=True)
class Encoded:
    """Tokens of each source and side, one after the other in the bucket's file: [source][side]."""

    bucket: int
    bytes: int
    tokens: tuple[tuple[int, int], ...]


def encode(job: Encoding) -> Encoded:
    """ValueError if a document does not come back exactly from its tokens."""
    marker = job.work.encoded / f"bucket-{job.bucket:05d}.json"
    if (found := read_marker(marker)) is not None:
        return Encoded(**{key: _tuples(value) for key, value in found.items()})
    tokenizer = _tokenizer(job.tokenizer, job.tokenizer_sha256, job.tokenizer_name)
    rows = selected_rows(job.work, job.bucket)
    sides = sides_of(rows, job.limits)
    parts: list[tuple[list[Any], list[Any]]] = [([], []) for _ in job.limits]
    with Texts(job.work.runs, list(job.runs)) as texts:
        pairs = ((number, texts.read(int(row["run"]), int(row["offset"]), int(row["length"]))) for number, row in
                 enumerate(rows))  # fmt: skip
        shas = hashes(rows)
        for batch in batches(pairs, ENCODE_BYTES):
            rates = [0.0 if sides[number] else job.fim_rate for number, _ in batch]
            documents = [(shas[number].tobytes(), raw) for number, raw in batch]
            for (number, _), tokens in zip(batch, _encode_batch(tokenizer, documents, rates), strict=True):
                parts[rows["source"][number]][sides[number]].append(np.array(tokens, dtype=LITTLE_ENDIAN[job.dtype]))
    path = marker.with_suffix(".bin")
    with path.open("wb") as file:
        for pair in parts:
            for side in pair:
                for tokens in side:
                    file.write(tokens)
    counts = tuple((sum(map(len, train)), sum(map(len, heldout))) for train, heldout in parts)
    result = Encoded(job.bucket, int(rows["length"].sum()), counts)
    write_marker(marker, vars(result), [path])
    return result


def _encode_batch(
    tokenizer: Tokenizer, documents: list[tuple[bytes, bytes]], rates: list[float]
) -> Iterator[list[int]]:
    """Tokens of each (hash, text), end-of-text included."""
    plans = [_texts(sha, raw, rate) for (sha, raw), rate in zip(documents, rates, strict=True)]
    encoded = tokenizer.encode_lists([text for texts, _ in plans for text in texts])
    for (_, raw), (texts, rearranged) in zip(documents, plans, strict=True):
        found = [next(encoded) for _ in texts]
        if not rearranged:
            whole = found[0] if len(found) == 1 else [token for part in found for token in part]
            if tokenizer.join(whole) != raw:
                raise ValueError(_inexact(raw, tokenizer))
            whole.append(tokenizer.end_of_text)
            yield whole
            continue
        prefix, middle, suffix = found
        if b"".join(map(tokenizer.join, found)) != raw:
            raise ValueError(_inexact(raw, tokenizer))
        assert tokenizer.fim is not None
        before, hole, end = tokenizer.fim
        yield [before, *prefix, hole, *suffix, end, *middle, tokenizer.end_of_text]


def _texts(sha: bytes, raw: bytes, rate: float) -> tuple[list[str], bool]:
    """What a document is encoded as, and whether that is prefix, middle and suffix."""
    if rate and is_rearranged(sha, rate) and (divided := divide(raw.decode(), sha)) is not None:
        return list(divided), True
    if len(raw) <= 2 * ENCODE_BYTES:
        return [raw.decode()], False
    return [raw[start:stop].decode() for start, stop in pieces(raw, ENCODE_BYTES)], False


def _inexact(raw: bytes, tokenizer: Tokenizer) -> str:
    start = raw[:60].decode("utf-8", "ignore")
    return f"the document that begins {start!r} does not come back exactly from {tokenizer.name}: use another tokenizer"


@lru_cache(maxsize=1)
def _tokenizer(path: Path, sha256: str, name: str) -> Tokenizer:
    """`sha256` tells apart the files that have been at the same path."""
    return Tokenizer.from_json(path.read_text(encoding="utf-8"), name)


# ------------------------------------------------------------------ assemble
@dataclass(frozen=True)
class Assembling:
    """Write one shard: tokens [start, stop) of one side of a source, from the buckets' files."""

    name: str
    extents: tuple[tuple[int, int, int], ...]
    """(bucket, first byte, bytes) that make up the shard."""
    work: Workspace


@dataclass(frozen=True)
class Assembled:
    """A shard that is written."""

    name: str
    sha256: str
    bytes: int


def assemble(job: Assembling) -> Assembled:
    """Copy and hash."""
    target = job.work.result / job.name
    marker = job.work.encoded / f"shard-{job.name.replace('/', '.')}.json"
    size = sum(length for _, _, length in job.extents)
    found = read_marker(marker)
    if found is not None and target.is_file() and target.stat().st_size == size:
        return Assembled(**found)
    target.parent.mkdir(exist_ok=True)
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for bucket, first, length in job.extents:
            with (job.work.encoded / f"bucket-{bucket:05d}.bin").open("rb") as source:
                source.seek(first)
                while length:
                    raw = source.read(min(length, COPY_BYTES))
                    if not raw:
                        raise OSError(f"bucket {bucket} is too short: remove {job.work.folder} and run again")
                    digest.update(raw)
                    file.write(raw)
                    length -= len(raw)
    result = Assembled(job.name, digest.hexdigest(), size)
    write_marker(marker, vars(result))
    return result
