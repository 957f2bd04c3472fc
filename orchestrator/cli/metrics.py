"""`fathom metrics RUN`: the numbers of a run as a table, CSV, JSON or Parquet. Added to the command line by `cli.main`.

Reads the run's own record, so that it works while the run goes on and without MLflow. Results go to stdout or into a
file, remarks to stderr; a file is written whole or not at all.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.files import require_free, write_file
from orchestrator.errors import NotFound, UsageError

if TYPE_CHECKING:
    from orchestrator.tracking.table import Row, Table

_NEWEST = 20
_FOR_PEOPLE = {
    "train/loss": "LOSS",
    "eval/bits_per_byte": "BITS/BYTE",
    "moe/cv": "BALANCE CV",
    "train/tokens_per_second": "TOKENS/S",
}
"""Of the metrics that there are, what the table shows unless asked for others, and what it calls them."""
_FEW = 4
_LISTED = 60
_FILE_WIDTH = 160
"""Characters of a table that goes into a file."""


class Format(StrEnum):
    """How the numbers are written."""

    table = "table"
    wide = "wide"
    json = "json"
    yaml = "yaml"
    name = "name"
    csv = "csv"
    parquet = "parquet"


def metrics_command(
    run: Annotated[Path, typer.Argument(help="A run's folder, e.g. runs/mini-20260101-120000.")],
    output: Annotated[
        Format | None,
        typer.Option("--output", "-o", help="How to write; by default as the name after --out ends, else a table."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write into this file.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Only this one, and the steps that have it. May be given again."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help=f"The table with all steps, not the newest {_NEWEST}.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
) -> None:
    """Show or export a run's numbers, a row for each step as it finally counted.

    Example: fathom metrics runs/mini-20260101-120000 --out metrics.parquet
    """
    form = output or _by_name(out)
    if form is Format.parquet and out is None and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal: give --out FILE, or pipe it into a program")
    if out is not None:
        require_free(out, force=force)
    table = read_table(run)
    if metric:
        table = _only(table, metric)
    if not table.rows:
        typer.echo(f"no step of {run} is done yet", err=True)
    if form in (Format.table, Format.wide):
        shown = table.metrics if metric or form is Format.wide else _interesting(table)
        data = _for_people(table, shown, every=every, width=_FILE_WIDTH if out else None)
    else:
        data = _encoded(table, form)
    if out is None:
        typer.echo(data, nl=False)
    else:
        write_file(out, data)
        typer.echo(f"{out}: {len(table.rows)} steps, {len(table.columns)} columns", err=True)


def read_table(run: Path) -> Table:
    """The numbers of a run by its folder, as far as it is."""
    from orchestrator.controller.history import History
    from orchestrator.controller.record import Record
    from orchestrator.tracking.table import About, build

    record = Record.open(run)
    try:
        history = History(record)
    except OSError as error:
        raise UsageError(f"{record.folder.events} cannot be read: {error.strerror}") from None
    attempt = record.folder.last_attempt()
    about = About(record.job.metadata.name, record.uid, history.rate(attempt) if attempt else None)
    return build(history.events, history.spent_at, about)


def _by_name(out: Path | None) -> Format:
    suffix = out.suffix.removeprefix(".").lower() if out else ""
    return Format(suffix) if suffix in set(Format) else Format.table


def _only(table: Table, wanted: Sequence[str]) -> Table:
    try:
        return table.only(wanted)
    except KeyError as error:
        name = str(error.args[0])
    there = sorted(table.metrics)
    if near := get_close_matches(name, there, n=3):
        raise NotFound(f"there is no metric {name!r}: did you mean {' or '.join(near)}?")
    listed = ", ".join(there[:_LISTED]) + (f" and {len(there) - _LISTED} more" if len(there) > _LISTED else "")
    raise NotFound(f"there is no metric {name!r}: there are {listed or 'none yet'}")


def _encoded(table: Table, form: Format) -> bytes:
    from orchestrator.tracking.table import as_csv, as_json, as_parquet

    if form is Format.name:
        return "".join(f"{name}\n" for name in sorted(table.metrics)).encode()
    if form is Format.yaml:
        import json

        import yaml

        return yaml.safe_dump(json.loads(as_json(table)), sort_keys=False).encode()
    if form is not Format.parquet:
        return as_csv(table) if form is Format.csv else as_json(table)
    try:
        return as_parquet(table)
    except ImportError as error:
        raise UsageError(
            f"writing Parquet needs a package that is missing ({error}): run `pip install pyarrow`, or use -o csv"
        ) from error


# For people


def _interesting(table: Table) -> Sequence[str]:
    """All of a few."""
    if len(table.metrics) <= _FEW:
        return table.metrics
    return [name for name in _FOR_PEOPLE if name in table.metrics] or table.metrics[:_FEW]


def _for_people(table: Table, shown: Sequence[str], *, every: bool, width: int | None) -> bytes:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Drawing

    fixed = ["STEP", "TIME (UTC)", "TOKENS", "COST"]
    drawing = Drawing(box=None, pad_edge=False, header_style="bold")
    for name in (*fixed, *shown):
        heading = escape(_FOR_PEOPLE.get(name, name))
        drawing.add_column(heading, justify="right", no_wrap=name in fixed, overflow="fold")
    rows = table.rows if every else table.rows[-_NEWEST:]
    for row in rows:
        drawing.add_row(*_cells(table, row, shown))
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=width is None and sys.stdout.isatty(), highlight=False)
    if rows:
        console.print(drawing)
    _remark_on(table, len(shown), len(rows))
    return text.getvalue().encode()


def _cells(table: Table, row: Row, shown: Sequence[str]) -> list[str]:
    from decimal import Decimal

    from orchestrator.cli.model import short
    from orchestrator.cost.meter import money
    from orchestrator.tracking.table import moment

    rate = table.about.rate
    return [
        f"{row['step']:.0f}",
        f"{moment(row):%m-%d %H:%M:%S}",
        short(row["tokens"]),
        money(Decimal(str(row["cost"])), rate.currency if rate else "USD"),
        *(f"{row[name]:.5g}" if name in row else "-" for name in shown),
    ]


def _remark_on(table: Table, columns: int, rows: int) -> None:
    """What is there and not shown."""
    more = []
    if len(table.rows) > rows:
        more.append(f"{len(table.rows) - rows} earlier steps (--all)")
    if hidden := len(table.metrics) - columns:
        more.append(f"{hidden} metrics (--metric NAME, or -o csv)")
    if more:
        typer.echo(f"not shown: {', '.join(more)}", err=True)
