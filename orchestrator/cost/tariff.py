"""The price of a whole job as it changes with time. Pure.

Made by the resolver from a price history; read by the meter's side (ledger, display), which takes its periods, and by
the budget, which does its own sums over `rates`. Times are unix seconds, or whole microseconds where the name says so.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from decimal import Decimal
from typing import Self

from pydantic import Field, model_validator

from model.config import Frozen
from orchestrator.cost.meter import Rate, Spent, rate_for, spent, total
from orchestrator.plan.prices import Price, valid_at


class Tariff(Frozen):
    """Rates in order of time: each holds from its date (00:00 UTC) to that of the next, the first before that, too."""

    rates: tuple[Rate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kinds = {(rate.currency, rate.unit, rate.units) for rate in self.rates}
        if len(kinds) > 1:
            raise ValueError(f"one job pays in one currency for the same devices, got {sorted(kinds)}")
        dates = [rate.date for rate in self.rates]
        if any(later <= earlier for earlier, later in itertools.pairwise(dates)):
            raise ValueError(f"rates must follow each other in time, got {', '.join(map(str, dates))}")
        return self

    @property
    def currency(self) -> str:
        """Of all rates."""
        return self.rates[0].currency

    def at(self, time: float) -> Rate:
        """The rate that holds at a moment."""
        now = round(time * 1_000_000)
        return next((rate for rate in reversed(self.rates) if starts(rate) <= now), self.rates[0])

    def periods(self, start: int, end: int) -> list[tuple[int, int, Rate]]:
        """[start, end) in microseconds, cut where the price changes."""
        borders = [start, *(min(max(starts(rate), start), end) for rate in self.rates[1:]), end]
        cut = zip(itertools.pairwise(borders), self.rates, strict=True)
        return [(begin, until, rate) for (begin, until), rate in cut if begin < until]

    def spent(self, start: float, end: float) -> Spent:
        """What holding the job's devices from `start` to `end` has used up; nothing if that is no time."""
        cut = self.periods(round(start * 1_000_000), round(end * 1_000_000))
        return total((spent(Decimal(b - a) / 1_000_000, rate) for a, b, rate in cut), self.currency)


def tariff_from(history: Sequence[Price], units: int, now: datetime.datetime) -> Tariff:
    """What a job that begins now pays for `units` devices: the price that holds now, and those known to follow."""
    first = valid_at(history, now.astimezone(datetime.UTC).date())
    return Tariff(rates=tuple(rate_for(price, units) for price in history if price.date >= first.date))


def starts(rate: Rate) -> int:
    """When a rate begins, in microseconds since 1970."""
    days = (rate.date - datetime.date(1970, 1, 1)).days
    return days * 86_400_000_000
