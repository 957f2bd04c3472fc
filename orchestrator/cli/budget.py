"""`fathom budget RUN`: what a run has of its money, and another limit for it, also while it goes on."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import Output, OutputOption, for_programs

if TYPE_CHECKING:
    from orchestrator.controller.limit import Account


def budget_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run, e.g. runs/mini-20260101-120000.")],
    limit: Annotated[
        str | None, typer.Option(help="The new limit, e.g. 20.00, in the currency that the run is paid in.")
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Show the budget of a run, or give it another limit, which is in force at once; a run that has stopped goes on
    with `fathom train --resume`.

    Example: fathom budget runs/mini-20260101-120000 --limit 20
    """
    from orchestrator.controller.limit import account, change_limit
    from orchestrator.controller.record import Record
    from orchestrator.settings import Settings
    from orchestrator.status import Phase

    record = Record.open(run)
    if limit is not None:
        record = change_limit(record, limit, Settings.load())
    found = account(record)
    if for_programs(_content(found), output, [record.folder.root.name]):
        return
    status = record.status()
    for line in _lines(found, run, succeeded=status is not None and status.phase is Phase.SUCCEEDED):
        print(line)


def _content(found: Account) -> dict[str, Any]:
    return {
        "currency": found.currency,
        "limit": None if found.limit is None else format(found.limit, "f"),
        "spent": format(found.spent, "f"),
        "reserved": format(found.reserved, "f"),
        "running": found.running,
    }


def _lines(found: Account, run: Path, *, succeeded: bool) -> list[str]:
    from orchestrator.cost.meter import money

    def said(amount: Decimal) -> str:
        return money(amount, found.currency)

    lines = [f"spent     {said(found.spent)}"]
    if found.running:
        lines.append(f"reserved  {said(found.reserved)} for a last checkpoint and the end")
    if found.limit is None:
        return [*lines, "limit     none: give one with --limit"]
    lines.append(f"limit     {said(found.limit)}, of which {said(max(Decimal(0), found.limit - found.spent))} are left")
    if found.running:
        return lines
    return [*lines, "the run has succeeded" if succeeded else f"not running; go on with `fathom train --resume {run}`"]
