"""How many jobs there are and what they cost, summed over a whole store: cheap enough for each scrape. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from orchestrator.status import Phase


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


def tally(jobs: Iterable[tuple[str, Phase, Mapping[str, str] | None]]) -> list[TeamTally]:
    """Of jobs by team, phase and `status.cost`; by name of the team."""
    found: dict[str, TeamTally] = {}
    for team, phase, cost in jobs:
        one = found.setdefault(team, TeamTally(team))
        one.phases[phase] = one.phases.get(phase, 0) + 1
        if cost is not None:
            _add(one.money, cost)
    return [found[name] for name in sorted(found)]


def _add(money: dict[str, Money], cost: Mapping[str, str]) -> None:
    sum_ = money.setdefault(cost["currency"], Money())
    sum_.spent += Decimal(cost["spent"])
    sum_.wasted += Decimal(cost["wasted"])
    sum_.burn += Decimal(cost["burnPerHour"])
