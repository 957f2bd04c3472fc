"""`fathom compare A B ...`: runs side by side. Added to the command line by `cli.main`.

Reads the runs' own records, so that it works while they go on, without MLflow and in a base install. The comparison
goes to stdout, what is said about it to stderr; a page is written whole or not at all.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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


class By(StrEnum):
    """What the runs are put side by side by; the same words as `compare.facts.Axis`, which is not imported for help."""

    step = "step"
    tokens = "tokens"
    flops = "flops"
    hours = "hours"
    dollars = "dollars"


def compare_command(
    runs: Annotated[list[str], typer.Argument(help="Two to twenty runs: folders, or names of jobs that have one run.")],
    by: Annotated[By, typer.Option(help="At equal what the runs are compared first.")] = By.dollars,
    metric: Annotated[
        str | None,
        typer.Option(help="What is compared; by default eval/bits_per_byte, or train/loss where a run has none."),
    ] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to write.")] = Format.table,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write one page with pictures into this file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
) -> None:
    """Put runs side by side at equal steps, tokens, FLOPs, hours or dollars: what differs, and what the money bought.

    Examples: fathom compare runs/a-20260101-120000 runs/b-20260101-130000 --html compare.html  |  fathom compare a b
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


def require_page(path: Path) -> None:
    """UsageError for a name that does not say HTML."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html must end in .html, got {path}")


def read(names: list[str], by: By, metric: str | None) -> Comparison:
    """The comparison of these runs as they are now."""
    from orchestrator.compare.comparison import compare, require_number
    from orchestrator.compare.facts import Axis
    from orchestrator.compare.load import load_run, resolve_runs
    from orchestrator.settings import Settings

    require_number(len(names))
    folders = resolve_runs(names, Settings.load().home)
    return compare([load_run(folder) for folder in folders], Axis(by.value), metric)


def _encoded(found: Comparison, form: Format) -> str:
    if form in (Format.table, Format.wide):
        from orchestrator.compare.for_people import as_text

        colour = sys.stdout.isatty()
        return as_text(found, wide=form is Format.wide, width=None, colour=colour)
    content = found.model_dump(mode="json", by_alias=True)
    if form is Format.json:
        return json.dumps(content, indent=1) + "\n"
    import yaml

    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
