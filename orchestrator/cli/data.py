"""`fathom data ...`: prepare text for training. Added to the command line by `orchestrator.cli.main`.

The result goes to stdout, progress and remarks to stderr. Invariant: importing this module loads neither
numpy nor tokenizers; only running a command does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import Conflict, FathomError, RunFailed, UsageError

if TYPE_CHECKING:
    from model.dataset import DatasetManifest

data_app = typer.Typer(help="Prepare text for training.", no_args_is_help=True)

PHASES = {"reading": "reading files", "tokenizer": "learning the vocabulary", "encoding": "writing tokens"}
MIB = 1024 * 1024

Progress = Callable[[str, int, int], None]


class Format(StrEnum):
    """How a result is written."""

    table = "table"
    json = "json"


@data_app.callback()
def _group() -> None:
    """Prepare text for training."""


@data_app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="A text file, or a folder whose text files are documents.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not hold anything else.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens of the vocabulary to learn, at least 257.")] = 4096,
    heldout_share: Annotated[
        float, typer.Option(help="Share of the documents kept out of training, for evaluation.")
    ] = 0.02,
    include: Annotated[
        list[str] | None, typer.Option(help="Glob over paths relative to SOURCE, e.g. '*.py'; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob of what to leave out, e.g. 'test/*'; repeatable.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Use this byte-level tokenizer.json; --vocab-size is ignored.")
    ] = None,
    license: Annotated[str, typer.Option(help="License of the text, noted in the manifest.")] = "",
    provenance: Annotated[str, typer.Option(help="Where the text comes from, noted in the manifest.")] = "",
    max_file_mib: Annotated[int, typer.Option(min=1, help="Skip files larger than this.")] = 64,
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset that is there already.")] = False,
    output: Annotated[Format, typer.Option("--output", "-o", help="Format of the result.")] = Format.table,
) -> None:
    """Turn text into a dataset: tokenizer, token shards and a held-out split.

    Example: fathom data prepare ./texts ./runs/data --vocab-size 8192 --include '*.md'
    """
    with _errors(), _progress() as progress:
        from model.prepare import prepare as run

        manifest = run(
            source,
            out,
            vocab_size=vocab_size,
            heldout_share=heldout_share,
            include=include or (),
            exclude=exclude or (),
            tokenizer=tokenizer,
            license=license,
            provenance=provenance,
            max_file_bytes=max_file_mib * MIB,
            force=force,
            progress=progress,
        )
    if output is Format.json:
        typer.echo(json.dumps({"path": str(out)} | manifest.model_dump(mode="json"), indent=2))
    else:
        typer.echo(describe(out, manifest))


def describe(out: Path, manifest: DatasetManifest) -> str:
    """A manifest for people, a few aligned lines."""
    train, heldout, base = manifest.splits.train, manifest.splits.heldout, manifest.baselines
    scope = "held-out text" if base.xz_bytes == heldout.bytes else f"xz: first {base.xz_bytes:,} held-out bytes"
    rows = [
        ("dataset", str(out)),
        ("training", f"{train.documents:,} documents, {train.tokens:,} tokens, {train.bytes:,} bytes"),
        ("held out", f"{heldout.documents:,} documents, {heldout.tokens:,} tokens, {heldout.bytes:,} bytes"),
        (
            "vocabulary",
            f"{manifest.tokenizer.vocab_size:,} tokens, {manifest.bytes_per_token:.2f} bytes per token",
        ),
        (
            "baselines",
            f"order-0 entropy {base.order0_bits_per_byte:.3f}, xz {base.xz_bits_per_byte:.3f} bits per byte ({scope})",
        ),
    ]
    skipped = [(kind.replace("_", " "), skip["count"]) for kind, skip in manifest.skipped.model_dump().items()]
    if any(count for _, count in skipped):
        rows.append(("skipped", ", ".join(f"{count:,} {kind}" for kind, count in skipped if count)))
    rows.append(("digest", manifest.digest))
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


@contextmanager
def _errors() -> Iterator[None]:
    """Errors of `model.prepare` as errors with an exit code."""
    try:
        yield
    except FathomError:
        raise
    except ImportError as error:
        raise UsageError(
            f"preparing data needs the package {error.name}: run `pip install 'fathom-train[train]'`"
        ) from error
    except FileExistsError as error:
        raise Conflict(str(error)) from error
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise RunFailed(f"could not prepare the data: {error}") from error


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, one line per phase elsewhere; on stderr."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase == "reused":
                bars.console.print("already prepared from the same inputs")
                return
            if phase not in tasks:
                tasks[phase] = bars.add_task(PHASES[phase], total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield show


def _plain_progress() -> Progress:
    """Announces each phase once."""
    seen: set[str] = set()

    def show(phase: str, done: int, total: int) -> None:
        if phase in seen:
            return
        seen.add(phase)
        typer.echo(PHASES.get(phase, "already prepared from the same inputs"), err=True)

    return show
