"""`fathom export`: a run's weights as a folder that transformers opens."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.loaded import final_weights, require_source
from orchestrator.cli.talking import explained, remark, stoppable
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from model.config import ModelConfig
    from model.export import Dtype, Pair, Read
    from model.names import DiskEntry
    from model.tokenizer import Tokenizer

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Type(StrEnum):
    """What the weights are written in."""

    bf16 = "bf16"
    fp32 = "fp32"
    fp8 = "fp8"


@dataclass(frozen=True)
class Source:
    """Whole weights, wherever they come from, tensor by tensor."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    read: Read
    dtype: Dtype
    """That nothing is lost in."""


def export_command(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a folder of weights in the released layout.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    step: Annotated[int | None, typer.Option(min=0, help="Take this checkpoint, not the final weights.")] = None,
    dtype: Annotated[
        Type | None, typer.Option(help="Left out: what nothing is lost in. fp8: blocks of 128x128, as released.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Largest file, e.g. 500MB.")] = "4GB",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT, if it is an earlier export.")] = False,
) -> None:
    """Write a run's weights, configuration and tokenizer as transformers opens them.

    Takes the final weights, or without them the newest checkpoint that verifies. One process reads a checkpoint of any
    number of processes, tensor by tensor.

    Example: fathom export runs/mini-20260101-120000 mini
    """
    limit = _shard_bytes(shard_size)
    with stoppable("stopped, nothing of the export is left"), explained("the export failed, nothing of it is left"):
        from model.export import write_release

        with _source(run, step) as source:
            kind = source.dtype if dtype is None else dtype.value
            written = write_release(
                out,
                source.config,
                source.read,
                source.tokenizer,
                dtype=kind,
                shard_bytes=limit,
                force=force,
                source=source.name,
            )
    typer.echo(str(out))
    remark(f"{written:,} bytes of {kind} weights from {source.name}")


def _shard_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9})\s*([KMGT]B)?", text.strip().upper())
    size = int(match[1]) * _UNITS[match[2] or ""] if match else 0
    if size < 1:
        raise UsageError(f"--shard-size {text!r} is no size: write e.g. 500MB or 4GB")
    return size


@contextmanager
def _source(run: Path, step: int | None) -> Iterator[Source]:
    """A folder of weights, a run's final weights or one of its checkpoints."""
    require_source(run)
    if (weights := final_weights(run, step)) is not None:
        with _weights(weights) as source:
            yield source
        return
    from model.engine.masters import Masters
    from model.tokenizer import Tokenizer
    from orchestrator.cli.evaluated import newest_attempt, verified_checkpoint
    from orchestrator.controller.record import Record

    record = Record.open(run)
    recipe = newest_attempt(record).recipe
    store, found = verified_checkpoint(record, step, remark)
    tokenizer = Tokenizer.load(recipe.data)
    with tempfile.TemporaryDirectory(prefix="fathom-export-") as scratch:
        folder = store.fetch(found, Path(scratch)) / found.tag
        masters = Masters(folder, found.manifest.topology, recipe.model)
        yield Source(found.folder, recipe.model, tokenizer, masters.read, "fp32")


@contextmanager
def _weights(uri: str) -> Iterator[Source]:
    """In the released layout; all that does not fit is told at once."""
    from model.export import lossless
    from model.fit import fit
    from model.headers import read_headers
    from model.reading import Tensors
    from model.released import read_released
    from model.tokenizer import Tokenizer

    config, tokenizer = read_released(uri), Tokenizer.load(uri)
    headers = read_headers(uri)
    pieces = {piece.entry.name: piece for piece in fit(config, headers)}
    own = {piece.entry.memory_name: piece for piece in pieces.values() if not piece.entry.copy}
    with Tensors(headers) as tensors:

        def read(entry: DiskEntry) -> Tensor | Pair:
            piece = own[entry.memory_name] if entry.copy else pieces[entry.name]
            return tensors.read(piece) if piece.scale is None else tensors.pair(piece)

        yield Source(uri, config, tokenizer, read, lossless(list(pieces.values())))
