"""Prepared datasets for tests: from text, or straight from token numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from model.corpus import Mixture, Options, Source, prepare
from model.data.shards import LITTLE_ENDIAN
from model.dataset import (
    Baselines,
    DatasetManifest,
    Shard,
    SourceManifest,
    Split,
    SplitName,
    TokenizerFile,
    content_digest,
)

SHA = "ab" * 32
Sides = tuple[Sequence[int], Sequence[int]]
"""Training and held-out tokens."""


def write_tokens(
    folder: Path,
    sources: Mapping[str, Sides],
    *,
    shard_tokens: int = 1000,
    vocab_size: int = 300,
    end_of_text: int = 0,
    weights: Mapping[str, float] | None = None,
) -> DatasetManifest:
    """Shards and their manifest; the manifest itself is not written."""
    dtype: Literal["uint16", "uint32"] = "uint16" if vocab_size <= 65536 else "uint32"
    made = []
    for name, (train, heldout) in sources.items():
        sides = [
            _split(folder, name, "train", train, shard_tokens, dtype),
            _split(folder, name, "heldout", heldout, shard_tokens, dtype),
        ]
        weight = None if weights is None else weights[name]
        made.append(SourceManifest(name=name, weight=weight, uri="numbers", train=sides[0], heldout=sides[1]))
    shards = [shard for source in made for shard in source.train.shards + source.heldout.shards]
    return DatasetManifest(
        digest=content_digest(SHA, shards),
        inputs_digest=SHA,
        tokenizer=TokenizerFile(sha256=SHA, vocab_size=vocab_size, end_of_text=end_of_text),
        dtype=dtype,
        sources=tuple(made),
        baselines=Baselines(order0_bits_per_byte=1, xz_bits_per_byte=1, xz_bytes=1),
    )


def _split(folder: Path, source: str, side: SplitName, tokens: Sequence[int], limit: int, dtype: str) -> Split:
    shards = []
    for number, start in enumerate(range(0, len(tokens), limit)):
        part = np.array(tokens[start : start + limit], dtype=LITTLE_ENDIAN[dtype])
        name = f"{source}/{side}-{number:05d}.bin"
        (folder / source).mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(part.tobytes())
        shards.append(Shard(name=name, tokens=part.size, sha256=hashlib.sha256(part.tobytes()).hexdigest()))
    return Split(documents=len(tokens) > 0, tokens=len(tokens), bytes=len(tokens), shards=tuple(shards))


def prepared(source: Path, out: Path, **options: Any) -> DatasetManifest:  # noqa: ANN401 - fields of Options
    """A dataset made from a file or folder of text."""
    return prepare(Mixture(sources=(Source(name="text", uri=str(source)),)), out, Options(workers=1, **options))
