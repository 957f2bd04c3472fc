"""Price of an hour of one device, each with source and date, from a file. Imports no torch.

Called by the resolver and the planner. Invariant: a price comes from the packaged file or from the operator's
own file (FATHOM_PRICES), never from a job; it is a positive Decimal with a currency, a source and a date.
A price holds from the beginning of its date (UTC) until that of the next row for the same devices; before the
first row's date the first row holds, since it is the nearest that is known. One history has one currency.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic.alias_generators import to_camel

from model.config import Frozen
from orchestrator.errors import UsageError
from orchestrator.plan.files import read_rows

DATA = Path(__file__).parent / "data" / "prices.yaml"


def _day(value: object) -> object:
    """A day and nothing else: a time would be cut off, with its zone, and a number would be taken for seconds."""
    plain = isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
    if plain or (isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value)):
        return value
    raise ValueError(f"must be a day such as 2026-07-01, from 00:00 UTC of which the price holds, got {value}")


def _label(value: str) -> str:
    if re.match(r"[=+@\-]", value) or re.search(r"[\x00-\x1f\x7f-\x9f]", value):
        raise ValueError(
            "must not begin with =, +, - or @ and hold no control characters: a spreadsheet or a terminal would obey "
            f"them, got {value!r}"
        )
    return value


Label = Annotated[str, AfterValidator(_label)]
"""Text that ends up in tables for people and their programs."""
Amount = Annotated[Decimal, Field(gt=0, le=1_000_000, max_digits=20, decimal_places=12)]
Day = Annotated[datetime.date, BeforeValidator(_day)]


class Price(Frozen, alias_generator=to_camel, populate_by_name=True):
    """One row of a price file: what one device costs for one hour."""

    accelerator: Label = Field(min_length=1, max_length=40)
    """A name as in `compute.accelerator`; `cpu` is one virtual CPU."""
    price_class: Label = Field(min_length=1, max_length=40)
    """How it is bought, e.g. on-demand, spot, reserved."""
    amount: Amount
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    """ISO 4217 code."""
    unit: Literal["gpu-hour", "cpu-hour"]
    source: Label = Field(min_length=1, max_length=500)
    date: Day
    """The day from which the price is valid (or on which it was read), from 00:00 UTC."""
    low: Amount | None = None
    """The cheapest offer that the source names; absent: it names no range."""
    high: Amount | None = None
    """The dearest."""

    @model_validator(mode="after")
    def _range_holds_it(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"low ({self.low}) and high ({self.high}) belong together: give both or neither")
        if self.low is not None and self.high is not None and not self.low <= self.amount <= self.high:
            raise ValueError(f"amount {self.amount} must lie between low {self.low} and high {self.high}")
        return self

    @model_validator(mode="after")
    def _unit_fits(self) -> Self:
        expected = "cpu-hour" if self.accelerator == "cpu" else "gpu-hour"
        if self.unit != expected:
            raise ValueError(f"unit of {self.accelerator} must be {expected}, got {self.unit}")
        return self


def valid_at(history: Sequence[Price], day: datetime.date) -> Price:
    """The price of that day, from a history in order of time; before its beginning the first one."""
    return next((price for price in reversed(history) if price.date <= day), history[0])


class PriceBook:
    """Prices by accelerator and price class: of each its history, oldest first."""

    def __init__(self, prices: dict[tuple[str, str], tuple[Price, ...]]) -> None:
        self._prices = prices

    @classmethod
    def load(cls, path: Path | None = None) -> PriceBook:
        """The packaged prices; rows of the operator's file `path` replace all of theirs. UsageError if it is bad."""
        prices = _read(DATA)
        if path is not None:
            prices = prices | _read(path)
        return cls(prices)

    def classes(self, accelerator: str) -> list[str]:
        """Price classes that are known for an accelerator."""
        return sorted(known for name, known in self._prices if name == accelerator)

    def price(self, accelerator: str, price_class: str, day: datetime.date | None = None) -> Price:
        """The price of one device-hour on a day, by default today (UTC); UsageError lists what is known."""
        return valid_at(self.history(accelerator, price_class), day or datetime.datetime.now(datetime.UTC).date())

    def history(self, accelerator: str, price_class: str) -> tuple[Price, ...]:
        """All prices of one device-hour, oldest first, in one currency; UsageError lists what is known."""
        found = self._prices.get((accelerator, price_class))
        if found is not None:
            return found
        if classes := self.classes(accelerator):
            raise UsageError(
                f"no price of class {price_class!r} for {accelerator}; known: {', '.join(classes)}; "
                "add a row to the file that FATHOM_PRICES names"
            )
        names = sorted({name for name, _ in self._prices})
        raise UsageError(
            f"no price for accelerator {accelerator!r}; known: {', '.join(names)}; "
            "add a row to the file that FATHOM_PRICES names"
        )


def _read(path: Path) -> dict[tuple[str, str], tuple[Price, ...]]:
    prices: dict[tuple[str, str], dict[datetime.date, Price]] = {}
    for number, price in enumerate(read_rows(path, "price file", "check FATHOM_PRICES", Price), start=1):
        others = prices.setdefault((price.accelerator, price.price_class), {})
        _require_fitting(price, others, f"price file {path}: row {number}")
        others[price.date] = price
    return {key: tuple(of[date] for date in sorted(of)) for key, of in prices.items()}


def _require_fitting(price: Price, others: dict[datetime.date, Price], where: str) -> None:
    what = f"{price.accelerator} {price.price_class}"
    if (same := others.get(price.date)) is not None:
        raise UsageError(
            f"{where}: a second price for {what} from {price.date}: {same.amount} and {price.amount}; keep one"
        )
    if (other := next(iter(others.values()), price)).currency != price.currency:
        raise UsageError(
            f"{where}: {what} is priced in {price.currency} from {price.date} and in {other.currency} from "
            f"{other.date}: keep to one currency, or give one of them another priceClass"
        )
