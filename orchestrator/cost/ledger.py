"""Where each held second of a job went, and what it cost. Pure: events and held intervals in, rows out.

Called by the local launcher and the controller while a job runs and when an attempt ends. Invariants: the
rows partition the held intervals, so that no second is lost or counted twice; amounts are differences of one
running total, so that they add up to the total exactly. Times are whole microseconds inside.

Held time is ours (process or pod lifetime); event times are the workers' and only divide it, clamped to it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, localcontext
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, PlainSerializer, ValidationError, model_validator
from pydantic.alias_generators import to_camel, to_pascal

from model.config import Frozen
from orchestrator.cost.meter import Rate, cost
from orchestrator.cost.timeline import Held, Piece, TimeClass, timeline
from orchestrator.launch.events import Event

__all__ = ["CLASSES", "WASTED", "Held", "Ledger", "Row", "TimeClass", "Totals", "build_ledger"]

WASTED: tuple[TimeClass, ...] = ("recovering", "lost", "idle")
"""Classes that bought nothing; starting and checkpoint are the price of running at all."""
CLASSES: tuple[TimeClass, ...] = get_args(TimeClass)

_GRAIN = Decimal(1).scaleb(-12)
"""Amounts of rows are multiples of this, so that adding them up is exact in Decimal's 28 digits."""

Plain = Annotated[Decimal, PlainSerializer(lambda value: format(value, "f"), when_used="json")]
"""A Decimal that JSON shows as a plain string, without an exponent."""


class Row(Frozen, alias_generator=to_pascal, populate_by_name=True):
    """One stretch of held time of one class; named as in FOCUS (FinOps Open Cost and Usage Specification)."""

    attempt: int
    time_class: TimeClass
    charge_period_start: datetime.datetime
    charge_period_end: datetime.datetime
    consumed_quantity: Plain
    """Device-seconds, exact."""
    consumed_unit: Literal["gpu-second", "cpu-second"]
    billed_cost: Plain
    billing_currency: str

    @property
    def seconds(self) -> Decimal:
        """Wall seconds of the stretch."""
        return _seconds(_microseconds(self.charge_period_end) - _microseconds(self.charge_period_start))


class Totals(Frozen, alias_generator=to_camel, populate_by_name=True):
    """Sums over all rows, and what the money bought."""

    held_seconds: Plain
    hours: Plain
    """Device-hours (GPU-hours or CPU-hours), rounded to 12 decimals."""
    cost: Plain
    seconds_by_class: dict[TimeClass, Plain]
    cost_by_class: dict[TimeClass, Plain]
    wasted: Plain
    """Cost of the classes in WASTED."""
    step: int = Field(ge=0)
    """The last step that still counts."""
    tokens: int = Field(ge=0)
    """Tokens trained up to that step."""
    cost_per_billion_tokens: Plain | None
    """None before the first step."""


class Ledger(Frozen, alias_generator=to_camel, populate_by_name=True):
    """All rows of a job, and the totals."""

    version: Literal[1] = 1
    rate: Rate
    """The newest: an attempt may have had another one, and its rows are priced at that."""
    rows: tuple[Row, ...]
    totals: Totals

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        held = sum((row.seconds for row in self.rows), Decimal(0))
        billed = sum((row.billed_cost for row in self.rows), Decimal(0))
        if held != self.totals.held_seconds or billed != self.totals.cost:
            raise ValueError(
                f"rows add up to {held} s and {billed}, totals say {self.totals.held_seconds} s and {self.totals.cost}"
            )
        return self

    def to_json(self) -> str:
        """Indented JSON; amounts are strings."""
        return self.model_dump_json(by_alias=True, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Ledger:
        """Reads what `to_json` wrote; ValueError if rows and totals do not agree."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"not a valid ledger: {error}") from error


def build_ledger(
    events: Iterable[Event], held: Sequence[Held], rate: Rate, rates: Mapping[int, Rate] | None = None
) -> Ledger:
    """The ledger of a job from all its events and all the intervals in which it held its devices.

    `rate` is the present one; `rates` has those of attempts that were started at another one.
    """
    found = timeline(events, held)
    rows = _priced(found.pieces, rate, rates or {})
    by_class: dict[TimeClass, list[Row]] = {name: [] for name in CLASSES}
    for row in rows:
        by_class[row.time_class].append(row)
    costs = {name: sum((row.billed_cost for row in of), Decimal(0)) for name, of in by_class.items()}
    seconds = {name: sum((row.seconds for row in of), Decimal(0)) for name, of in by_class.items()}
    total, total_seconds = sum(costs.values(), Decimal(0)), sum(seconds.values(), Decimal(0))
    totals = Totals(
        held_seconds=total_seconds,
        hours=_rounded(sum((row.consumed_quantity for row in rows), Decimal(0)), 3600),
        cost=total,
        seconds_by_class=seconds,
        cost_by_class=costs,
        wasted=sum((costs[name] for name in WASTED), Decimal(0)),
        step=found.step,
        tokens=found.tokens,
        cost_per_billion_tokens=_rounded(total * 10**9, found.tokens) if found.tokens else None,
    )
    return Ledger(rate=rate, rows=tuple(rows), totals=totals)


def _priced(pieces: Sequence[Piece], present: Rate, rates: Mapping[int, Rate]) -> list[Row]:
    """Rows whose amounts are differences of the running total at each border."""
    rows: list[Row] = []
    running, before = Decimal(0), Decimal(0)
    for piece in pieces:
        rate, seconds = rates.get(piece.attempt, present), _seconds(piece.end - piece.start)
        with localcontext(prec=60):
            running += cost(seconds, rate)
        after = _rounded(running, 1)
        rows.append(
            Row(
                attempt=piece.attempt,
                time_class=piece.time_class,
                charge_period_start=_moment(piece.start),
                charge_period_end=_moment(piece.end),
                consumed_quantity=seconds * rate.units,
                consumed_unit="gpu-second" if rate.unit == "gpu-hour" else "cpu-second",
                billed_cost=after - before,
                billing_currency=rate.currency,
            )
        )
        before = after
    return rows


def _rounded(amount: Decimal, divisor: int) -> Decimal:
    """The quotient in multiples of _GRAIN; more digits than usual, because a large one would not fit."""
    with localcontext(prec=60):
        return (amount / divisor).quantize(_GRAIN)


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _moment(microseconds: int) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(microseconds=microseconds)


def _microseconds(moment: datetime.datetime) -> int:
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)


def _seconds(microseconds: int) -> Decimal:
    return Decimal(microseconds) / 1_000_000
