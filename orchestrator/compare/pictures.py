"""The three pictures of a comparison: curves on an axis, runs as purchases, money by class. Pure: SVG out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from html import escape

from orchestrator.compare import svg
from orchestrator.compare.document import Comparison, Series
from orchestrator.compare.facts import Axis
from orchestrator.compare.words import flops, metric, on_axis
from orchestrator.cost.meter import precise
from orchestrator.tracking.html_page import colour
from orchestrator.tracking.names import clipped
from orchestrator.tracking.palette import MUTED, TIME_CLASSES
from orchestrator.tracking.plots import short_number

_EARLY = 0.12
"""Share of a run's steps that may begin outside of the picture: the first loss is far from all others."""
_DOTS = 60
"""Points of a curve that are shown one by one."""


def curves(of: Comparison, axis: Axis) -> str:
    """The metric of all runs against one axis, with the x at which all are compared."""
    shown = [(i, one) for i, one in enumerate(of.series) if one.step]
    ends = [_xs(one, axis)[-1] for _, one in shown]
    label, scale = _axis(axis, max(ends), of.currency)
    plane = svg.Plane(
        svg.nice(0, max(ends) / scale), _heights([one for _, one in shown], of.metric.better), f"by-{axis}"
    )
    x_format = _ticks(axis, of.currency)
    parts = svg.frame(plane, label, _metric_label(of), x_format, _trimmed)
    if (equal := of.equal_at(axis)) is not None:
        parts += svg.upright(plane, equal.x / scale, f"equal: {on_axis(axis, equal.x, of.currency)}")
    for i, one in shown:
        xs = [x / scale for x in _xs(one, axis)]
        if one.mean is not None:
            parts.append(svg.line(plane, i, xs, one.value, faint=True))
        parts.append(svg.line(plane, i, xs, one.mean or one.value))
        if len(xs) <= _DOTS and one.mean is None:
            parts += [
                svg.dot(plane, i, x, y, f"{one.run}, step {step:,}: {metric(y)} {of.metric.unit}")
                for x, y, step in zip(xs, one.value, one.step, strict=True)
            ]
    parts += svg.names_beside(plane, [(i, one.run, (one.mean or one.value)[-1]) for i, one in shown])
    return svg.framed(plane, parts, f"{of.metric.name} of {len(shown)} runs against {label}")


def purchases(of: Comparison) -> str:
    """What each run has cost and how good it became, with the runs that nobody beats joined; budgets as lines."""
    assert of.pareto is not None
    spots = of.pareto.spots
    costs, values = [float(spot.dollars) for spot in spots], [spot.value for spot in spots]
    plane = svg.Plane(svg.nice(*_around(costs, floor=True)), svg.nice(*_around(values)), "bought")
    number = {run.name: i for i, run in enumerate(of.runs)}
    money = _ticks(Axis.dollars, of.currency)
    parts = svg.frame(plane, f"spent in all ({of.currency})", f"best {_metric_label(of)}", money, _trimmed)
    for limit in sorted({float(run.limit) for run in of.runs if run.limit is not None}):
        if plane.x.low <= limit <= plane.x.high:
            parts += svg.upright(plane, limit, f"budget {on_axis(Axis.dollars, limit, of.currency)}")
    for one in of.series:
        if one.run in number and one.step:
            ys = one.mean or one.value
            parts.append(svg.line(plane, number[one.run], [float(x) for x in one.dollars], ys, faint=True))
    by_name = {spot.run: spot for spot in spots}
    path = _staircase([(float(by_name[n].dollars), by_name[n].value) for n in of.pareto.frontier], plane)
    parts.append(
        f'<polyline points="{plane.path(*path)}" fill="none" stroke="{colour(MUTED)}" stroke-width="1.6"'
        f' stroke-dasharray="6 3" clip-path="url(#{plane.name})"/>'
    )
    for spot in spots:
        beaten = f", beaten by {', '.join(spot.dominated_by)}" if spot.dominated_by else ", beaten by none"
        says = f"{spot.run}: {precise(spot.dollars, of.currency or '')}, {metric(spot.value)}{beaten}"
        at = (number[spot.run], float(spot.dollars), spot.value)
        parts.append(svg.dot(plane, *at, says, radius=7, hollow=bool(spot.dominated_by)))
    parts += svg.names_beside(plane, [(number[spot.run], spot.run, spot.value) for spot in spots])
    return svg.framed(plane, parts, "best value against money spent; the table below holds the same numbers")


def money_bars(of: Comparison) -> str:
    """Money by class of time, a bar for each run; of runs in different currencies, shares of each."""
    names = [run.name for run in of.runs]
    totals = [sum((Decimal(str(row.values[i] or 0)) for row in of.cost), Decimal(0)) for i in range(len(names))]
    largest = max(totals)
    left, right, height = 190, 130, 26
    parts, keys = [], 30
    for i, (name, total) in enumerate(zip(names, totals, strict=True)):
        top, at = keys + i * (height + 8), float(left)
        parts.append(svg.text(left - 10, top + 18, clipped(name, 24), anchor="end", fill="#1f2933"))
        whole = largest if of.currency else total
        for row in of.cost:
            amount = Decimal(str(row.values[i] or 0))
            width = float(amount / whole) * (svg.WIDTH - left - right) if whole else 0.0
            says = f"{name}, {row.name}: {precise(amount, of.runs[i].currency)}"
            parts.append(
                f'<rect x="{at:.1f}" y="{top}" width="{width:.1f}" height="{height}" '
                f'fill="{_class_colour(row.name)}"><title>{escape(says)}</title></rect>'
            )
            at += width
        parts.append(svg.text(at + 8, top + 18, precise(total, of.runs[i].currency), fill="#1f2933"))
    at = float(left)
    for row in of.cost:
        parts.append(f'<rect x="{at:.1f}" y="4" width="12" height="12" fill="{_class_colour(row.name)}"/>')
        parts.append(svg.text(at + 17, 15, row.name))
        at += 17 + 7.4 * len(row.name) + 18
    return svg.drawing(parts, "money by class of time; the table below holds the same numbers", keys + len(names) * 34)


def _class_colour(row: str) -> str:
    return colour(TIME_CLASSES[row.split(" ")[0]])


def _xs(one: Series, axis: Axis) -> list[float]:
    return [float(x) for x in getattr(one, axis.value)]


def _axis(axis: Axis, most: float, currency: str | None) -> tuple[str, float]:
    """Its name, and what its numbers are divided by so that they are short."""
    if axis is Axis.hours:
        size, unit = (1.0, "hours") if most >= 2 else (1 / 60, "minutes") if most * 60 >= 2 else (1 / 3600, "seconds")
        return f"time in which devices were held ({unit})", size
    if axis is Axis.flops:
        letter = flops(most)[-1].strip()
        size = {"Y": 1e24, "Z": 1e21, "E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9}.get(letter, 1.0)
        return f"training work ({letter}FLOP)", size
    if axis is Axis.dollars:
        return f"spent ({currency or 'each in its own currency'})", 1.0
    return ("optimizer steps" if axis is Axis.step else "tokens trained"), 1.0


def _ticks(axis: Axis, currency: str | None) -> Callable[[float], str]:
    prefix = "$" if axis is Axis.dollars and currency == "USD" else ""
    return lambda value: prefix + (short_number(round(value, 12)))


def _trimmed(value: float) -> str:
    return f"{round(value, 12):g}"


def _metric_label(of: Comparison) -> str:
    unit = f" ({of.metric.unit})" if of.metric.unit and of.metric.unit not in of.metric.name.replace("_", " ") else ""
    mean = f", mean of {of.metric.window} steps" if of.metric.window > 1 else ""
    return f"{of.metric.name}{unit}{mean}"


def _heights(series: Sequence[Series], better: str | None) -> svg.Range:
    """Of the curves without their first steps; all of a metric that has no direction, which may begin anywhere."""
    values: list[float] = []
    for one in series:
        ys, late = one.mean or one.value, _EARLY * one.step[-1] if better else -1.0
        values += [y for y, step in zip(ys, one.step, strict=True) if step > late] or ys
    low, high = min(values), max(values)
    room = (high - low) * 0.06
    return svg.nice(low - room, high + room)


def _around(values: Sequence[float], *, floor: bool = False) -> tuple[float, float]:
    """With room on both sides; from zero where that costs little, if there is a `floor`."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.35, abs(high) * 0.02)
    return (0.0 if floor and (low < 0.5 * high or low < room) else low - room), high + room


def _staircase(spots: Sequence[tuple[float, float]], plane: svg.Plane) -> tuple[list[float], list[float]]:
    """Along the frontier: until the next run is paid for, the one before is the best that there is."""
    xs, ys = [spots[0][0]], [plane.y.high if len(spots) < 2 or spots[1][1] < spots[0][1] else plane.y.low]
    for x, y in spots:
        xs, ys = [*xs, x, x], [*ys, ys[-1], y]
    return [*xs, plane.x.high], [*ys, ys[-1]]
