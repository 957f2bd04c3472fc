"""The manifest of a prepared dataset: what is in it, where it came from and how to check it.

Written by `model.corpus`; read by `model.data`, the planner and the command line. Imports neither torch nor
numpy. Invariant: a manifest that `read_manifest` returns names no file outside its own folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from model.config import Frozen
from model.files import read_file

VERSION: Literal[2] = 2
MANIFEST = "manifest.json"
TOKENIZER: Literal["tokenizer.json"] = "tokenizer.json"
ITEM_BYTES = {"uint16": 2, "uint32": 4}
MAX_TOKENIZER_BYTES = 1 << 28
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_SOURCES = 64

SplitName = Literal["train", "heldout"]
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DatasetMissing(FileNotFoundError):
    """There is no prepared dataset where one was expected."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"no prepared dataset at {uri}: run `fathom data prepare SOURCE {uri}`")


class DatasetDamaged(ValueError):
    """A dataset that is there and cannot be used; the message names the file and what to do."""


class Shard(Frozen):
    """One file of raw little-endian token numbers."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}/(train|heldout)-\d{5,8}\.bin$")
    tokens: int = Field(ge=1)
    sha256: Sha256


class Split(Frozen):
    """The documents of one side of a source, one after the other, each followed by end-of-text."""

    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    """Tokens of all shards, end-of-text included."""
    bytes: int = Field(ge=0)
    """UTF-8 bytes of the documents' text; special tokens stand for none."""
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = sum(shard.tokens for shard in self.shards)
        if total != self.tokens:
            raise ValueError(f"the shards hold {total} tokens together, but the split says {self.tokens}")
        return self


class TokenizerFile(Frozen):
    """The tokenizer that the shards were made with, in the format of the `tokenizers` library."""

    file: Literal["tokenizer.json"] = TOKENIZER
    sha256: Sha256
    vocab_size: int = Field(ge=257)
    end_of_text: int = Field(ge=0)
    """Number of the token that follows every document."""
    fim: tuple[int, int, int] | None = None
    """Numbers of the tokens that stand before prefix, suffix and middle of a rearranged document."""


class Skip(Frozen):
    """Files (or pieces of a single file) that were left out for one reason."""

    count: int = Field(0, ge=0)
    examples: tuple[str, ...] = Field((), max_length=5)


class Skipped(Frozen):
    """What of a source is not in the dataset. Files that the globs leave out are not counted."""

    archive: Skip = Skip()
    """A container of other files (zip, tar, ...), which is never opened."""
    binary: Skip = Skip()
    """Contains a zero byte."""
    undecodable: Skip = Skip()
    """Not UTF-8."""
    empty: Skip = Skip()
    """Nothing but white space."""
    too_large: Skip = Skip()
    """One record larger than a document may be."""
    duplicate: Skip = Skip()
    """The same bytes as another document, of this source or of one before it."""
    symlink: Skip = Skip()
    """A link to a folder, or to a file outside the source."""
    unreadable: Skip = Skip()
    """No permission, or not a regular file."""
    damaged: Skip = Skip()
    """A record that is not what its format says, or a file that ends too early; what came before it is kept."""
    no_text: Skip = Skip()
    """A record without the text field, or with something else than text in it."""


class Baselines(Frozen):
    """What simple compressors need for the held-out text: figures to compare a model's bits per byte with."""

    order0_bits_per_byte: float = Field(ge=0, le=8)
    """Entropy of single bytes, with the frequencies of the held-out text itself."""
    xz_bits_per_byte: float = Field(ge=0)
    """`xz -9e` of the first `xz_bytes` of held-out text; xz has not seen the training text."""
    xz_bytes: int = Field(ge=1)


class SourceManifest(Frozen):
    """What one source has given."""

    name: SourceName
    weight: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Share of the training sequences, relative to the other sources; None: as much as there is of it."""
    uri: str
    license: str = ""
    provenance: str = ""
    train: Split
    heldout: Split
    skipped: Skipped = Skipped()

    def split(self, name: SplitName) -> Split:
        """One side by name."""
        return self.train if name == "train" else self.heldout

    @model_validator(mode="after")
    def _own_shards(self) -> Self:
        if not self.train.shards:
            raise ValueError(f"{self.name} has nothing to train on")
        for side, split in (("train", self.train), ("heldout", self.heldout)):
            expected = [f"{self.name}/{side}-{number:05d}.bin" for number in range(len(split.shards))]
            if [shard.name for shard in split.shards] != expected:
                raise ValueError(f"the shards of {self.name}/{side} must be numbered from 0 in order")
        return self


class DatasetManifest(Frozen):
    """A prepared dataset. Its files lie beside the manifest, those of each source in a folder of its name."""

    version: Literal[2] = VERSION
    digest: Sha256
    """`content_digest` of tokenizer and shards: two datasets with the same digest hold the same tokens."""
    inputs_digest: Sha256
    """Of the listing of all inputs and of all options: the same need not be prepared again."""
    tokenizer: TokenizerFile
    dtype: Literal["uint16", "uint32"]
    sources: tuple[SourceManifest, ...] = Field(min_length=1, max_length=MAX_SOURCES)
    fim_rate: float = Field(0.0, ge=0, le=1)
    """Share of the training documents that were rearranged to prefix, suffix, middle (fill in the middle)."""
    baselines: Baselines

    def tokens(self, side: SplitName) -> int:
        """Of all sources together."""
        return sum(source.split(side).tokens for source in self.sources)

    def bytes(self, side: SplitName) -> int:
        """Of all sources together."""
        return sum(source.split(side).bytes for source in self.sources)

    def documents(self, side: SplitName) -> int:
        """Of all sources together."""
        return sum(source.split(side).documents for source in self.sources)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text that one training token stands for, on average."""
        return self.bytes("train") / self.tokens("train")

    def shards(self) -> tuple[Shard, ...]:
        """All files of tokens, in the order of `content_digest`."""
        return tuple(shard for source in self.sources for shard in source.train.shards + source.heldout.shards)

    @model_validator(mode="after")
    def _content(self) -> Self:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"sources must have different names, got {', '.join(names)}")
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            raise ValueError("either all sources have a weight or none has")
        if not self.tokens("heldout"):
            raise ValueError("no document is held out")
        special = {"end_of_text": self.tokenizer.end_of_text, "fim": max(self.tokenizer.fim or (0,))}
        for name, number in special.items():
            if number >= self.tokenizer.vocab_size:
                raise ValueError(f"{name} ({number}) is not below vocab_size ({self.tokenizer.vocab_size})")
        if self.dtype == "uint16" and self.tokenizer.vocab_size > 65536:
            raise ValueError(f"uint16 cannot hold a vocabulary of {self.tokenizer.vocab_size}")
        expected = content_digest(self.tokenizer.sha256, self.shards())
        if self.digest != expected:
            raise ValueError(f"digest is {self.digest}, but the files listed have {expected}")
        return self


def content_digest(tokenizer_sha256: str, shards: Iterable[Shard]) -> str:
    """SHA-256 over a line `sha256 tokens name` per file: tokenizer (0 tokens), then the shards of each source."""
    lines = [f"{tokenizer_sha256} 0 {TOKENIZER}\n"]
    lines += [f"{shard.sha256} {shard.tokens} {shard.name}\n" for shard in shards]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_whole(folder: Path, manifest: DatasetManifest) -> bool:
    """Whether all files are there in their sizes; `TokenSplit.verify` checks the shards' hashes."""
    for shard in manifest.shards():
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.tokens * ITEM_BYTES[manifest.dtype]:
            return False
    tokenizer = folder / TOKENIZER
    if not tokenizer.is_file():
        return False
    return hashlib.sha256(tokenizer.read_bytes()).hexdigest() == manifest.tokenizer.sha256


def read_manifest(uri: str | Path) -> DatasetManifest:
    """Read and check `<uri>/manifest.json`, where `uri` is a folder: a path or any URL that fsspec knows.

    Raises DatasetMissing if there is none, DatasetDamaged (a ValueError) if it cannot be used.
    """
    where = str(uri).rstrip("/") or str(uri)
    try:
        raw = read_file(f"{where}/{MANIFEST}", MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise DatasetMissing(where) from None
    except (ImportError, ValueError) as error:
        # fsspec: unknown protocol, or the package of a known one is not installed.
        raise DatasetDamaged(f"cannot read {where}: {error}") from error
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DatasetDamaged(f"{where}/{MANIFEST} is not JSON ({error}); prepare it again with --force") from error
    version = value.get("version") if isinstance(value, dict) else None
    if isinstance(version, int) and version < VERSION:
        raise DatasetDamaged(
            f"{where}/{MANIFEST} has version {version}, this program reads {VERSION}: prepare it again with --force"
        )
    if isinstance(version, int) and version > VERSION:
        raise DatasetDamaged(
            f"{where}/{MANIFEST} has version {version}, this program reads up to {VERSION}: "
            "use a newer fathom or prepare the dataset again"
        )
    try:
        return DatasetManifest.model_validate_json(raw)
    except ValidationError as error:
        problems = "\n".join(
            f"  {'.'.join(map(str, problem['loc'])) or 'manifest'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)[:5]
        )
        raise DatasetDamaged(
            f"{where}/{MANIFEST} is not a valid manifest; prepare it again with --force:\n{problems}"
        ) from error
