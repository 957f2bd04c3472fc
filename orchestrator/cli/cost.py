"""`fathom cost RUN ...`: where the money of runs went. Added to the command line by `cli.main`.

Reads the runs' own records, so that it works while a run goes on, without MLflow and in a base install. Results go to
stdout or into a file, remarks to stderr; a file is written whole or not at all.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.completing import job_names
from orchestrator.cli.files import require_free, write_file
from orchestrator.cli.output import Output
from orchestrator.cli.pictures import Form, require_picture, write_picture
from orchestrator.cli.served_cost import print_all, print_jobs, served
from orchestrator.errors import NotFound, UsageError

if TYPE_CHECKING:
    from orchestrator.cost.records import Ledger, Totals

_FILE_WIDTH = 120
_MAX_LEDGER_BYTES = 200_000_000


class Format(StrEnum):
    """How the result is written."""

    table = "table"
    wide = "wide"
    json = "json"
    yaml = "yaml"
    name = "name"
    csv = "csv"
    parquet = "parquet"


class By(StrEnum):
    """What the table adds up by."""

    time_class = "class"
    attempt = "attempt"
    cause = "cause"
    team = "team"
    job = "job"
    price = "price"


def cost_command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Jobs, folders of runs such as runs/mini-20260101-120000, ledger.json files. Left out: all of the "
            "service's jobs.",
            autocompletion=job_names,
        ),
    ] = None,
    team: Annotated[str | None, typer.Option(help="All jobs of this team, as the service has them.")] = None,
    output: Annotated[
        Format | None,
        typer.Option("--output", "-o", help="How to write; by default as the file's name ends, else a table."),
    ] = None,
    by: Annotated[By, typer.Option(help="What the table adds up by; `cause` shows what was wasted.")] = By.time_class,
    out: Annotated[Path | None, typer.Option("--output-file", "--out", help="Write into this file.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", "--html", help="Also draw one run into this file: .html (one page) or .png."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
) -> None:
    """Show where each second and dollar went; CSV and Parquet have the columns of FOCUS.

    Examples: fathom cost mini  |  fathom cost --team vision  |  fathom cost runs/*/ --by team -o json
    """
    form = output or _by_name(out)
    if not runs or team is not None or all(served(str(run)) for run in runs):
        if out is not None or plot is not None:
            raise UsageError("files are written from the folder of a run: give that instead of a job's name")
        _print_served([str(run) for run in runs or []], team, form, by)
        return
    if form is Format.parquet and out is None and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal: give --output-file FILE, or pipe it into a program")
    if plot is not None and len(runs) != 1:
        raise UsageError(f"--plot shows one run, got {len(runs)}: name one")
    picture = require_picture(plot, force=force) if plot is not None else None
    if out is not None:
        require_free(out, force=force)
    ledgers = _read_all(runs)
    data = _encoded(ledgers, form, by, width=_FILE_WIDTH if out else None)
    if plot is not None and picture is not None:
        write_picture(plot, partial(_drawn, picture, runs[0], ledgers[0]))
    if out is None:
        typer.echo(data, nl=False)
    else:
        write_file(out, data)
        rows, runs_ = sum(len(ledger.rows) for ledger in ledgers), f"{len(ledgers)} run{'s' * (len(ledgers) != 1)}"
        typer.echo(
            f"{out}: {'table' if form in (Format.table, Format.wide, Format.name) else f'{rows} rows'} of {runs_}",
            err=True,
        )


def _print_served(names: Sequence[str], team: str | None, form: Format, by: By) -> None:
    if names and team is not None:
        raise UsageError("--team shows all jobs of a team: leave the names out, or --team")
    if form in (Format.csv, Format.parquet):
        raise UsageError(f"{form} is made from the folder of a run: give that instead of a job's name")
    if names:
        print_jobs(names, Output(form.value), by.value)
    else:
        print_all(team, Output(form.value))


def _by_name(out: Path | None) -> Format:
    suffix = out.suffix.lower() if out else ""
    files = (Format.json, Format.yaml, Format.csv, Format.parquet)
    known = {"": Format.table, ".txt": Format.table} | {f".{kind}": kind for kind in files}
    if suffix not in known:
        raise UsageError(
            f"{out}: what to write into a {suffix} file is not known: name it .csv, .json, .yaml, .parquet or .txt, or "
            "give -o"
        )
    return known[suffix]


# Reading


def _read_all(runs: Sequence[Path]) -> list[Ledger]:
    """Each run once; what never held anything is named and left out."""
    found: dict[str, Ledger] = {}
    for run in runs:
        where = os.path.realpath(run)  # which a link to itself does not bring down
        if where in found:
            continue
        if len(runs) > 1 and run.is_dir() and not (run / "job.json").exists():  # runs/*/ holds other folders, too
            typer.echo(f"{run}: not the folder of a run, left out", err=True)
            continue
        ledger = _read_file(run) if run.is_file() else _read_run(run)
        if ledger is None:
            typer.echo(f"{run}: no attempt was ever started, so nothing was paid for", err=True)
        else:
            found[where] = ledger
    if not found:
        raise NotFound("none of these runs has ever held anything")
    uids = [ledger.owner.uid for ledger in found.values() if ledger.owner]
    if twice := next((uid for uid in uids if uids.count(uid) > 1), None):
        raise UsageError(f"the run {twice} is named twice, by its folder and by its ledger: name it once")
    return list(found.values())


def _read_run(run: Path) -> Ledger | None:
    from orchestrator.cli.runs import find_run
    from orchestrator.controller.history import ledger_of
    from orchestrator.settings import Settings

    return ledger_of(find_run(str(run), Settings.load().home))


def _read_file(path: Path) -> Ledger:
    from orchestrator.cost.records import Ledger
    from orchestrator.launch.files import in_short

    try:
        if (size := path.stat().st_size) > _MAX_LEDGER_BYTES:
            raise UsageError(f"{path} has {size} bytes, a ledger at most {_MAX_LEDGER_BYTES}")
        return Ledger.from_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        cause = error.__cause__
        why = in_short(cause if isinstance(cause, Exception) else error)
        raise UsageError(f"{path} is not a ledger: {why}; give a run's folder or its ledger/ledger.json") from None


# Writing


def _encoded(ledgers: Sequence[Ledger], form: Format, by: By, *, width: int | None) -> bytes:
    from orchestrator.cost import focus
    from orchestrator.cost.groups import currency_of, job_of

    try:
        currency_of(ledgers)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if form in (Format.table, Format.wide):
        return _for_people(ledgers, by, width)
    if form is Format.name:
        return "".join(f"{job_of(ledger)}\n" for ledger in ledgers).encode()
    if form is Format.json:
        return (json.dumps(content(ledgers), indent=1) + "\n").encode()
    if form is Format.yaml:
        import yaml

        return yaml.safe_dump(content(ledgers), sort_keys=False, width=120).encode()
    if form is Format.csv:
        return focus.as_csv(ledgers)
    try:
        return focus.as_parquet(ledgers)
    except ImportError as error:
        raise UsageError(
            f"writing Parquet needs a package that is missing ({error}): run `pip install pyarrow`, or use -o csv"
        ) from error


def content(ledgers: Sequence[Ledger]) -> dict[str, Any]:
    """Everything, for programs: totals of each job, sums by each dimension, and all rows."""
    from orchestrator.cost.focus import as_text, focus_rows
    from orchestrator.cost.groups import currency_of, sums
    from orchestrator.cost.records import FLOPS_CONVENTION

    return {
        "currency": currency_of(ledgers),
        "flopsConvention": FLOPS_CONVENTION,
        "jobs": [ledger.model_dump(mode="json", by_alias=True, exclude={"rows"}) for ledger in ledgers],
        "by": sums(ledgers),
        "rows": [
            {name: value if isinstance(value, int | None) else as_text(value) for name, value in row.items()}
            for row in focus_rows(ledgers)
        ],
    }


def _drawn(form: Form, run: Path, ledger: Ledger) -> bytes:
    from orchestrator.controller.history import History
    from orchestrator.controller.record import Record
    from orchestrator.tracking.artifacts import run_page, run_picture, spent_by

    draw = run_page if form == "html" else run_picture
    if run.is_file():
        return draw([], ledger, spent_by(ledger))
    history = History(Record.open(run))
    return draw(history.events, ledger, history.spent_at)


# For people


def _for_people(ledgers: Sequence[Ledger], by: By, width: int | None) -> bytes:
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=width is None and sys.stdout.isatty(), highlight=False)
    console.print(_groups(ledgers, by))
    for ledger in ledgers:
        console.print()
        for line in facts(ledger, alone=len(ledgers) == 1):
            console.print(line, markup=False, soft_wrap=True)
    return text.getvalue().encode()


def _groups(ledgers: Sequence[Ledger], by: By) -> Any:  # noqa: ANN401 - rich is imported late
    from rich.markup import escape
    from rich.table import Table

    from orchestrator.cli.live import duration
    from orchestrator.cost.groups import currency_of, grouped
    from orchestrator.cost.meter import money

    currency, groups = currency_of(ledgers), grouped(ledgers, by.value)
    total = sum((group.cost for group in groups), Decimal(0))
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=len(groups) > 1, footer_style="bold")
    table.add_column(by.value.upper(), footer="together", overflow="fold")
    seconds = float(sum(group.seconds for group in groups))
    hours = float(sum(group.device_seconds for group in groups)) / 3600
    table.add_column("TIME", justify="right", footer=duration(seconds))
    table.add_column(_hours_of(ledgers), justify="right", footer=f"{hours:,.3f}")
    table.add_column("COST", justify="right", footer=money(total, currency) if groups else "")
    table.add_column("SHARE", justify="right", footer="100.0%" if total else "")
    for group in groups:
        share = f"{float(group.cost / total):.1%}" if total else "-"
        cells = (
            duration(float(group.seconds)),
            f"{float(group.device_seconds) / 3600:,.3f}",
            money(group.cost, currency),
        )
        table.add_row(escape(group.name), *cells, share)
    return table


def _hours_of(ledgers: Sequence[Ledger]) -> str:
    units = {ledger.rate.unit for ledger in ledgers}
    return f"{units.pop().upper()}S" if len(units) == 1 else "DEVICE-HOURS"


def facts(ledger: Ledger, *, alone: bool = True) -> list[str]:
    """What a person wants to know of one job, a line each; with the beginning of its uid where it is not `alone`."""
    from orchestrator.cost.groups import job_of
    from orchestrator.cost.meter import money

    totals, currency, owner = ledger.totals, ledger.rate.currency, ledger.owner
    attempts = len({row.attempt for row in ledger.rows if row.held})
    job = owner and (owner.job if alone else job_of(ledger))
    name = f"{job} of team {owner.team}" if owner else "a run whose name its ledger does not say"
    lines = [f"{name}: {money(totals.cost, currency)}, {attempts} attempt{'s' if attempts != 1 else ''}"]
    share = f" ({float(totals.wasted / totals.cost):.1%})" if totals.cost else ""
    causes = ", ".join(f"{cause} {money(amount, currency)}" for cause, amount in totals.wasted_by_cause.items())
    lines.append(f"  wasted  {money(totals.wasted, currency)}{share}" + (f": {causes}" if causes else ""))
    lines += [f"  bought  {_bought(totals, currency)}"]
    lines += [
        f"  price   {rate.unit_price:f} {rate.currency} per {rate.unit} from {rate.date}: {rate.source}"
        for rate in ledger.rates or (ledger.rate,)
    ]
    return lines


def _bought(totals: Totals, currency: str) -> str:
    from orchestrator.cost.meter import money
    from orchestrator.cost.records import FLOPS_CONVENTION

    parts = [f"{totals.tokens:,} tokens"]
    if totals.cost_per_billion_tokens is not None:
        parts.append(f"{money(totals.cost_per_billion_tokens, currency)} per billion")
    if totals.cost_per_exaflop is not None:
        parts.append(f"{money(totals.cost_per_exaflop, currency)} per useful exaFLOP ({FLOPS_CONVENTION})")
    return ", ".join(parts)
