"""`fathom compare A B ...`: runs side by side. Added to the command line by `cli.main`.

Jobs of the service are compared by the service; folders here, from the runs' own records, so that it works without a
service and without MLflow. The comparison goes to stdout, what is said about it to stderr; a page is written whole or
not at all, and always here.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.completing import job_names
from orchestrator.cli.files import require_free, write_file
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.compare.document import Comparison


class Format(StrEnum):
    """How the comparison is written."""

    table = "table"
    wide = "wide"
    json = "json"
    yaml = "yaml"
    name = "name"


class By(StrEnum):
    """What the runs are put side by side by; the same words as `compare.facts.Axis`, which is not imported for help."""

    step = "step"
    tokens = "tokens"
    flops = "flops"
    hours = "hours"
    dollars = "dollars"


def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Two to twenty: jobs, or folders of runs such as runs/mini-20260101-120000.",
            autocompletion=job_names,
        ),
    ],
    by: Annotated[By, typer.Option(help="At equal what the runs are compared first.")] = By.dollars,
    metric: Annotated[
        str | None,
        typer.Option(help="What is compared; by default eval/bits_per_byte, or train/loss where a run has none."),
    ] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print; name: best first.")] = Format.table,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write one page with pictures into this file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
) -> None:
    """Put runs side by side at equal steps, tokens, FLOPs, hours or dollars: what differs, and what the money bought.

    Examples: fathom compare demo-sparse demo-dense --html compare.html  |  fathom compare runs/a-* --by tokens -o json
    """
    if html is not None:
        require_page(html)
        require_free(html, force=force)
    found = read(runs, by, metric)
    for caution in found.cautions:
        typer.echo(f"note: {caution.message}", err=True)
    if html is not None:
        from orchestrator.compare.page import compare_page

        write_file(html, compare_page(found))
    typer.echo(_encoded(found, output), nl=False)
    if html is not None:
        typer.echo(f"{html}: written", err=True)


def ranked(found: Comparison) -> list[str]:
    """Runs at equal expense, the best first; then those that have no value there."""
    values = found.equal[0].values if found.equal else []
    sign = -1 if found.metric.better == "higher" else 1
    known = sorted((sign * one.value, one.run) for one in values if one.value is not None)
    names = [name for _, name in known] if found.metric.better is not None else []
    return [*names, *(run.name for run in found.runs if run.name not in names)]


def require_page(path: Path) -> None:
    """UsageError for a name that does not say HTML."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html must end in .html, got {path}")


def read(names: list[str], by: By, metric: str | None) -> Comparison:
    """The comparison of these runs as they are now; by the service, unless one is not a job of it."""
    from orchestrator.cli.runs import find_run
    from orchestrator.cli.served_cost import served
    from orchestrator.compare.comparison import compare, require_number
    from orchestrator.compare.facts import Axis
    from orchestrator.compare.load import load_run
    from orchestrator.settings import Settings

    require_number(len(names))
    if all(served(name) for name in names):
        return _of_service(names, by, metric)
    home = Settings.load().home
    return compare([load_run(find_run(name, home).folder.root) for name in names], Axis(by.value), metric)


def _of_service(names: list[str], by: By, metric: str | None) -> Comparison:
    from pydantic import ValidationError

    from orchestrator.cli.served import connect
    from orchestrator.compare.document import Comparison

    with connect() as client:
        found = client.compare(*names, by=by.value, metric=metric)
    try:
        return Comparison.model_validate(found)
    except ValidationError as error:
        raise UsageError(
            f"the service compares in a form that this version does not know ({error.error_count()} differences): use "
            "the version of the service"
        ) from error


def _encoded(found: Comparison, form: Format) -> str:
    if form in (Format.table, Format.wide):
        from orchestrator.compare.for_people import as_text

        colour = sys.stdout.isatty()
        return as_text(found, wide=form is Format.wide, width=None, colour=colour)
    if form is Format.name:
        return "".join(f"{name}\n" for name in ranked(found))
    content = found.model_dump(mode="json", by_alias=True)
    if form is Format.json:
        return json.dumps(content, indent=1) + "\n"
    import yaml

    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
