"""How long the money lasts, and when a job must stop so that its last checkpoint still fits. Pure.

Called by the resolver (the job's own deadline) and the launcher (order to stop, warnings). Contract: the stop is due
when spent + burn x (heartbeat timeout + p95 save + grace + teardown) reaches the limit. Shares no step with the
meter, so that a mistake in one shows beside the other: it counts no rows and no classes, but adds up, in exact
fractions, what each rise and fall of the price adds to all held time after it; it rounds against the job.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from fractions import Fraction

from pydantic import Field

from model.config import Frozen
from orchestrator.cost.meter import Rate
from orchestrator.cost.tariff import Tariff
from orchestrator.cost.timeline import Held

FIRST_SAVE_SECONDS = 30.0
"""Assumed of a save before one was measured."""
_SMALLEST_SHARE = 0.5
"""Of a budget's time at most so much is kept for stopping: a tiny one would leave no time to train. Of the teardown all
is kept: machines are given back no sooner because there is less money."""
_GRAINS = 10**12


class Reserve(Frozen):
    """Seconds of holding that must still be paid for when a job is told to stop."""

    heartbeat: float = Field(5.0, ge=0)
    """Until the order has reached the workers, or until their silence has been noticed."""
    save: float = Field(FIRST_SAVE_SECONDS, ge=0)
    """Of a checkpoint: the 95th percentile of those made so far."""
    grace: float = Field(15.0, ge=0)
    """For the workers to end after it."""
    teardown: float = Field(10.0, ge=0)
    """Until the machines are given back after everything was ended by force."""

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.heartbeat + self.save + self.grace + self.teardown


@dataclass(frozen=True)
class Deadlines:
    """Unix times of one attempt, in their order."""

    stop: float
    """From here on a final checkpoint is due, or it would not fit any more."""
    end: float
    """What has not ended by itself is ended by force."""
    limit: float
    """The money is gone."""


def percentile_95(seconds: Sequence[float], unknown: float) -> float:
    """Nearest rank; `unknown` where nothing was measured."""
    if not seconds:
        return unknown
    return sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]


def spent(held: Iterable[Held], tariffs: Mapping[int, Tariff]) -> Decimal:
    """Price of all held time, each attempt by its own tariff, rounded up to 12 decimals."""
    exact = sum((_price(tariffs[one.attempt], Fraction(one.start), Fraction(one.end)) for one in held), Fraction(0))
    return Decimal(math.ceil(exact * _GRAINS)).scaleb(-12)


def to_hold(tariff: Tariff, start: float, seconds: float) -> Decimal:
    """Price of holding on from `start`, rounded up to 12 decimals."""
    begin = Fraction(start)
    exact = _price(tariff, begin, begin + Fraction(seconds))
    return Decimal(math.ceil(exact * _GRAINS)).scaleb(-12)


def must_stop(paid: Decimal, limit: Decimal, tariff: Tariff, now: float, seconds: float) -> bool:
    """Whether stopping, which takes `seconds`, would not fit under the limit if it began any later than now."""
    return paid + to_hold(tariff, now, seconds) >= limit


def deadlines(left: Decimal, tariff: Tariff, now: float, reserve: Reserve, began: float | None = None) -> Deadlines:
    """Of an attempt that holds its devices since it `began` (or from now on), where `left` is what is left now."""
    limit = lasts_until(left, tariff, now)
    keep = kept(limit - (now if began is None else began), reserve)
    return Deadlines(limit - keep, limit - min(reserve.teardown, keep), limit)


def kept(seconds: float, reserve: Reserve) -> float:
    """What is kept for stopping of an attempt whose money lasts for `seconds`."""
    seconds = max(0.0, seconds)
    return min(reserve.seconds, max(_SMALLEST_SHARE * seconds, min(reserve.teardown, seconds)))


def lasts_until(left: Decimal, tariff: Tariff, start: float) -> float:
    """Unix time until which `left` pays for holding the devices from `start`; up to 2 microseconds early."""
    at = Fraction(start) + lasts(left, tariff, start)
    return (math.floor(at * 1_000_000) - 1) / 1_000_000  # a float of that size is a quarter of one off at most


def lasts(left: Decimal, tariff: Tariff, start: float) -> Fraction:
    """Seconds for which `left` pays, exact."""
    at, money = Fraction(start), max(Fraction(left), Fraction(0))
    for rate, follower in zip(tariff.rates, [*tariff.rates[1:], None], strict=True):
        burn = Fraction(rate.per_hour) / 3600
        change = None if follower is None else _begins(follower)
        if change is not None and change <= at:
            continue
        if change is None or money <= burn * (change - at):
            return at + money / burn - Fraction(start)
        money -= burn * (change - at)
        at = change
    raise AssertionError("the last rate of a tariff never ends")


def passed(paid: Decimal, limit: Decimal, shares: Iterable[Decimal], told: Decimal = Decimal(0)) -> Decimal | None:
    """The highest of the `shares` of the limit that was reached and is above the one `told` last."""
    reached = [share for share in shares if paid >= share * limit and share > told]
    return max(reached, default=None)


def _price(tariff: Tariff, start: Fraction, end: Fraction) -> Fraction:
    """The first price for all of it, and each change of the price for what comes after the change."""
    total = Fraction(tariff.rates[0].per_hour) * max(end - start, Fraction(0))
    for rate, following in zip(tariff.rates, tariff.rates[1:], strict=False):
        after = max(end - max(start, _begins(following)), Fraction(0))
        total += (Fraction(following.per_hour) - Fraction(rate.per_hour)) * after
    return total / 3600


def _begins(rate: Rate) -> Fraction:
    if rate.since is not None:
        return Fraction(rate.since)
    return Fraction(int(datetime.combine(rate.date, time(), UTC).timestamp()))
