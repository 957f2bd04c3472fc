"""`fathom budget RUN`: what a run has of its money, and another limit for it, also while it goes on."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.completing import job_names
from orchestrator.cli.output import Output, OutputOption, for_programs
from orchestrator.cli.served import connect
from orchestrator.cli.served_cost import served

if TYPE_CHECKING:
    from orchestrator.controller.limit import Account


def budget_command(
    run: Annotated[
        Path,
        typer.Argument(help="A job, or the folder of a run: runs/mini-20260101-120000.", autocompletion=job_names),
    ],
    limit: Annotated[
        str | None, typer.Option(help="The new limit, e.g. 20.00, in the currency that the run is paid in.")
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Show the budget of a job, or give it another limit, which is in force at once. A job that stopped at its limit
    goes on by itself, a run of `fathom train` with --resume.

    Examples: fathom budget mini --limit 20  |  fathom budget runs/mini-20260101-120000 --limit 20
    """
    if served(str(run)):
        _of_job(str(run), limit, output)
        return
    from orchestrator.cli.runs import find_run
    from orchestrator.controller.limit import account, change_limit
    from orchestrator.settings import Settings
    from orchestrator.status import Phase

    record = find_run(str(run), Settings.load().home)
    if limit is not None:
        record = change_limit(record, limit, Settings.load())
    found = account(record)
    if for_programs(_content(found), output, [record.folder.root.name]):
        return
    status = record.status()
    for line in _lines(found, run, succeeded=status is not None and status.phase is Phase.SUCCEEDED):
        print(line)


def _of_job(name: str, limit: str | None, output: Output) -> None:
    """By the service, which holds the job to it."""
    from orchestrator.client.outcome import at_rest

    with connect() as client:
        job = client.get(name) if limit is None else client.patch(name, {"budget": {"limit": limit}})
    budget, cost = job.spec.budget, job.status.cost
    currency = cost.currency if cost else budget.currency if budget else "USD"
    spent = Decimal(cost.spent if cost else 0)
    content = {
        "currency": currency,
        "limit": budget.limit if budget else None,
        "spent": format(spent, "f"),
        "running": not at_rest(job),
    }
    if for_programs(content, output, [job.key]):
        return
    from orchestrator.cost.meter import money

    print(f"spent     {money(spent, currency)}")
    if budget is None:
        print("limit     none: give one with --limit")
        return
    left = max(Decimal(0), budget.amount - spent)
    print(f"limit     {money(budget.amount, currency)}, of which {money(left, currency)} are left")


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
