"""Turns a mixture of sources into a prepared dataset, step by step. Called by `fathom data prepare`.

Invariants: the shards are a pure function of the documents and the options, not of file names, workers or
interruptions; a document is in one source and on one side only; every document round-trips exactly through the
tokenizer; the output folder appears whole or not at all; memory does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Literal

from model.corpus.fim import RATE
from model.corpus.listing import Member, list_source
from model.corpus.mixture import Mixture
from model.corpus.output import existing, publish, require_apart
from model.corpus.pool import Pool, cores
from model.corpus.runs import bucket_count
from model.corpus.skips import Skips, total
from model.corpus.steps import (
    SIDES,
    Assembled,
    Assembling,
    Encoded,
    Encoding,
    Read,
    Reading,
    Selected,
    Selecting,
    assemble,
    encode,
    label,
    read,
    select,
    selected_rows,
    sides_of,
)
from model.corpus.units import Unit, make_units
from model.corpus.whole import Documents, Learning, learn, measure
from model.corpus.workspace import Workspace, workspace
from model.dataset import (
    ITEM_BYTES,
    MANIFEST,
    TOKENIZER,
    VERSION,
    DatasetManifest,
    Shard,
    SourceManifest,
    Split,
    SplitName,
    TokenizerFile,
    content_digest,
)
from model.tokenizer import FIM, MIN_VOCAB, Tokenizer, check_vocab_size

MIB = 1024 * 1024
TOKENIZER_TEXT_BYTES = 128 * MIB
"""A vocabulary is learned from at most this much training text: the first documents by hash."""
BUCKET_BYTES, BUCKET_DOCUMENTS = (8 * MIB, 128 * MIB), 200_000
"""What one process holds of a bucket at most, about: a thousandth of the corpus within the first two."""
ALONE_BYTES = 16 * MIB
"""Below, starting other processes takes longer than the work."""

Progress = Callable[[str, int, int], None]
"""(phase, done, total): phases are resumed and reused (0, 0), reading, tokenizer, encoding and assembling (bytes)."""


@dataclass(frozen=True)
class Options:
    """How to prepare."""

    vocab_size: int = 4096
    heldout_share: float = 0.02
    tokenizer: str | Path | None = None
    """A tokenizer.json to use; then none is learned and `vocab_size` is ignored."""
    fim_rate: float | None = None
    """Share of training documents that are rearranged to prefix, suffix, middle; None: a tenth (as DeepSeek-V3) where
    the tokenizer has or can get the tokens for it."""
    max_document_bytes: int = 16 * MIB
    """Longer text files are cut at blank lines, longer records are left out."""
    shard_tokens: int = 64 * MIB
    workers: int | None = None
    """Processes; None: one for each core."""


@dataclass
class _Job:
    """A preparation under way."""

    mixture: Mixture
    options: Options
    members: list[Member]
    skips: dict[int, Skips]
    ready: Tokenizer | None
    fim_rate: float
    digest: str
    progress: Progress
    work: Workspace
    pool: Pool
    reads: list[Read] = field(default_factory=list)
    buckets: int = 1
    selections: list[Selected] = field(default_factory=list)
    limits: tuple[bytes, ...] = ()

    @property
    def documents(self) -> Documents:
        """All that were selected."""
        return Documents(self.work, self.runs, self.buckets, self.limits)

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(name for one in self.reads for name in one.runs)


def prepare(
    mixture: Mixture,
    out: str | Path,
    options: Options = Options(),
    *,
    force: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> DatasetManifest:
    """Prepare `mixture` into the folder `out` and return the manifest.

    In a folder one text file is one document; a single text file is cut into documents at blank lines. If `out`
    already holds the result of the same inputs, nothing is done; an interrupted call goes on where it was.

    Raises FileNotFoundError (no source), FileExistsError (`out` holds something else, or another process is at it;
    `force` replaces a dataset, never other files) and ValueError (everything else that the caller can mend).
    """
    out = Path(os.path.realpath(os.path.expanduser(out)))
    ready, fim_rate = _checked(options)
    skips: dict[int, Skips] = {}
    members: list[Member] = []
    for index, source in enumerate(mixture.sources):
        require_apart(source.uri, out)
        members += list_source(index, source, skips.setdefault(index, Skips()))
    digest = _inputs_digest(mixture, options, members, ready, fim_rate)
    if (found := existing(out, digest, force)) is not None:
        progress("reused", 0, 0)
        return found
    workers = options.workers or (cores() if sum(member.size for member in members) > ALONE_BYTES else 1)
    with workspace(out) as work:
        try:
            with Pool(workers) as pool:
                job = _Job(mixture, options, members, skips, ready, fim_rate, digest, progress, work, pool)
                if work.begin(digest):
                    progress("resumed", 0, 0)
                manifest = _build(job)
        except ValueError:
            work.remove()  # what is wrong with the input is wrong with what was made of it
            raise
        publish(work.result, out)
        work.remove()
    return manifest


def _checked(options: Options) -> tuple[Tokenizer | None, float]:
    """-> the tokenizer that was given, the rate of fill-in-the-middle."""
    if not 0 < options.heldout_share <= 0.5:
        raise ValueError(f"heldout_share must be above 0 and at most 0.5, got {options.heldout_share}")
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"workers must be at least 1, got {options.workers}")
    rate = options.fim_rate
    if rate is not None and not 0 <= rate <= 1:
        raise ValueError(f"fim_rate must be a share between 0 and 1, got {rate}")
    if options.tokenizer is None:
        if rate is None:
            rate = RATE if options.vocab_size >= MIN_VOCAB + len(FIM) else 0.0
        check_vocab_size(options.vocab_size, fim=rate > 0)
        return None, rate
    ready = Tokenizer.load(options.tokenizer)
    if ready.fim is None and rate:
        raise ValueError(
            f"{ready.name} has no special tokens for fill-in-the-middle (such as {', '.join(FIM)}), so fim_rate must "
            f"be 0, not {rate}"
        )
    return ready, (RATE if ready.fim else 0.0) if rate is None else rate


def _inputs_digest(
    mixture: Mixture, options: Options, members: list[Member], ready: Tokenizer | None, fim_rate: float
) -> str:
    """SHA-256 over everything that decides the result; files by their names, sizes and versions."""
    body = {
        "version": VERSION,
        "mixture": mixture.model_dump(mode="json"),
        "tokenizer": _sha256(ready.to_json().encode()) if ready else options.vocab_size,
        "options": [options.heldout_share, options.max_document_bytes, options.shard_tokens, fim_rate],
    }
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    for member in members:
        digest.update(json.dumps(asdict(member), sort_keys=True).encode())
    return digest.hexdigest()


def _build(job: _Job) -> DatasetManifest:
    """All steps; the manifest is written last."""
    _read(job)
    _select(job)
    tokenizer = job.ready or _learn(job)
    content = tokenizer.to_json().encode()
    (job.work.result / TOKENIZER).write_bytes(content)
    dtype: Literal["uint16", "uint32"] = "uint16" if tokenizer.vocab_size <= 65536 else "uint32"
    measured = job.pool.start(measure, job.documents)
    shards = _assemble(job, _encode(job, tokenizer.name, dtype), dtype)
    sources = _sources(job, shards)
    sha256 = _sha256(content)
    manifest = DatasetManifest(
        digest=content_digest(sha256, [shard for one in sources for shard in one.train.shards + one.heldout.shards]),
        inputs_digest=job.digest,
        tokenizer=TokenizerFile(
            sha256=sha256, vocab_size=tokenizer.vocab_size, end_of_text=tokenizer.end_of_text, fim=tokenizer.fim
        ),
        dtype=dtype,
        sources=sources,
        fim_rate=job.fim_rate,
        baselines=measured(),
    )
    (job.work.result / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


# ------------------------------------------------------------------ read and select
def _read(job: _Job) -> None:
    units = make_units(job.members, job.options.max_document_bytes, job.skips)
    size, done = sum(unit.size for unit in units), 0
    job.progress("reading", 0, size)

    def took(result: Read) -> None:
        nonlocal done
        done += result.size
        job.reads.append(result)
        job.progress("reading", done, size)

    job.pool.map(read, [_reading(job, unit) for unit in units], took)
    job.reads.sort(key=lambda one: one.unit)
    job.skips = total([job.skips, *(one.skips for one in job.reads)])


def _reading(job: _Job, unit: Unit) -> Reading:
    return Reading(
        unit=unit,
        members=tuple(job.members[part.member] for part in unit.parts),
        fields=tuple(source.text_field for source in job.mixture.sources),
        max_document_bytes=job.options.max_document_bytes,
        work=job.work,
    )


def _select(job: _Job) -> None:
    """Drop what is there twice, and decide what is held out."""
    size, documents = sum(one.bytes for one in job.reads), sum(one.documents for one in job.reads)
    each = min(max(size // 1024, BUCKET_BYTES[0]), BUCKET_BYTES[1])
    job.buckets = bucket_count(size, documents, each, BUCKET_DOCUMENTS)
    threshold = int(job.options.heldout_share * 2**64).to_bytes(8, "big").ljust(32, b"\0")
    sources = len(job.mixture.sources)
    runs = job.runs
    pieces = [Selecting(bucket, job.buckets, runs, threshold, sources, job.work) for bucket in range(job.buckets)]
    job.pool.map(select, pieces, job.selections.append)
    job.selections.sort(key=lambda one: one.bucket)
    for source in range(sources):
        for one in job.selections:
            if one.duplicates[source]:
                skips, shown = Skips(), one.examples[source]
                for member, place in shown:
                    skips.add("duplicate", label(job.members[member], place))
                skips.counts["duplicate"] = one.duplicates[source]
                job.skips.setdefault(source, Skips()).update(skips)
    job.limits = _limits(job, threshold)


def _limits(job: _Job, threshold: bytes) -> tuple[bytes, ...]:
    """By source, the hash below which its documents are held out.

    That choice does not depend on other documents, except that the document with the smallest (largest) hash makes sure
    that neither side of a source is empty, where it has two documents. ValueError where there is too little text.
    """
    limits, held = [], 0
    for index, source in enumerate(job.mixture.sources):
        train = sum(one.documents[index][0] for one in job.selections)
        heldout = sum(one.documents[index][1] for one in job.selections)
        lowest = next((one.lowest[index] for one in job.selections if one.lowest[index]), None)
        highest = next((one.highest[index] for one in reversed(job.selections) if one.highest[index]), None)
        if train + heldout < 1 or (len(job.mixture.sources) == 1 and train + heldout < 2):
            needed = (
                "at least 2 are needed (one to train on, one held out)"
                if len(job.mixture.sources) < 2
                else "1 is needed"
            )
            raise ValueError(
                f"{source.uri} has {train + heldout} usable document(s), {needed}; skipped: "
                f"{job.skips.get(index, Skips())}{_advice(job, index)}"
            )
        assert lowest is not None
        assert highest is not None
        limit = threshold
        if heldout == 0 and train > 1:
            limit, heldout = (int(lowest, 16) + 1).to_bytes(32, "big"), 1
        elif train == 0:
            limit, heldout = bytes.fromhex(highest), heldout - 1
        limits.append(limit)
        held += heldout
    if not held:
        raise ValueError(
            "no document is held out: at least one source needs 2 documents (one to train on, one held out)"
        )
    return tuple(limits)


def _advice(job: _Job, source: int) -> str:
    """What to do about it, where one reason stands out."""
    counts, uri = job.skips.get(source, Skips()).counts, job.mixture.sources[source].uri
    if not counts or sum(counts.values()) > 2 * max(counts.values()):
        return ""
    advice = {
        "no_text": f"; name the field that holds the text, not {job.mixture.sources[source].text_field!r}, with "
        "--text-field",
        "undecodable": "; convert the text to UTF-8",
        "archive": f"; unpack the archives in {uri}",
        "too_large": "; raise --max-document-mib",
    }
    return advice.get(max(counts, key=lambda kind: counts[kind]), "")


# ------------------------------------------------------------------ tokenize and write
def _learn(job: _Job) -> Tokenizer:
    """A tokenizer trained on the first TOKENIZER_TEXT_BYTES of training text; the one of an interrupted call."""
    kept = job.work.encoded / TOKENIZER
    if not kept.exists():
        wanted = min(sum(size for one in job.selections for size, _ in one.bytes), TOKENIZER_TEXT_BYTES)
        job.progress("tokenizer", 0, wanted)
        work = Learning(job.documents, TOKENIZER_TEXT_BYTES, job.options.vocab_size, job.fim_rate > 0, kept)
        if job.pool.workers == 1:
            learn(work, lambda done: job.progress("tokenizer", min(done, wanted), wanted))
        else:
            job.pool.alone(learn, work)  # what it needed goes with it: hundreds of MB
        job.progress("tokenizer", wanted, wanted)
    return Tokenizer.from_json(kept.read_text(encoding="utf-8"), "the learned tokenizer")


def _encode(job: _Job, name: str, dtype: str) -> list[Encoded]:
    size, done, found = sum(sum(map(sum, one.bytes)) for one in job.selections), 0, []
    job.progress("encoding", 0, size)

    def took(result: Encoded) -> None:
        nonlocal done
        done += result.bytes
        found.append(result)
        job.progress("encoding", done, size)

    where = job.work.result / TOKENIZER
    sha256 = _sha256(where.read_bytes())
    pieces = [
        Encoding(bucket, job.runs, job.limits, where, sha256, name, dtype, job.fim_rate, job.work)
        for bucket in range(job.buckets)
    ]
    job.pool.map(encode, pieces, took)
    return sorted(found, key=lambda one: one.bucket)


def _assemble(job: _Job, encoded: list[Encoded], dtype: str) -> dict[str, Shard]:
    """All shards, by name."""
    item, pieces = ITEM_BYTES[dtype], []
    for source, one in enumerate(job.mixture.sources):
        for side, name in enumerate(SIDES):
            pieces += [
                Assembling(f"{one.name}/{name}-{number:05d}.bin", extents, job.work)
                for number, extents in enumerate(_extents(encoded, source, side, item, job.options.shard_tokens * item))
            ]
    size, done = sum(length for piece in pieces for _, _, length in piece.extents), 0
    shards: dict[str, Shard] = {}

    def took(result: Assembled) -> None:
        nonlocal done
        done += result.bytes
        shards[result.name] = Shard(name=result.name, tokens=result.bytes // item, sha256=result.sha256)
        job.progress("assembling", done, size)

    job.pool.map(assemble, pieces, took)
    return shards


def _extents(
    encoded: list[Encoded], source: int, side: int, item: int, shard: int
) -> Iterator[tuple[tuple[int, int, int], ...]]:
    """For each shard of `shard` bytes (the last may be shorter), the stretches of the buckets' files in it."""
    current: list[tuple[int, int, int]] = []
    free = shard
    for one in encoded:
        flat = [count * item for pair in one.tokens for count in pair]
        first, length = [0, *accumulate(flat)][2 * source + side], flat[2 * source + side]
        while length:
            part = min(length, free)
            current.append((one.bucket, first, part))
            first, length, free = first + part, length - part, free - part
            if not free:
                yield tuple(current)
                current, free = [], shard
    if current:
        yield tuple(current)


def _sources(job: _Job, shards: dict[str, Shard]) -> tuple[SourceManifest, ...]:
    """What each source has given; who counts a document as held out is the encoding, by the limits."""
    counts: dict[tuple[int, int], tuple[int, int]] = {}
    for bucket in range(job.buckets):
        rows = selected_rows(job.work, bucket)
        sides = sides_of(rows, job.limits)
        for source in range(len(job.mixture.sources)):
            for side in range(2):
                mine = rows["length"][(rows["source"] == source) & (sides == side)]
                documents, size = counts.get((source, side), (0, 0))
                counts[source, side] = documents + len(mine), size + int(mine.sum())
    return tuple(
        SourceManifest(
            name=source.name,
            weight=source.weight,
            uri=source.uri,
            license=source.license,
            provenance=source.provenance,
            train=_split(source.name, "train", counts[index, 0], shards),
            heldout=_split(source.name, "heldout", counts[index, 1], shards),
            skipped=job.skips.get(index, Skips()).skipped(),
        )
        for index, source in enumerate(job.mixture.sources)
    )


def _split(source: str, side: SplitName, counts: tuple[int, int], shards: dict[str, Shard]) -> Split:
    prefix = f"{source}/{side}-"
    own = tuple(shards[name] for name in sorted(shards, key=lambda n: (len(n), n)) if name.startswith(prefix))
    return Split(documents=counts[0], bytes=counts[1], tokens=sum(shard.tokens for shard in own), shards=own)


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
