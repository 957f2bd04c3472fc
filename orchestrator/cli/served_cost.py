"""What jobs, teams and all of it cost, as the service says: the part of `fathom cost` that reads no folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from orchestrator.cli.output import Column, Output, coloured, dump, talk
from orchestrator.cli.output import table as lined
from orchestrator.cli.served import connect

Document = Mapping[str, Any]
_JOBS = (
    Column("JOB"),
    Column("PHASE"),
    Column("SPENT", right=True),
    Column("WASTED", right=True),
    Column("BURN/H", right=True),
    Column("LIMIT", right=True),
)
_TEAMS = (
    Column("TEAM"),
    Column("JOBS", right=True),
    Column("SPENT", right=True),
    Column("WASTED", right=True),
    Column("BURN/H", right=True),
    Column("LIMIT", right=True),
    Column("LEFT", right=True),
)


def served(text: str) -> bool:
    """Whether this is a job of the service rather than a folder: it could be its name, nothing has it as its path, and
    there is a service to ask."""
    from pathlib import Path

    if Path(text).exists():
        return False
    from orchestrator.client.find import find
    from orchestrator.client.values import split_name
    from orchestrator.errors import FathomError

    try:
        split_name(text)
        find()
    except FathomError:
        return False
    return True


def print_jobs(names: Sequence[str], output: Output, by: str) -> None:
    """Where the money of one job went, or a line for each of several."""
    with connect() as client:
        found = [client.cost(name) for name in names]
    if output in (Output.json, Output.yaml):
        dump(found[0] if len(found) == 1 else found, output)
    elif output is Output.name:
        for one in found:
            print(key_of(one))
    elif len(found) == 1:
        _print_one(found[0], by)
    else:
        columns = [column for column in _JOBS if column.heading not in ("PHASE", "BURN/H")]
        print(lined(columns, [job_row(one) for one in found], colour=coloured(sys.stdout)), end="")


def print_all(team: str | None, output: Output) -> None:
    """All jobs of a team, or of all of them, and what teams may still spend."""
    with connect() as client:
        found = client.costs(team)
    if output in (Output.json, Output.yaml):
        dump(found, output)
        return
    if output is Output.name:
        for one in found["jobs"]:
            print(key_of(one))
        return
    if not found["jobs"] and not found["teams"]:
        talk("there are no jobs, so nothing was paid for")
        return
    colour = coloured(sys.stdout)
    print(lined(_JOBS, [job_row(one) for one in found["jobs"]], colour=colour), end="")
    print()
    print(lined(_TEAMS, [row for one in found["teams"] for row in team_rows(one)], colour=colour), end="")
    for one in found["teams"]:
        if one.get("trouble"):
            talk(f"{one['team']}: its budget cannot be counted: {one['trouble']}")


def key_of(document: Document) -> str:
    """team/name."""
    return f"{document['namespace']}/{document['name']}"


def job_row(one: Document) -> dict[str, str]:
    """Cells of a job."""
    currency = one["currency"]
    amounts = {"SPENT": one["spent"], "WASTED": one["wasted"], "LIMIT": one.get("limit")}
    if Decimal(one.get("burnPerHour", "0")):
        amounts["BURN/H"] = one["burnPerHour"]
    return {"JOB": key_of(one), "PHASE": one.get("phase", "")} | _said(amounts, currency)


def team_rows(one: Document) -> list[dict[str, str]]:
    """A line for each currency: they do not add up."""
    amounts, budget = one["amounts"], one.get("budget")
    rows = []
    for amount in amounts or [{"currency": budget["currency"] if budget else "USD"}]:
        cells = {"TEAM": one["team"], "JOBS": str(one["jobs"])}
        sums = {"SPENT": amount.get("spent"), "WASTED": amount.get("wasted")}
        if Decimal(amount.get("burnPerHour", "0")):
            sums["BURN/H"] = amount["burnPerHour"]
        if budget and budget["currency"] == amount["currency"]:
            sums |= {"LIMIT": budget["limit"], "LEFT": budget["left"]}
        rows.append(cells | _said(sums, amount["currency"]))
    return rows


def _print_one(found: Document, by: str) -> None:
    from orchestrator.cli.live import duration
    from orchestrator.cost.meter import money

    currency, total = found["currency"], Decimal(found["spent"])
    groups = found["by"].get(by, [])
    columns = (
        Column(by.upper()),
        Column("TIME", right=True),
        Column("DEVICE-HOURS", right=True),
        Column("COST", right=True),
        Column("SHARE", right=True),
    )
    rows = [
        {
            by.upper(): group["name"],
            "TIME": duration(float(group["seconds"])),
            "DEVICE-HOURS": f"{float(group['deviceSeconds']) / 3600:,.3f}",
            "COST": money(Decimal(group["cost"]), currency),
            "SHARE": f"{float(Decimal(group['cost']) / total):.1%}" if total else "",
        }
        for group in groups
    ]
    print(lined(columns, rows, colour=coloured(sys.stdout)), end="")
    limit, left = found.get("limit"), found.get("left")
    held = f", of {money(Decimal(limit), currency)}: {money(Decimal(left), currency)} left" if limit and left else ""
    print(f"\n{key_of(found)}: {money(total, currency)} spent{held}")
    print(f"  wasted  {money(Decimal(found['wasted']), currency)}")


def _said(amounts: Mapping[str, str | None], currency: str) -> dict[str, str]:
    from orchestrator.cost.meter import money

    return {heading: money(Decimal(text), currency) for heading, text in amounts.items() if text is not None}
