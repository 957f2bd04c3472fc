"""How many jobs there are and what they cost, summed over the whole store: cheap enough for each scrape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sqlalchemy import func, select

from orchestrator.status import Phase
from orchestrator.store.base import JobStore, Query
from orchestrator.store.database import Database
from orchestrator.store.sqlite import SqliteStore
from orchestrator.store.tables import jobs

_PAGE = 1000


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


def tally(store: JobStore, team: str | None = None) -> list[TeamTally]:
    """Of all teams, or of one, by name; a team without jobs is left out."""
    rows = _of_database(store.database, team) if isinstance(store, SqliteStore) else _of_documents(store, team)
    found: dict[str, TeamTally] = {}
    for namespace, phase, cost in rows:
        one = found.setdefault(namespace, TeamTally(namespace))
        one.phases[phase] = one.phases.get(phase, 0) + 1
        if cost is not None:
            _add(one.money, cost)
    return [found[name] for name in sorted(found)]


_Row = tuple[str, Phase, dict[str, Any] | None]


def _of_database(database: Database, team: str | None) -> Iterator[_Row]:
    """Only what is needed is read of each."""
    wanted = select(jobs.c.namespace, jobs.c.phase, func.json_extract(jobs.c.status, "$.cost"))
    if team is not None:
        wanted = wanted.where(jobs.c.namespace == team)
    with database.read() as connection:
        for namespace, phase, cost in connection.execute(wanted):
            yield namespace, Phase(phase), None if cost is None else json.loads(cost)


def _of_documents(store: JobStore, team: str | None) -> Iterator[_Row]:
    """Page by page: a store that has them in memory anyway."""
    cursor = ""
    while True:
        page = store.documents(Query(team, limit=_PAGE, after=cursor))
        for document in page.documents:
            status = document["status"]
            yield document["metadata"]["namespace"], Phase(status.get("phase", Phase.PENDING)), status.get("cost")
        if not (cursor := page.next):
            return


def _add(money: dict[str, Money], cost: dict[str, str]) -> None:
    sum_ = money.setdefault(cost["currency"], Money())
    sum_.spent += Decimal(cost["spent"])
    sum_.wasted += Decimal(cost["wasted"])
    sum_.burn += Decimal(cost["burnPerHour"])
