"""Turns text files into a prepared dataset: tokenizer, token shards, held-out split, baselines, manifest.

Called by `fathom data prepare`. Invariants: the shards are a pure function of the documents and the options
(not of file names or their order); a document is either for training or held out; every document round-trips
exactly through the tokenizer; the output folder appears whole or not at all.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import lzma
import os
import re
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.data import ShardWriter
from model.dataset import (
    MANIFEST,
    TOKENIZER,
    VERSION,
    Baselines,
    DatasetDamaged,
    DatasetManifest,
    DatasetMissing,
    Skip,
    Skipped,
    Split,
    SplitName,
    Splits,
    TokenizerFile,
    content_digest,
    is_whole,
    read_manifest,
)
from model.tokenizer import Tokenizer, check_vocab_size, pieces

MIB = 1024 * 1024
TOKENIZER_TEXT_BYTES = 256 * MIB
"""A vocabulary is learned from at most this much training text: the first documents by hash."""
XZ_BYTES = 16 * MIB
"""xz compresses at most this much held-out text; its level 9 takes seconds per 10 MiB."""
ENCODE_BYTES = 2 * MIB
"""Text handed to the tokenizer at once; longer documents are encoded in pieces of this size."""
PIECE_BYTES = (1024, 64 * 1024)
"""Smallest and largest aim for the documents that a source of one file is cut into."""
EXAMPLES = 5
OWN_FILES = re.compile(r"manifest\.json|tokenizer\.json|(train|heldout)-\d{5}\.bin")

Progress = Callable[[str, int, int], None]
"""(phase, done, total): phases are reading (files), tokenizer (bytes), encoding (bytes) and reused (0, 0)."""


@dataclass(frozen=True)
class Document:
    """Bytes [start, stop) of one file."""

    path: Path
    name: str
    """Path relative to the source, for messages."""
    start: int
    stop: int
    sha256: str

    def __len__(self) -> int:
        """Bytes of text."""
        return self.stop - self.start

    def read(self) -> bytes:
        """The bytes; ValueError if the file is no longer what was scanned."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            raw = file.read(len(self))
        if hashlib.sha256(raw).hexdigest() != self.sha256:
            raise ValueError(f"{self.path} changed while it was being prepared: run the command again")
        return raw


@dataclass
class Scan:
    """Usable documents of a source, by hash, and what was left out."""

    documents: dict[str, Document] = field(default_factory=dict)
    skips: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def skipped(self) -> Skipped:
        """Counts and the first examples of each kind."""
        return Skipped.model_validate(
            {kind: Skip(count=len(names), examples=tuple(names[:EXAMPLES])) for kind, names in self.skips.items()}
        )

    def add(self, path: Path, name: str, raw: bytes, *, cut: bool) -> None:
        """Take a file's content, as one document or (`cut`) as many."""
        if b"\0" in raw:
            self.skips["binary"].append(name)
            return
        try:
            raw.decode()
        except UnicodeDecodeError:
            self.skips["undecodable"].append(name)
            return
        for start, stop in pieces(raw, _aim(len(raw))) if cut else [(0, len(raw))]:
            label = f"{name}[{start}:{stop}]" if cut else name
            piece = raw[start:stop]
            digest = hashlib.sha256(piece).hexdigest()
            if not piece.strip():
                self.skips["empty"].append(label)
            elif digest in self.documents:
                self.skips["duplicate"].append(label)
            else:
                self.documents[digest] = Document(path, label, start, stop, digest)


@dataclass(frozen=True)
class _Plan:
    """All that decides a dataset."""

    source: str
    train: list[Document]
    heldout: list[Document]
    skipped: Skipped
    tokenizer: Tokenizer | None
    vocab_size: int
    shard_tokens: int
    license: str
    provenance: str

    def digest(self) -> str:
        """SHA-256 over all of it except what was skipped: the same inputs make the same dataset."""
        options = {
            "version": VERSION,
            "source": self.source,
            "tokenizer": _sha256(self.tokenizer.to_json().encode()) if self.tokenizer else self.vocab_size,
            "shard_tokens": self.shard_tokens,
            "license": self.license,
            "provenance": self.provenance,
        }
        lines = [json.dumps(options, sort_keys=True)]
        lines += [f"train {document.sha256}" for document in self.train]
        lines += [f"heldout {document.sha256}" for document in self.heldout]
        return _sha256("\n".join(lines).encode())


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    vocab_size: int = 4096,
    heldout_share: float = 0.02,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tokenizer: str | Path | None = None,
    license: str = "",
    provenance: str = "",
    max_file_bytes: int = 64 * MIB,
    shard_tokens: int = 64 * MIB,
    force: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> DatasetManifest:
    """Prepare the text file or folder `source` into the folder `out` and return the manifest.

    In a folder one file is one document; a single file is cut into documents at blank lines. `include` and
    `exclude` are globs over the path relative to `source`, where `*` matches `/` too and a pattern that
    matches a folder matches all in it. With `tokenizer` (a tokenizer.json) none is learned and `vocab_size`
    is ignored. If `out` already holds the result of the same inputs, nothing is done.

    Raises FileNotFoundError (no source), FileExistsError (`out` holds something else; `force` replaces a
    dataset, never other files) and ValueError (everything else that the caller can mend).
    """
    source, out = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    _check_places(source, out)
    if not 0 < heldout_share <= 0.5:
        raise ValueError(f"heldout_share must be above 0 and at most 0.5, got {heldout_share}")
    ready = Tokenizer.load(tokenizer) if tokenizer is not None else None
    if ready is None:
        check_vocab_size(vocab_size)
    scan = scan_source(source, include, exclude, max_file_bytes, progress)
    train, heldout = split_documents(scan, heldout_share, source)
    plan = _Plan(
        source=str(source),
        train=train,
        heldout=heldout,
        skipped=scan.skipped(),
        tokenizer=ready,
        vocab_size=vocab_size,
        shard_tokens=shard_tokens,
        license=license,
        provenance=provenance,
    )
    return _obtain(out, plan, force, progress)


def _check_places(source: Path, out: Path) -> None:
    """Refuse a source that is not there and an output that overlaps with it."""
    if not source.exists():
        raise FileNotFoundError(f"no file or folder {source}")
    if not (source.is_file() or source.is_dir()):
        raise ValueError(f"{source} is neither a file nor a folder")
    if out == source or source in out.parents:
        raise ValueError(f"the output {out} lies inside the source {source}: choose a folder outside of it")
    if out in source.parents:
        raise ValueError(f"the source {source} lies inside the output {out}: choose another output folder")


def scan_source(
    source: Path, include: Sequence[str], exclude: Sequence[str], max_file_bytes: int, progress: Progress
) -> Scan:
    """Read all files that the globs choose and sort out what is not usable text."""
    scan = Scan()
    if source.is_file():
        files = [(source, source.name)] if wanted(source.name, include, exclude) else []
    else:
        files = list(_walk(source, include, exclude, scan))
    for number, (path, name) in enumerate(files):
        progress("reading", number, len(files))
        try:
            if path.stat().st_size > max_file_bytes:
                scan.skips["too_large"].append(name)
                continue
            raw = path.read_bytes()
        except OSError:
            scan.skips["unreadable"].append(name)
            continue
        scan.add(path, name, raw, cut=source.is_file())
    progress("reading", len(files), len(files))
    return scan


def _walk(root: Path, include: Sequence[str], exclude: Sequence[str], scan: Scan) -> Iterator[tuple[Path, str]]:
    """Regular files below `root` that the globs choose, with their relative names, in a fixed order."""

    def relative(path: str | Path) -> str:
        # A name that is not UTF-8 is still a name; it only must be printable.
        return os.fsencode(os.path.relpath(path, root)).decode("utf-8", "replace").replace(os.sep, "/")

    def unreadable(error: OSError) -> None:
        scan.skips["unreadable"].append(relative(error.filename))

    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        base = Path(folder)
        for name in list(subfolders):
            if _matches(relative(base / name), exclude):
                subfolders.remove(name)
            elif (base / name).is_symlink():
                subfolders.remove(name)
                scan.skips["symlink"].append(relative(base / name))
        subfolders.sort(key=os.fsencode)
        for name in sorted(names, key=os.fsencode):
            path = base / name
            label = relative(path)
            if not wanted(label, include, exclude):
                continue
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                scan.skips["symlink"].append(label)
            elif not path.is_file():
                scan.skips["unreadable"].append(label)
            else:
                yield path, label


def wanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether the globs choose a file of this relative name; no `include` means all."""
    return (not include or _matches(name, include)) and not _matches(name, exclude)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches the name, a folder above it, or (as `folder/*`) the folder itself."""
    return any(
        fnmatch.fnmatchcase(name, pattern)
        or fnmatch.fnmatchcase(name, pattern.rstrip("/") + "/*")
        or fnmatch.fnmatchcase(name + "/", pattern)
        for pattern in patterns
    )


def _aim(size: int) -> int:
    """Document size for a single file: 64 documents, within PIECE_BYTES."""
    return min(max(size // 64, PIECE_BYTES[0]), PIECE_BYTES[1])


def split_documents(scan: Scan, share: float, source: Path) -> tuple[list[Document], list[Document]]:
    """(training, held-out) documents, each in the order of their hash.

    A document is held out if its hash, read as a fraction, is below `share`: the choice does not depend on
    other documents, except that the smallest (largest) hash makes sure that neither side is empty.
    """
    documents = [scan.documents[digest] for digest in sorted(scan.documents)]
    if len(documents) < 2:
        skipped = {kind: len(names) for kind, names in scan.skips.items()}
        raise ValueError(
            f"{source} has {len(documents)} usable document(s), at least 2 are needed (one to train on, "
            f"one held out); skipped: {', '.join(f'{n} {kind}' for kind, n in skipped.items()) or 'none'}"
        )
    number = sum(int(document.sha256[:16], 16) < share * 2**64 for document in documents)
    number = min(max(number, 1), len(documents) - 1)
    return documents[number:], documents[:number]


def _obtain(out: Path, plan: _Plan, force: bool, progress: Progress) -> DatasetManifest:
    """The dataset of `plan` at `out`: the one that is there already, or a new one."""
    existing = _existing(out, plan.digest(), force)
    if existing is not None:
        progress("reused", 0, 0)
        return existing
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    building.mkdir()
    try:
        manifest = _build(building, plan, progress)
        _publish(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def _existing(out: Path, inputs_digest: str, force: bool) -> DatasetManifest | None:
    """The dataset at `out` if it is whole and has the same inputs, None if `out` may be (re)written."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise FileExistsError(f"{out} exists and is not a folder")
    names = [entry.name for entry in out.iterdir()]
    if not names:
        return None
    if MANIFEST not in names or not all(OWN_FILES.fullmatch(name) for name in names):
        raise FileExistsError(f"{out} is not empty and not a prepared dataset: choose another output folder")
    try:
        manifest = read_manifest(out)
    except (DatasetDamaged, DatasetMissing):
        manifest = None
    if not force:
        if manifest is None or manifest.inputs_digest != inputs_digest:
            raise FileExistsError(
                f"{out} holds a dataset that was prepared from other files or with other options: "
                "choose another output folder, or replace it with --force"
            )
        if is_whole(out, manifest):
            return manifest
    return None


def _build(folder: Path, plan: _Plan, progress: Progress) -> DatasetManifest:
    """Write everything into an empty folder, the manifest last."""
    tokenizer = plan.tokenizer or _learn(plan.train, plan.vocab_size, progress)
    content = tokenizer.to_json().encode()
    (folder / TOKENIZER).write_bytes(content)
    dtype: Literal["uint16", "uint32"] = "uint16" if tokenizer.vocab_size <= 65536 else "uint32"
    total = sum(map(len, plan.train + plan.heldout))
    sides: dict[SplitName, Split] = {}
    done = 0
    order: tuple[tuple[SplitName, list[Document]], ...] = (("train", plan.train), ("heldout", plan.heldout))
    for name, documents in order:
        writer = ShardWriter(folder, name, dtype, plan.shard_tokens)
        for document, tokens in _encoded(tokenizer, documents):
            progress("encoding", done, total)
            writer.write(tokens)
            done += len(document)
        shards = writer.close()
        sides[name] = Split(
            documents=len(documents),
            tokens=sum(shard.tokens for shard in shards),
            bytes=sum(map(len, documents)),
            shards=shards,
        )
    progress("encoding", total, total)
    sha256 = _sha256(content)
    manifest = DatasetManifest(
        digest=content_digest(sha256, sides["train"].shards + sides["heldout"].shards),
        inputs_digest=plan.digest(),
        tokenizer=TokenizerFile(sha256=sha256, vocab_size=tokenizer.vocab_size, end_of_text=tokenizer.end_of_text),
        dtype=dtype,
        splits=Splits(train=sides["train"], heldout=sides["heldout"]),
        source=plan.source,
        license=plan.license,
        provenance=plan.provenance,
        skipped=plan.skipped,
        baselines=baselines(document.read() for document in plan.heldout),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _learn(documents: list[Document], vocab_size: int, progress: Progress) -> Tokenizer:
    """A tokenizer trained on the first TOKENIZER_TEXT_BYTES of the training documents."""
    total = min(sum(map(len, documents)), TOKENIZER_TEXT_BYTES)

    def texts() -> Iterator[str]:
        done = 0
        for document in documents:
            if done >= TOKENIZER_TEXT_BYTES:
                return
            progress("tokenizer", done, total)
            done += len(document)
            yield document.read().decode()
        progress("tokenizer", total, total)

    return Tokenizer.train(texts(), vocab_size)


def _encoded(tokenizer: Tokenizer, documents: Iterable[Document]) -> Iterator[tuple[Document, NDArray[np.int64]]]:
    """Each document with its tokens and end-of-text, encoded in batches; ValueError if one changes."""
    end = np.array([tokenizer.end_of_text], dtype=np.int64)
    for batch in _batches(documents):
        parts = [raw[start:stop] for _, raw in batch for start, stop in pieces(raw, ENCODE_BYTES)]
        tokens = tokenizer.encode_batch([part.decode() for part in parts])
        for document, raw in batch:
            encoded = [next(tokens) for _ in pieces(raw, ENCODE_BYTES)]
            whole = np.concatenate([*encoded, end])
            if tokenizer.decode_bytes(whole.tolist()) != raw:
                raise ValueError(
                    f"{document.name} does not come back exactly from {tokenizer.name}: use another tokenizer"
                )
            yield document, whole


def _batches(documents: Iterable[Document]) -> Iterator[list[tuple[Document, bytes]]]:
    """Documents with their bytes, in groups of ENCODE_BYTES or a little more."""
    batch: list[tuple[Document, bytes]] = []
    size = 0
    for document in documents:
        batch.append((document, document.read()))
        size += len(document)
        if size >= ENCODE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def baselines(texts: Iterable[bytes]) -> Baselines:
    """Order-0 entropy of all bytes, and xz of the first XZ_BYTES."""
    counts = np.zeros(256, dtype=np.int64)
    compressor = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    fed = compressed = 0
    for text in texts:
        counts += np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256)
        part = text[: XZ_BYTES - fed]
        compressed += len(compressor.compress(part))
        fed += len(part)
    compressed += len(compressor.flush())
    shares = counts[counts > 0] / counts.sum()
    entropy = float(np.sum(shares * -np.log2(shares)))
    return Baselines(order0_bits_per_byte=entropy, xz_bits_per_byte=8 * compressed / fed, xz_bytes=fed)


def _publish(building: Path, out: Path) -> None:
    """Put the finished folder in the place of `out`, which is absent, empty or a dataset to replace."""
    for name in building.iterdir():
        _sync(name)
    _sync(building)
    old = building.with_suffix(".old")
    if out.exists():
        os.rename(out, old)
    try:
        os.rename(building, out)
    except OSError as error:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise FileExistsError(f"{out} appeared while the dataset was being prepared ({error})") from error
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Make a file or folder durable before the folder's name says that it is complete."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
