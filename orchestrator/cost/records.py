"""What a ledger is: its rows, its totals, and how both are written and read. Pure data.

Columns that FOCUS (FinOps Open Cost and Usage Specification, 1.2) defines have its names; our own begin with `x_`, as
it prescribes. Invariant: rows and totals of a ledger agree to the last digit, or it is refused.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from decimal import Decimal, localcontext
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AwareDatetime, Field, PlainSerializer, ValidationError, model_validator
from pydantic.alias_generators import to_camel, to_pascal

from model.config import Frozen
from orchestrator.cost.meter import Rate
from orchestrator.cost.timeline import TimeClass
from orchestrator.plan.prices import Label

WASTED: tuple[TimeClass, ...] = ("recovering", "lost", "idle")
"""Classes that bought nothing; waiting, starting and checkpoint are the price of running at all."""
CLASSES: tuple[TimeClass, ...] = get_args(TimeClass)
FLOPS_CONVENTION = "model FLOPs of tokens that count, forward and backward, causal attention, no recomputation"

GRAIN = Decimal(1).scaleb(-12)
"""Amounts of rows are multiples of this."""
DIGITS = 60
"""Of sums and quotients: more than any of them needs, so that sums are exact."""
Plain = Annotated[Decimal, Field(ge=0), PlainSerializer(lambda value: format(value, "f"), when_used="json")]
"""A Decimal that JSON shows as a plain string, without an exponent."""
Amount = Annotated[Plain, Field(max_digits=38, decimal_places=12)]
"""As Parquet holds it."""

_OWN = {"attempt", "time_class", "cause", "held", "price_date", "price_class"}
_UNITS = {"gpu-second": "GPU-Seconds", "cpu-second": "CPU-Seconds"}


def _column(name: str) -> str:
    return f"x_{to_pascal(name)}" if name in _OWN else to_pascal(name)


class Row(Frozen, alias_generator=_column, populate_by_name=True):
    """One stretch of time of one class at one price."""

    attempt: int
    time_class: TimeClass
    cause: Label | None = None
    """Why it was wasted: a failure class, "rollback" or "finished"."""
    held: bool = True
    """False for waiting without devices, which costs nothing."""
    charge_period_start: AwareDatetime
    charge_period_end: AwareDatetime
    consumed_quantity: Amount
    """Device-seconds, exact; 0 where nothing was held."""
    consumed_unit: Literal["GPU-Seconds", "CPU-Seconds"]
    list_unit_price: Amount | None = None
    """Of one device for one hour; None in ledgers of version 1."""
    price_date: datetime.date | None = None
    """From when that price is valid."""
    price_class: Label | None = None
    """How it is bought, e.g. spot; None where that is not known."""
    billed_cost: Amount
    billing_currency: str

    @model_validator(mode="after")
    def _runs_forward(self) -> Self:
        if self.charge_period_end < self.charge_period_start:
            raise ValueError(f"ends at {self.charge_period_end}, before its start {self.charge_period_start}")
        return self

    @property
    def seconds(self) -> Decimal:
        """Wall seconds of the stretch."""
        length = self.charge_period_end - self.charge_period_start
        return Decimal(length // datetime.timedelta(microseconds=1)) / 1_000_000


class Totals(Frozen, alias_generator=to_camel, populate_by_name=True):
    """Sums over all rows, and what the money bought."""

    held_seconds: Plain
    hours: Plain
    """Device-hours (GPU-hours or CPU-hours), rounded to 12 decimals."""
    cost: Plain
    seconds_by_class: dict[TimeClass, Plain]
    """Held seconds."""
    cost_by_class: dict[TimeClass, Plain]
    wasted: Plain
    """Cost of the classes in WASTED."""
    wasted_by_cause: dict[str, Plain] = {}
    """The same money by what caused it; empty in ledgers of version 1."""
    waiting_seconds: Plain = Decimal(0)
    """Queued or pulling without holding anything."""
    step: int = Field(ge=0)
    """The last step that still counts."""
    tokens: int = Field(ge=0)
    """Tokens trained up to that step."""
    cost_per_billion_tokens: Plain | None
    """None before the first step."""
    useful_exaflops: Plain | None = None
    """Work in 10^18 floating-point operations, by FLOPS_CONVENTION; None where the model's FLOPs were not given."""
    cost_per_exaflop: Plain | None = None

    @classmethod
    def of(cls, rows: Iterable[Row], step: int, tokens: int, useful_exaflops: Decimal | None) -> Totals:
        """The sums of `rows`, and what they come to for what they bought."""
        seconds, costs = dict.fromkeys(CLASSES, Decimal(0)), dict.fromkeys(CLASSES, Decimal(0))
        devices = waiting = Decimal(0)
        by_cause: dict[str, Decimal] = {}
        with localcontext(prec=DIGITS):
            for row in rows:
                devices += row.consumed_quantity
                costs[row.time_class] += row.billed_cost
                if row.held:
                    seconds[row.time_class] += row.seconds
                else:
                    waiting += row.seconds
                if row.time_class in WASTED:
                    cause = row.cause or "unknown"
                    by_cause[cause] = by_cause.get(cause, Decimal(0)) + row.billed_cost
            cost = sum(costs.values(), Decimal(0))
            return cls(
                held_seconds=sum(seconds.values(), Decimal(0)),
                hours=(devices / 3600).quantize(GRAIN),
                cost=cost,
                seconds_by_class=seconds,
                cost_by_class=costs,
                wasted=sum((costs[name] for name in WASTED), Decimal(0)),
                wasted_by_cause=by_cause,
                waiting_seconds=waiting,
                step=step,
                tokens=tokens,
                cost_per_billion_tokens=(cost * 10**9 / tokens).quantize(GRAIN) if tokens else None,
                useful_exaflops=useful_exaflops,
                cost_per_exaflop=(cost / useful_exaflops).quantize(GRAIN) if useful_exaflops else None,
            )

    def difference(self, other: Totals) -> str | None:
        """The first field in which they differ, with both values; a class without time or causes is no difference."""
        for name in type(self).model_fields:
            one, two = getattr(self, name), getattr(other, name)
            if name == "wasted_by_cause" and not (one and two):  # there were none in version 1
                continue
            if isinstance(one, dict):
                one, two = ({key: value for key, value in of.items() if value} for of in (one, two))
            if one != two:
                return f"{to_camel(name)}: {_shown(one)} and {_shown(two)}"
        return None


class Owner(Frozen, alias_generator=to_camel, populate_by_name=True):
    """Whose money it is."""

    job: Label
    team: Label
    """Namespace of the job."""
    uid: Label


class Ledger(Frozen, alias_generator=to_camel, populate_by_name=True):
    """All rows of a job, and the totals."""

    version: Literal[2] = 2
    """Of the form; those of version 1 are read, too."""
    owner: Owner | None = None
    rate: Rate
    """The newest: rows are priced at what was valid in their time."""
    rates: tuple[Rate, ...] = ()
    """All that rows are priced at, with their sources; empty in ledgers of version 1."""
    rows: tuple[Row, ...]
    totals: Totals
    limit: Plain | None = None
    """Of the budget that was in force when this was written."""

    @model_validator(mode="before")
    @classmethod
    def _upgraded(cls, found: Any) -> Any:  # noqa: ANN401 - whatever a file holds
        if not isinstance(found, dict):
            return found
        if isinstance(version := found.get("version"), int) and version > 2:
            raise ValueError(f"it is of version {version}, written by a newer Fathom; this one reads 1 and 2")
        if version != 1 or not isinstance(found.get("rows"), list):
            return found
        return found | {"version": 2, "rows": [_row_of_version_1(row) for row in found["rows"]]}

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        of = self.totals
        if (wrong := Totals.of(self.rows, of.step, of.tokens, of.useful_exaflops).difference(of)) is not None:
            raise ValueError(f"rows add up to something else than the totals say, {wrong}")
        others = {row.billing_currency for row in self.rows} - {self.rate.currency}
        if others:
            raise ValueError(f"rows are in {', '.join(sorted(others))}, the ledger is in {self.rate.currency}")
        return self

    def to_json(self) -> str:
        """Indented JSON; amounts are strings."""
        return self.model_dump_json(by_alias=True, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Ledger:
        """Reads what `to_json` wrote, this version's or version 1's; ValueError if rows and totals do not agree."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"not a valid ledger: {error}") from error


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(of)}" for key, of in value.items()) or "nothing"
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def _row_of_version_1(row: object) -> object:
    """With the names of this version."""
    if not isinstance(row, dict):
        return row
    unit = row.get("ConsumedUnit")
    renamed = {{"Attempt": "x_Attempt", "TimeClass": "x_TimeClass"}.get(key, key): row[key] for key in row}
    return renamed | ({"ConsumedUnit": _UNITS[unit]} if isinstance(unit, str) and unit in _UNITS else {})
