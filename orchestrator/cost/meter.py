"""Held time into money, in Decimal all through. Pure; imports nothing heavy.

Called by the resolver (the job's rate), the ledger, the live display and the tracker. Invariant: `cost` is
linear in the seconds to more than thirty digits; only `money` rounds, for people.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Literal

from pydantic import Field

from model.config import Frozen
from orchestrator.plan.prices import Label, Price

_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£"}
_DIGITS = 50
"""Significant digits of a product; an hour has 3600 seconds, so most quotients never end."""


class Rate(Frozen):
    """What a whole job costs for each hour that it holds its devices."""

    per_hour: Decimal = Field(gt=0, le=10**18)
    """Whole job: units times price of one."""
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    units: int = Field(ge=1)
    """Devices (or virtual CPUs) that are paid for."""
    unit: Literal["gpu-hour", "cpu-hour"]
    source: Label
    date: datetime.date
    """From when it is valid."""
    since: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Unix time from which it counts, where it became known later than at the beginning of its date."""
    accelerator: Label | None = None
    """What is paid for; None in records of earlier versions."""
    price_class: Label | None = None

    @property
    def unit_price(self) -> Decimal:
        """Price of one device for one hour, to 12 decimals."""
        with localcontext(prec=_DIGITS):
            exact = self.per_hour / self.units
            rounded = exact.quantize(Decimal(1).scaleb(-12))
            return exact if exact == rounded else rounded


@dataclass(frozen=True)
class Spent:
    """What a job has used up at one moment."""

    seconds: Decimal
    """Wall seconds in which the job held its devices."""
    unit_hours: Decimal
    """GPU-hours (or CPU-hours)."""
    amount: Decimal
    currency: str


def rate_for(price: Price, units: int) -> Rate:
    """Rate of a job that holds `units` devices at `price` each."""
    if units < 1:
        raise ValueError(f"a job holds at least 1 device, got {units}")
    return Rate(
        per_hour=price.amount * units,
        currency=price.currency,
        units=units,
        unit=price.unit,
        source=price.source,
        date=price.date,
        accelerator=price.accelerator,
        price_class=price.price_class,
    )


def cost(seconds: float | Decimal, rate: Rate) -> Decimal:
    """Price of holding the job's devices for that long, not rounded."""
    with localcontext(prec=_DIGITS):
        return rate.per_hour * _seconds(seconds) / 3600


def spent(seconds: float | Decimal, rate: Rate) -> Spent:
    """Seconds, device-hours and money together."""
    exact = _seconds(seconds)
    with localcontext(prec=_DIGITS):
        return Spent(exact, rate.units * exact / 3600, cost(exact, rate), rate.currency)


def total(parts: Iterable[Spent], currency: str) -> Spent:
    """The sum of several, all in one currency."""
    found = Spent(Decimal(0), Decimal(0), Decimal(0), currency)
    with localcontext(prec=_DIGITS):
        for part in parts:
            if part.currency != currency:
                raise ValueError(f"{currency} and {part.currency} do not add up")
            seconds, hours = found.seconds + part.seconds, found.unit_hours + part.unit_hours
            found = Spent(seconds, hours, found.amount + part.amount, currency)
    return found


def money(amount: Decimal, currency: str) -> str:
    """For people: two decimals from one unit of the currency up, four below: `$0.0123`, `12.50 CHF`."""
    sign, size = ("-" if amount < 0 else ""), abs(amount)
    smallest = Decimal("0.0001")
    if 0 < size < smallest:
        return _with_currency("<" + sign, str(smallest), currency)
    step = Decimal("0.01") if size >= 1 or size == 0 else smallest
    with localcontext(prec=_DIGITS):
        rounded = size.quantize(step, rounding=ROUND_HALF_UP)
    return _with_currency(sign, f"{rounded:,}", currency)


def precise(amount: Decimal, currency: str) -> str:
    """For tables that compare: four digits that say something, and never less than cents."""
    places = 2 if not amount else min(12, max(2, 3 - amount.adjusted()))
    with localcontext(prec=_DIGITS):
        rounded = abs(amount).quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP)
    return _with_currency("-" if amount < 0 else "", f"{rounded:,f}", currency)


def _with_currency(prefix: str, digits: str, currency: str) -> str:
    symbol = _SYMBOLS.get(currency)
    return f"{prefix}{symbol}{digits}" if symbol else f"{prefix}{digits} {currency}"


def _seconds(seconds: float | Decimal) -> Decimal:
    """The shortest decimal that stands for the float, so that 0.1 s is a tenth of a second."""
    exact = seconds if isinstance(seconds, Decimal) else Decimal(str(seconds))
    if not exact.is_finite() or exact < 0:
        raise ValueError(f"held seconds must be finite and not negative, got {seconds}")
    return exact
