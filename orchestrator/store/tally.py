"""How many jobs there are and what they cost, summed over the whole store: cheap enough for each scrape."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import func, select

from orchestrator.status import Phase
from orchestrator.store.database import Database
from orchestrator.store.tables import jobs


@dataclass
class Money:
    """As statuses say it, each rounded to 6 decimals."""

    spent: Decimal = Decimal(0)
    wasted: Decimal = Decimal(0)
    burn: Decimal = Decimal(0)
    """Of an hour, now."""


@dataclass
class TeamTally:
    """Of one team."""

    team: str
    phases: dict[Phase, int] = field(default_factory=dict)
    money: dict[str, Money] = field(default_factory=dict)
    """By currency."""


def tally(database: Database, team: str | None = None) -> list[TeamTally]:
    """Of all teams, or of one, by name; a team without jobs is left out."""
    wanted = select(jobs.c.namespace, jobs.c.phase, func.json_extract(jobs.c.status, "$.cost"))
    if team is not None:
        wanted = wanted.where(jobs.c.namespace == team)
    found: dict[str, TeamTally] = {}
    with database.read() as connection:
        for namespace, phase, cost in connection.execute(wanted):
            one = found.setdefault(namespace, TeamTally(namespace))
            one.phases[Phase(phase)] = one.phases.get(Phase(phase), 0) + 1
            if cost is not None:
                _add(one.money, json.loads(cost))
    return [found[name] for name in sorted(found)]


def _add(money: dict[str, Money], cost: dict[str, str]) -> None:
    sum_ = money.setdefault(cost["currency"], Money())
    sum_.spent += Decimal(cost["spent"])
    sum_.wasted += Decimal(cost["wasted"])
    sum_.burn += Decimal(cost["burnPerHour"])
