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
    """Rates in order of time: each holds from its date (00:00 UTC; or from `since`) to that of the next, the first
    before that, too."""

    rates: tuple[Rate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kinds = {(rate.currency, rate.unit, rate.units) for rate in self.rates}
        if len(kinds) > 1:
            raise ValueError(f"one job pays in one currency for the same devices, got {sorted(kinds)}")
        if any(starts(later) <= starts(earlier) for earlier, later in itertools.pairwise(self.rates)):
            raise ValueError(f"rates must follow each other in time, got {', '.join(map(_beginning, self.rates))}")
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


def repriced(tariff: Tariff, history: Sequence[Price], now: float, since: float) -> Tariff:
    """What is paid when the prices are `history` from `since` on, as was found out `now`; until then all stays as it
    was. The same tariff if that changes no amount. ValueError if the currency is another one."""
    moment, units = round(since * 1_000_000), tariff.rates[0].units
    day = datetime.datetime.fromtimestamp(since, datetime.UTC)
    present, *later = tariff_from(history, units, day).rates
    if present.currency != tariff.currency:
        raise ValueError(f"prices are in {present.currency} now, and what is paid already is in {tariff.currency}")
    held = tariff.at(since)
    coming = tariff.rates[tariff.rates.index(held) + 1 :]
    if present.per_hour == held.per_hour and list(map(_amount, later)) == list(map(_amount, coming)):
        return tariff
    # a change that has not begun yet is taken back
    known = [rate for rate in tariff.rates if rate.since is None or rate.since <= now]
    past = [rate for rate in known if starts(rate) < moment]
    past = past or [known[0].model_copy(update={"since": 0.0})]  # held already, as the nearest that was known
    if present.per_hour == past[-1].per_hour:
        return Tariff(rates=(*past, *later))
    return Tariff(rates=(*past, present.model_copy(update={"since": moment / 1_000_000}), *later))


def _amount(rate: Rate) -> tuple[int, Decimal]:
    return starts(rate), rate.per_hour


def _beginning(rate: Rate) -> str:
    return str(rate.date) if rate.since is None else f"{rate.date} (since {rate.since})"


def starts(rate: Rate) -> int:
    """When a rate begins, in microseconds since 1970."""
    if rate.since is not None:
        return round(rate.since * 1_000_000)
    days = (rate.date - datetime.date(1970, 1, 1)).days
    return days * 86_400_000_000
