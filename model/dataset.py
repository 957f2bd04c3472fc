"""The manifest of a prepared dataset: what is in it, where it came from and how to check it.

Written by `model.prepare`; read by `model.data`, the planner and the command line. Imports neither torch nor
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

VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
TOKENIZER: Literal["tokenizer.json"] = "tokenizer.json"
ITEM_BYTES = {"uint16": 2, "uint32": 4}
MAX_MANIFEST_BYTES = 64 * 1024 * 1024

SplitName = Literal["train", "heldout"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DatasetMissing(FileNotFoundError):
    """There is no prepared dataset where one was expected."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"no prepared dataset at {uri}: run `fathom data prepare SOURCE {uri}`")


class DatasetDamaged(ValueError):
    """A dataset that is there and cannot be used; the message names the file and what to do."""


class Shard(Frozen):
    """One file of raw little-endian token numbers."""

    name: str = Field(pattern=r"^(train|heldout)-\d{5}\.bin$")
    tokens: int = Field(ge=1)
    sha256: Sha256


class Split(Frozen):
    """The documents of one side, one after the other, each followed by end-of-text."""

    documents: int = Field(ge=1)
    tokens: int = Field(ge=2)
    """Tokens of all shards, end-of-text included."""
    bytes: int = Field(ge=1)
    """UTF-8 bytes of the documents' text; end-of-text stands for none."""
    shards: tuple[Shard, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = sum(shard.tokens for shard in self.shards)
        if total != self.tokens:
            raise ValueError(f"the shards hold {total} tokens together, but the split says {self.tokens}")
        return self


class Splits(Frozen):
    """Both sides of a dataset; a document is in exactly one of them."""

    train: Split
    heldout: Split

    @model_validator(mode="after")
    def _own_shards(self) -> Self:
        for side, split in (("train", self.train), ("heldout", self.heldout)):
            expected = [f"{side}-{number:05d}.bin" for number in range(len(split.shards))]
            if [shard.name for shard in split.shards] != expected:
                raise ValueError(f"the shards of {side} must be {expected[0]} to {expected[-1]} in order")
        return self


class TokenizerFile(Frozen):
    """The tokenizer that the shards were made with, in the format of the `tokenizers` library."""

    file: Literal["tokenizer.json"] = TOKENIZER
    sha256: Sha256
    vocab_size: int = Field(ge=257)
    end_of_text: int = Field(ge=0)
    """Number of the token that follows every document."""


class Skip(Frozen):
    """Files (or pieces of a single file) that were left out for one reason."""

    count: int = Field(0, ge=0)
    examples: tuple[str, ...] = Field((), max_length=5)


class Skipped(Frozen):
    """What of the source is not in the dataset. Files that the globs leave out are not counted."""

    binary: Skip = Skip()
    """Contains a zero byte."""
    undecodable: Skip = Skip()
    """Not UTF-8."""
    empty: Skip = Skip()
    """Nothing but white space."""
    too_large: Skip = Skip()
    duplicate: Skip = Skip()
    """The same bytes as another document."""
    symlink: Skip = Skip()
    """A link to a folder, or to a file outside the source."""
    unreadable: Skip = Skip()
    """No permission, or not a regular file."""


class Baselines(Frozen):
    """What simple compressors need for the held-out text: figures to compare a model's bits per byte with."""

    order0_bits_per_byte: float = Field(ge=0, le=8)
    """Entropy of single bytes, with the frequencies of the held-out text itself."""
    xz_bits_per_byte: float = Field(ge=0)
    """`xz -9e` of the first `xz_bytes` of held-out text; xz has not seen the training text."""
    xz_bytes: int = Field(ge=1)


class DatasetManifest(Frozen):
    """A prepared dataset. Its files lie beside the manifest."""

    version: Literal[1] = VERSION
    digest: Sha256
    """`content_digest` of tokenizer and shards: two datasets with the same digest train the same model."""
    inputs_digest: Sha256
    """Of all documents and options: the same inputs need not be prepared again."""
    tokenizer: TokenizerFile
    dtype: Literal["uint16", "uint32"]
    splits: Splits
    source: str
    license: str = ""
    provenance: str = ""
    skipped: Skipped = Skipped()
    baselines: Baselines

    def split(self, name: SplitName) -> Split:
        """One side by name."""
        return self.splits.train if name == "train" else self.splits.heldout

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text that one training token stands for, on average."""
        return self.splits.train.bytes / self.splits.train.tokens

    @model_validator(mode="after")
    def _content(self) -> Self:
        if self.tokenizer.end_of_text >= self.tokenizer.vocab_size:
            raise ValueError(
                f"end_of_text ({self.tokenizer.end_of_text}) is not below vocab_size ({self.tokenizer.vocab_size})"
            )
        if self.dtype == "uint16" and self.tokenizer.vocab_size > 65536:
            raise ValueError(f"uint16 cannot hold a vocabulary of {self.tokenizer.vocab_size}")
        expected = content_digest(self.tokenizer.sha256, self.splits.train.shards + self.splits.heldout.shards)
        if self.digest != expected:
            raise ValueError(f"digest is {self.digest}, but the files listed have {expected}")
        return self


def content_digest(tokenizer_sha256: str, shards: Iterable[Shard]) -> str:
    """SHA-256 over a line `sha256 tokens name` per file: tokenizer (0 tokens), training, held-out shards."""
    lines = [f"{tokenizer_sha256} 0 {TOKENIZER}\n"]
    lines += [f"{shard.sha256} {shard.tokens} {shard.name}\n" for shard in shards]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_whole(folder: Path, manifest: DatasetManifest) -> bool:
    """Whether all files are there in their sizes; `TokenSplit.verify` checks the shards' hashes."""
    shards = manifest.splits.train.shards + manifest.splits.heldout.shards
    for shard in shards:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.tokens * ITEM_BYTES[manifest.dtype]:
            return False
    tokenizer = folder / TOKENIZER
    if not tokenizer.is_file():
        return False
    return hashlib.sha256(tokenizer.read_bytes()).hexdigest() == manifest.tokenizer.sha256


def local_path(uri: str | Path) -> Path | None:
    """The path of a local dataset (`file://` too); None for any other URL."""
    text = str(uri)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if "://" in text else Path(text)


def read_manifest(uri: str | Path) -> DatasetManifest:
    """Read and check `<uri>/manifest.json`, where `uri` is a folder: a path or any URL that fsspec knows.

    Raises DatasetMissing if there is none, DatasetDamaged (a ValueError) if it cannot be used.
    """
    where = str(uri).rstrip("/") or str(uri)
    raw = _read(uri, where)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise DatasetDamaged(f"{where}/{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes: not a manifest")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DatasetDamaged(f"{where}/{MANIFEST} is not JSON ({error}); prepare it again with --force") from error
    version = value.get("version") if isinstance(value, dict) else None
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


def _read(uri: str | Path, where: str) -> bytes:
    """The manifest's bytes, at most one more than allowed."""
    path = local_path(uri)
    try:
        if path is not None:
            with (path / MANIFEST).open("rb") as local:
                return local.read(MAX_MANIFEST_BYTES + 1)
        import fsspec  # late: only remote datasets need it

        with fsspec.open(f"{where}/{MANIFEST}", "rb") as remote:
            return bytes(remote.read(MAX_MANIFEST_BYTES + 1))
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetMissing(where) from None
    except (ImportError, ValueError) as error:
        # fsspec: unknown protocol, or the package of a known one is not installed.
        raise DatasetDamaged(f"cannot read {where}: {error}") from error
