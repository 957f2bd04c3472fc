"""The tables of a comparison: one number of every run in a row, the best of them marked. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from decimal import Decimal

from orchestrator.compare.curve import Curve, best_at, curve_of, noise, value_at, windowed
from orchestrator.compare.document import Kind, Row
from orchestrator.compare.facts import Axis, RunFacts
from orchestrator.compare.measures import LOSS, Better, better_of, is_priced, unit_of, window_of
from orchestrator.cost.records import CLASSES, GRAIN, WASTED, Totals

Number = Decimal | int | float | None
_SPEED, _MFU = "train/tokens_per_second", "train/mfu"
_CERTAIN = 2.0
"""Standard errors."""
_MORE = ("moe/cv", "moe/dead_share")


def best_of(
    values: Sequence[Number], better: Better | None, noises: Sequence[float | None] | None = None
) -> list[bool]:
    """Which are the best, ties all; none where there is no choice: all are equal, or fewer than two are known. What is
    within two standard errors of a difference (`noises`) counts as equal."""
    known = [(float(value), i) for i, value in enumerate(values) if value is not None]
    if better is None or len(known) < 2:
        return [False] * len(values)
    best, first = min(known) if better == "lower" else max(known)
    errors = [error or 0.0 for error in noises or [0.0] * len(values)]
    marks = [False] * len(values)
    for value, i in known:
        room = _CERTAIN * math.hypot(errors[i], errors[first])
        marks[i] = math.isclose(value, best, rel_tol=1e-9, abs_tol=room)
    return [False] * len(values) if all(marks[i] for _, i in known) else marks


def rows_of(runs: Sequence[RunFacts], curves: Sequence[Curve], metric: str, priced: bool) -> list[Row]:
    """The metric first, then what it took, then other metrics. `priced`: the runs are paid in one currency."""
    money = _currency(runs)
    found = [*_of_metric(curves, metric, money), *_of_expense(runs, money, priced)]
    for name in _others(runs, metric):
        row = _last(name, [curve_of(run, name) for run in runs])
        sparse = any(value is None for value in row.values)
        found.append(row.model_copy(update={"wide": sparse or name.count("/") > 1 or name in _MORE}))
    return [one for one in found if any(value is not None for value in one.values)]


def cost_rows(runs: Sequence[RunFacts]) -> list[Row]:
    """Money by class of time: what learned, what is the price of running at all, and what bought nothing."""
    rows = []
    for name in CLASSES:
        values = _totals(runs, lambda totals, name=name: totals.cost_by_class.get(name, Decimal(0)))  # type: ignore[misc]
        if any(values):
            rows.append(_row(f"{name} (wasted)" if name in WASTED else name, _currency(runs), "money", values))
    return rows


def _row(
    name: str, unit: str, kind: Kind, values: Sequence[Number], better: Better | None = None, *, wide: bool = False
) -> Row:
    shown = [format(value, "f") if isinstance(value, Decimal) else value for value in values]
    return Row(name=name, unit=unit, kind=kind, better=better, values=shown, best=best_of(values, better), wide=wide)


def _last(name: str, plain: Sequence[Curve]) -> Row:
    """The last value of each run; of a metric of steps the mean of the last ones, all over as many steps."""
    better = better_of(name)
    window = window_of(name, min((len(curve.points) for curve in plain if curve.points), default=1))
    curves = [windowed(curve, window) for curve in plain]
    ends = [len(curve.points) - 1 for curve in curves]
    values: list[Number] = [curve.means[-1] if curve.points else None for curve in curves]
    noises = [noise(curve, end) if curve.points else None for curve, end in zip(curves, ends, strict=True)]
    said = f"{name}, last" + (f" {window} steps" if window > 1 else "")
    row = _row(said, unit_of(name), "metric", values, better)
    return row.model_copy(update={"best": best_of(values, better, noises)})


def _of_metric(curves: Sequence[Curve], metric: str, money: str) -> list[Row]:
    rows = [_last(metric, curves)]
    better, unit = better_of(metric), unit_of(metric)
    bests = [(curve, best_at(curve, better)) for curve in curves]
    if all(curve.window == 1 for curve in curves):  # the best mean of steps is one of lucky batches
        places = [None if at is None else curve.points[at] for curve, at in bests]
        values = [None if at is None else curve.means[at] for curve, at in bests]
        rows += [
            _row(f"{metric}, best", unit, "metric", values, better),
            _row("best reached at step", "", "count", [None if p is None else p.step for p in places]),
            _row(
                "best reached at tokens",
                "tokens",
                "count",
                [None if p is None else p.tokens for p in places],
                wide=True,
            ),
            _row("best reached at cost", money, "money", [None if p is None else as_money(p.dollars) for p in places]),
            _row("price of the last 0.01", f"{money} per 0.01 {unit}", "money", _marginal(curves, metric)),
        ]
    return rows


def _of_expense(runs: Sequence[RunFacts], money: str, priced: bool) -> list[Row]:
    less: Better | None = "lower" if priced else None
    return [
        _row("tokens", "tokens", "count", _totals(runs, lambda t: t.tokens)),
        _row("training work", "FLOPs", "flops", _totals(runs, _flops)),
        _row("held", "time", "hours", _totals(runs, lambda t: float(t.held_seconds) / 3600)),
        _row("device time", _unit(runs), "hours", _totals(runs, lambda t: float(t.hours)), wide=True),
        _row("spent", money, "money", _totals(runs, lambda t: t.cost), less),
        _row("wasted", money, "money", _totals(runs, lambda t: t.wasted), less),
        _row("wasted share", "of what was spent", "share", _totals(runs, _share), "lower"),
        _row("cost per billion tokens", money, "money", _totals(runs, lambda t: t.cost_per_billion_tokens), less),
        _row("speed", "tokens/s, median of steps", "speed", [_median(run, _SPEED) for run in runs], "higher"),
        _row("MFU", "of peak, median of steps", "share", [_median(run, _MFU) for run in runs], "higher"),
    ]


def _totals(runs: Sequence[RunFacts], pick: Callable[[Totals], Number]) -> list[Number]:
    return [None if run.totals is None else pick(run.totals) for run in runs]


def _currency(runs: Sequence[RunFacts]) -> str:
    found = sorted({run.currency for run in runs})
    return "/".join(found)


def _unit(runs: Sequence[RunFacts]) -> str:
    """Of one or of several devices, e.g. of GPUs."""
    return " and ".join(sorted({f"of {run.unit.partition('-')[0].upper()}s" for run in runs}))


def as_money(amount: float) -> Decimal:
    """A position on an axis as an amount, to 12 decimals."""
    return Decimal(repr(amount)).quantize(GRAIN)


def _flops(totals: Totals) -> float | None:
    return None if totals.useful_exaflops is None else float(totals.useful_exaflops) * 1e18


def _share(totals: Totals) -> float | None:
    return float(totals.wasted / totals.cost) if totals.cost else None


def _marginal(curves: Sequence[Curve], metric: str) -> list[Number]:
    """Money for 0.01 of the metric at the end: along the last quarter of what was spent. None where it got no better,
    or the last quarter has no beginning."""
    if not is_priced(metric):
        return [None] * len(curves)
    sign = 1 if better_of(metric) == "lower" else -1
    found: list[Number] = []
    for curve in curves:
        end = curve.xs(Axis.dollars)[-1] if curve.points else 0.0
        before = value_at(curve, Axis.dollars, 0.75 * end) if curve.points else None
        gained = 0.0 if before is None else sign * (before.value - curve.means[-1])
        found.append(as_money(0.25 * end * 0.01 / gained) if gained > 0 else None)
    return found


def _median(run: RunFacts, metric: str) -> float | None:
    values = [point.metrics[metric] for point in run.points if metric in point.metrics]
    return statistics.median(values) if values else None


def _others(runs: Sequence[RunFacts], metric: str) -> list[str]:
    """Metrics of evaluations, and the few of training that are compared."""
    names = dict.fromkeys(name for run in runs for point in run.points for name in point.metrics)
    return [name for name in names if name != metric and (name.startswith("eval/") or name in (LOSS, *_MORE))]
