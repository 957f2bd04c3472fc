"""`fathom data ...`: prepare text for training, look into what was prepared, prove what a run was trained on.

The result goes to stdout, progress and remarks to stderr. Invariant: importing this module loads neither
numpy nor tokenizers; only running a command does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import Output, OutputOption, for_programs
from orchestrator.errors import Conflict, FathomError, NotFound, RunFailed, UsageError

if TYPE_CHECKING:
    from model.corpus import Mixture
    from model.data import Audit
    from model.dataset import DatasetManifest, SourceManifest, SplitName

data_app = typer.Typer(help="Prepare text for training, and look into it.", no_args_is_help=True)

PHASES = {
    "reading": "reading files",
    "tokenizer": "learning the vocabulary",
    "encoding": "writing tokens",
    "assembling": "writing shards",
}
REMARKS = {"reused": "already prepared from the same inputs", "resumed": "going on with an interrupted preparation"}
MIB = 1024 * 1024
SIDES: tuple[SplitName, ...] = ("train", "heldout")

Progress = Callable[[str, int, int], None]


class Format(StrEnum):
    """How a result is written."""

    table = "table"
    json = "json"


class Records(StrEnum):
    """Format of the files of a source."""

    auto = "auto"
    text = "text"
    jsonl = "jsonl"
    parquet = "parquet"
    datasets = "datasets"


@data_app.callback()
def _group() -> None:
    """Prepare text for training, and look into it."""


@data_app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="A file, a folder, a glob or a URL: text, JSONL (also .gz, .bz2, .xz, .zst), Parquet, a folder of the "
            "`datasets` library; or a .yaml that lists several sources with weights."
        ),
    ],
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
    records: Annotated[
        Records, typer.Option("--format", help="Format of the files; auto: by their endings, others are text.")
    ] = Records.auto,
    text_field: Annotated[str, typer.Option(help="Field of a record that holds the text.")] = "text",
    split: Annotated[str | None, typer.Option(help="Split of a `datasets` folder that has several.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Use this byte-level tokenizer.json; --vocab-size is ignored.")
    ] = None,
    fim_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of training documents rearranged to prefix, suffix, middle (fill in the middle). "
            "Default: 0.1 where the tokenizer has the tokens for it."
        ),
    ] = None,
    license: Annotated[str, typer.Option(help="License of the text, noted in the manifest.")] = "",
    provenance: Annotated[str, typer.Option(help="Where the text comes from, noted in the manifest.")] = "",
    max_document_mib: Annotated[
        int, typer.Option(min=1, max=1024, help="Cut longer text files at blank lines; leave longer records out.")
    ] = 16,
    workers: Annotated[int | None, typer.Option(min=1, max=1024, help="Processes. Default: one per core.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset that is there already.")] = False,
    output: Annotated[Format, typer.Option("--output", "-o", help="Format of the result.")] = Format.table,
) -> None:
    """Turn text into a dataset: tokenizer, token shards and a held-out split.

    Interrupted, the same command goes on where it was.

    Examples: fathom data prepare ./texts ./runs/data --vocab-size 8192 --include '*.md'
    |  fathom data prepare 's3://bucket/web/*.jsonl.gz' ./runs/web  |  fathom data prepare mixture.yaml ./runs/mix
    """
    with _errors(), _progress() as progress:
        from model.corpus import Options
        from model.corpus import prepare as run

        single = {
            "include": tuple(include or ()),
            "exclude": tuple(exclude or ()),
            "format": records.value,
            "text_field": text_field,
            "split": split,
            "license": license,
            "provenance": provenance,
        }
        options = Options(
            vocab_size=vocab_size,
            heldout_share=heldout_share,
            tokenizer=tokenizer,
            fim_rate=fim_rate,
            max_document_bytes=max_document_mib * MIB,
            workers=workers,
        )
        manifest = run(_mixture(source, single), out, options, force=force, progress=progress)
    if output is Format.json:
        typer.echo(json.dumps({"path": str(out)} | manifest.model_dump(mode="json"), indent=2))
    else:
        typer.echo(describe(out, manifest))


def _mixture(source: str, single: dict[str, Any]) -> Mixture:
    """The mixture that a file describes, or one of a single source."""
    from pydantic import ValidationError

    from model.corpus import Mixture, Source, read_mixture
    from model.corpus.mixture import is_mixture, source_name

    if not is_mixture(source):
        try:
            return Mixture(sources=(Source(name=source_name(source), uri=source, **single),))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise UsageError(f"{first['loc'][0]} of the source: {first['msg']}") from None
    defaults = {"format": "auto", "text_field": "text"}
    if given := [name for name, value in single.items() if value and value != defaults.get(name)]:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{options} cannot be used with a mixture: write it into {source}, for each source")
    return read_mixture(source)


def describe(out: Path, manifest: DatasetManifest) -> str:
    """A manifest for people, a few aligned lines."""
    base = manifest.baselines
    heldout = manifest.bytes("heldout")
    scope = "held-out text" if base.xz_bytes == heldout else f"xz: first {base.xz_bytes:,} held-out bytes"
    rows = [("dataset", str(out))]
    titles: dict[SplitName, str] = {"train": "training", "heldout": "held out"}
    for side, title in titles.items():
        counts = (manifest.documents(side), manifest.tokens(side), manifest.bytes(side))
        rows.append((title, "{:,} documents, {:,} tokens, {:,} bytes".format(*counts)))
    if len(manifest.sources) > 1:
        rows += [("source", _source_line(source, manifest)) for source in manifest.sources]
    rows += [
        ("vocabulary", f"{manifest.tokenizer.vocab_size:,} tokens, {manifest.bytes_per_token:.2f} bytes per token"),
        (
            "baselines",
            f"order-0 entropy {base.order0_bits_per_byte:.3f}, xz {base.xz_bits_per_byte:.3f} bits per byte ({scope})",
        ),
    ]
    if manifest.fim_rate:
        rows.append(("rearranged", f"{manifest.fim_rate:.0%} of the training documents (fill in the middle)"))
    rows += [("skipped", line) for source in manifest.sources if (line := _skipped_line(source, manifest))]
    rows.append(("digest", manifest.digest))
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


def _source_line(source: SourceManifest, manifest: DatasetManifest) -> str:
    share = source.train.tokens / manifest.tokens("train")
    weights = sum(one.weight or 0 for one in manifest.sources)
    weight = f", {source.weight / weights:.1%} of what training sees" if source.weight else ""
    return f"{source.name}: {source.train.tokens:,} training tokens ({share:.1%}{weight})"


def _skipped_line(source: SourceManifest, manifest: DatasetManifest) -> str:
    """Counts and one example of each kind."""
    parts = [
        f"{skip['count']:,} {kind.replace('_', ' ')} (e.g. {skip['examples'][0]})"
        for kind, skip in source.skipped.model_dump().items()
        if skip["count"] and skip["examples"]
    ]
    prefix = f"{source.name}: " if len(manifest.sources) > 1 and parts else ""
    return prefix + ", ".join(parts)


# ------------------------------------------------------------------ inspect
@data_app.command()
def inspect(
    dataset: Annotated[Path, typer.Argument(help="Folder of a prepared dataset.")],
    samples: Annotated[int, typer.Option(min=0, max=100, help="Training documents to show of each source.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Draws which documents are shown.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with its SHA-256.")] = False,
    output: OutputOption = Output.table,
) -> None:
    """Show what is in a dataset: counts, lengths, bytes per token, a few documents decoded.

    Example: fathom data inspect runs/data --samples 3
    """
    with _errors():
        content = _inspection(dataset, samples, seed, verify)
    if for_programs(content, output, [str(dataset)]):
        return
    from rich.console import Console

    console = Console(file=sys.stdout)
    _show(console if console.is_terminal else Console(file=sys.stdout, width=120), content)


def _inspection(dataset: Path, count: int, seed: int, verify: bool) -> dict[str, Any]:
    from model.data import TokenSplit
    from model.data.inspect import lengths
    from model.data.inspect import samples as drawn
    from model.dataset import TOKENIZER, read_manifest
    from model.tokenizer import Tokenizer

    manifest, tokenizer = read_manifest(dataset), Tokenizer.load(dataset)
    if verify and sha256((dataset / TOKENIZER).read_bytes()).hexdigest() != manifest.tokenizer.sha256:
        raise UsageError(f"{dataset / TOKENIZER} is not what the manifest says: prepare the dataset again with --force")
    sources = []
    for source in manifest.sources:
        sides: dict[str, Any] = {}
        for side in SIDES:
            split = TokenSplit(dataset, manifest, source, side)
            if verify:
                split.verify()
            own, found = source.split(side), lengths(split, tokenizer.end_of_text)
            sides[side] = {
                "documents": own.documents,
                "tokens": own.tokens,
                "bytes": own.bytes,
                "bytesPerToken": own.bytes / own.tokens if own.tokens else None,
                "documentTokens": {
                    "median": found.quantile(0.5), "p90": found.quantile(0.9), "p99": found.quantile(0.99),
                    "longest": found.longest,
                },
            }  # fmt: skip
            if side == "train":
                sides["samples"] = list(drawn(split, tokenizer, count, seed))
        head = source.model_dump(mode="json", include={"name", "weight", "uri", "license", "provenance", "skipped"})
        sources.append(head | sides)
    return {
        "path": str(dataset),
        "digest": manifest.digest,
        "verified": verify,
        "vocabSize": manifest.tokenizer.vocab_size,
        "bytesPerToken": manifest.bytes_per_token,
        "fimRate": manifest.fim_rate,
        "baselines": manifest.baselines.model_dump(),
        "sources": sources,
    }


def _show(console: Any, content: dict[str, Any]) -> None:  # noqa: ANN401 - rich is imported late
    from rich.table import Table
    from rich.text import Text

    checked = ", every file as its SHA-256 says" if content["verified"] else ""
    console.print(Text(f"{content['path']}: digest {content['digest'][:16]}…{checked}"))
    console.print(Text(f"{content['vocabSize']:,} tokens, {content['bytesPerToken']:.2f} bytes per training token"))
    table = Table("source", "side", box=None, header_style="dim")
    for name in ("documents", "tokens", "bytes", "bytes/token", "median", "p90", "p99", "longest"):
        table.add_column(name, justify="right")
    for source in content["sources"]:
        for side in ("train", "heldout"):
            row = source[side]
            ratio = f"{row['bytesPerToken']:.2f}" if row["bytesPerToken"] else "-"
            own = (row["documents"], row["tokens"], row["bytes"])
            table.add_row(Text(source["name"]), side, *(f"{value:,}" for value in own), ratio,
                          *(f"{value:,}" for value in row["documentTokens"].values()))  # fmt: skip
    console.print(table)
    for source in content["sources"]:
        for number, sample in enumerate(source["samples"], 1):
            console.print(Text(f"\n--- {source['name']}, document {number}", style="dim"))
            console.print(Text("".join(c if c.isprintable() or c in "\n\t" else "�" for c in sample)))


# ------------------------------------------------------------------ audit
@data_app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="Folder of a run, e.g. runs/mini-20260101-120000.")],
    output: OutputOption = Output.table,
) -> None:
    """Prove what a run was trained on: every step's sequences are read again and compared with what it reported.

    Ends with 1 if a step is missing or saw other data, or a sequence was seen again before all others were seen.
    """
    with _errors():
        found = _audited(run)
    content = asdict(found) | {"sound": found.sound}
    if not for_programs(content, output, [str(run)]):
        for source in found.sources:
            typer.echo(
                f"{source.name:<16} {source.samples:,} sequences trained on, of {source.windows:,}: each seen "
                f"{source.least} to {source.most} times"
            )
        left = f", {len(found.skipped)} data steps left out on purpose" if found.skipped else ""
        typer.echo(f"{found.steps:,} steps, {found.samples:,} sequences{left}")
        for what, steps in (("missing", found.missing), ("other data", found.different)):
            typer.echo(f"{what:<16} {', '.join(map(str, steps[:20])) or 'none'}")
    if not found.sound:
        raise RunFailed("the run was not trained on what it should have been: see above")


def _audited(run: Path) -> Audit:
    from model.data import TrainingBatches, TrainingWindows
    from model.data import audit as compare
    from model.dataset import read_manifest
    from orchestrator.controller.history import History
    from orchestrator.controller.record import Record
    from orchestrator.launch.events import Anomaly
    from orchestrator.launch.events import Progress as Step
    from orchestrator.launch.resolve import read_resolved

    record = Record.open(run)
    events = History(record).events
    reported = {event.step: event.samples for event in events if isinstance(event, Step)}
    if not reported:
        raise NotFound(f"{run} has not reported a step yet")
    recipe = read_resolved(record.folder.resolved(record.folder.last_attempt())).recipe
    skipped = {event.data_step for event in events if isinstance(event, Anomaly) and event.action == "skip"}
    weights = {one.source: one.weight for one in recipe.mixture}
    extra = 1 + recipe.model.num_nextn_predict_layers
    windows = TrainingWindows(recipe.data, read_manifest(recipe.data), recipe.sequence_length, extra, weights)
    batches = TrainingBatches(windows, recipe.seed, 1, 1, recipe.batches)
    return compare(batches, reported, skipped)


# ------------------------------------------------------------------ edges
@contextmanager
def _errors() -> Iterator[None]:
    """Errors of `model.corpus` and `model.data` as errors with an exit code."""
    try:
        yield
    except FathomError:
        raise
    except ImportError as error:
        raise UsageError(
            f"working with data needs the package {error.name}: run `pip install 'fathom-train[train]'`"
        ) from error
    except FileExistsError as error:
        raise Conflict(str(error)) from error
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise RunFailed(f"could not work on the data: {error}; run the same command again to go on") from error


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, one line per phase elsewhere; on stderr."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<24}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase in REMARKS:
                bars.console.print(REMARKS[phase])
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
        typer.echo(PHASES.get(phase) or REMARKS[phase], err=True)

    return show
