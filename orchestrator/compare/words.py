"""Numbers of a comparison as people read them: one way for the terminal and the page. Pure."""

from __future__ import annotations

from decimal import Decimal

from orchestrator.compare.document import Comparison, Equal, Kind, Row, Value
from orchestrator.compare.facts import Axis
from orchestrator.cost.meter import precise

Number = str | int | float | Decimal | None
_SIZES = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"))
_NAMED = 5
"""Runs in a sentence besides the best."""
EQUAL = {
    Axis.step: "optimizer steps", Axis.tokens: "tokens", Axis.flops: "training FLOPs", Axis.hours: "hours",
    Axis.dollars: "dollars",
}  # fmt: skip
"""What runs have used up equally; money is called by its currency, see `axis_name`."""


def axis_name(axis: Axis, currency: str | None) -> str:
    """As a heading says it."""
    return EQUAL[axis] if axis is not Axis.dollars or currency == "USD" else f"money ({currency})"


def on_axis(axis: Axis, x: float | Decimal, currency: str | None) -> str:
    """An amount of what an axis counts, with its unit."""
    if axis is Axis.dollars:
        return precise(x if isinstance(x, Decimal) else Decimal(repr(x)), currency or "")
    if axis is Axis.hours:
        return duration(float(x))
    return f"{flops(float(x))}FLOP" if axis is Axis.flops else f"{x:,.0f} {'steps' if axis is Axis.step else 'tokens'}"


def flops(count: float) -> str:
    """1.5e12 as `1.5 T`."""
    for size, letter in _SIZES:
        if abs(count) >= size:
            return f"{count / size:.4g} {letter}"
    return f"{count:,.0f} "


def duration(hours: float) -> str:
    """In the largest unit of which there is one."""
    if hours >= 1:
        return f"{hours:,.2f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"


def number(kind: Kind, value: Number, currency: str) -> str:
    """One cell; a dash where nothing is known."""
    if value is None:
        return "-"
    if kind == "money":
        return precise(Decimal(str(value)), currency)
    amount = float(value)
    if kind == "count":
        return f"{amount:,.0f}"
    if kind == "flops":
        return f"{flops(amount)}FLOP"
    if kind == "hours":
        return duration(amount)
    if kind == "share":
        return f"{amount:.2%}"
    return f"{amount:,.0f}" if kind == "speed" else metric(amount)


def metric(value: float) -> str:
    """Four decimals of what is of the size of a loss, else five digits."""
    return f"{value:,.4f}" if 0.001 <= abs(value) < 1000 or not value else f"{value:.5g}"


def cells(row: Row, comparison: Comparison) -> list[str]:
    """A row's numbers, each run's money in its own currency."""
    pairs = zip(row.values, comparison.runs, strict=True)
    return [number(row.kind, value, run.currency) for value, run in pairs]


def standing(value: Value) -> str:
    """A run's metric at the common x, with how it was come by."""
    if value.value is None:
        return "-"
    noise = f" ±{value.noise:.2g}" if value.noise else ""
    return f"{metric(value.value)}{' ~' if value.how == 'interpolated' else noise}"


def far_along(value: Value) -> str:
    """How much of itself a run has used up there, unless it is all."""
    return f"at {value.share:.0%} of its own" if value.share is not None and value.share < 0.995 else ""


def verdict(one: Equal, comparison: Comparison) -> str:
    """The runs at equal expense in a sentence; the best first."""
    unit = comparison.metric.unit or comparison.metric.name
    where = f"At equal {axis_name(one.axis, comparison.currency)} ({on_axis(one.axis, one.x, comparison.currency)})"
    known = [(value.value, value) for value in one.values if value.value is not None]
    if len(known) < len(one.values):
        where += ", as far as runs have a value there"
    if not one.best or comparison.metric.better is None:
        same = ", ".join(f"{value.run} {metric(number)}" for number, value in known)
        why = ", no difference beyond the noise of the steps" if any(value.noise for value in one.values) else ""
        return f"{where}: {same} {unit}{why}."
    known.sort(key=lambda pair: pair[0], reverse=comparison.metric.better == "higher")
    best = known[0][0]
    others = [f"{value.run} {metric(n)} ({n - best:+.4f})" for n, value in known if value.run not in one.best]
    more = [f"{len(others) - _NAMED} more"] if len(others) > _NAMED else []
    are = "is" if len(one.best) == 1 else "are"
    best_ones = " and ".join(one.best)
    return f"{where} {best_ones} {are} best with {metric(best)} {unit}; {', '.join([*others[:_NAMED], *more])}."
