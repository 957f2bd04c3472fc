"""Rows of one or more ledgers added up by what they have in common. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, get_args

from orchestrator.cost.records import CLASSES, WASTED, Ledger, Row

Dimension = Literal["class", "attempt", "cause", "team", "job", "price"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)


@dataclass
class Group:
    """Rows that share a name; exact sums."""

    name: str
    seconds: Decimal = field(default=Decimal(0))
    """Wall seconds, unpaid waiting included."""
    device_seconds: Decimal = field(default=Decimal(0))
    cost: Decimal = field(default=Decimal(0))

    def add(self, row: Row) -> None:
        """One more row."""
        self.seconds += row.seconds
        self.device_seconds += row.consumed_quantity
        self.cost += row.billed_cost


def grouped(ledgers: Sequence[Ledger], by: Dimension) -> list[Group]:
    """Groups in the order of their first row, classes in their own. By cause: only what was wasted.

    ValueError for two currencies, which do not add up.
    """
    currency_of(ledgers)
    names: dict[str, Group] = {name: Group(name) for name in CLASSES} if by == "class" else {}
    for ledger in ledgers:
        of = _name(ledger, by, alone=len(ledgers) == 1)
        for row in ledger.rows:
            if by != "cause" or row.time_class in WASTED:
                names.setdefault(of(row), Group(of(row))).add(row)
    return [group for group in names.values() if group.seconds]


def sums(ledgers: Sequence[Ledger]) -> dict[Dimension, list[dict[str, str]]]:
    """Groups by every dimension, for programs: numbers as exact decimal strings."""
    return {
        dimension: [
            {
                "name": group.name,
                "seconds": format(group.seconds, "f"),
                "deviceSeconds": format(group.device_seconds, "f"),
                "cost": format(group.cost, "f"),
            }
            for group in grouped(ledgers, dimension)
        ]
        for dimension in DIMENSIONS
    }


def currency_of(ledgers: Sequence[Ledger]) -> str:
    """The one that all are in; ValueError if there are two."""
    found = {ledger.rate.currency: ledger for ledger in ledgers}
    if len(found) > 1:
        named = " and ".join(f"{currency} ({job_of(ledger)})" for currency, ledger in found.items())
        raise ValueError(f"{named} do not add up: ask for the runs of each currency by themselves")
    return next(iter(found), "USD")


def _name(ledger: Ledger, by: Dimension, *, alone: bool) -> Callable[[Row], str]:
    prefix = "" if alone else f"{job_of(ledger)} "
    unit = ledger.rate.unit
    ways: dict[Dimension, Callable[[Row], str]] = {
        "class": lambda row: row.time_class,
        "attempt": lambda row: f"{prefix}attempt {row.attempt}",
        "cause": lambda row: row.cause or "unknown",
        "team": lambda row: ledger.owner.team if ledger.owner else "unknown",
        "job": lambda row: job_of(ledger),
        "price": lambda row: _price(row, unit),
    }
    return ways[by]


def job_of(ledger: Ledger) -> str:
    """Its name and the beginning of its uid."""
    return f"{ledger.owner.job} ({ledger.owner.uid[:8]})" if ledger.owner else "unknown job"


def _price(row: Row, unit: str) -> str:
    if row.list_unit_price is None:
        return "unknown (a ledger of version 1)"
    bought = f", {row.price_class}" if row.price_class else ""
    return f"{row.list_unit_price:f} {row.billing_currency} per {unit}{bought}, from {row.price_date}"
