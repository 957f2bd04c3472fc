"""The tables of a comparison: one number of every run in a row, the best of them marked. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from decimal import Decimal

from orchestrator.compare.curve import Curve, best_at, value_at
from orchestrator.compare.document import Kind, Row
from orchestrator.compare.facts import Axis, RunFacts
from orchestrator.compare.measures import LOSS, Better, better_of, is_priced, unit_of
from orchestrator.cost.records import CLASSES, GRAIN, WASTED, Totals

Number = Decimal | int | float | None
_SPEED, _MFU = "train/tokens_per_second", "train/mfu"
_MORE = ("moe/cv", "moe/dead_share")


def best_of(values: Sequence[Number], better: Better | None) -> list[bool]:
    """Which are the best, ties all; none where there is no choice: all are equal, or fewer than two are known."""
    known = [float(value) for value in values if value is not None]
    if better is None or len(known) < 2:
        return [False] * len(values)
    best = min(known) if better == "lower" else max(known)
    marks = [value is not None and math.isclose(float(value), best, rel_tol=1e-9) for value in values]
    return [False] * len(values) if all(m for m, v in zip(marks, values, strict=True) if v is not None) else marks


def rows_of(runs: Sequence[RunFacts], curves: Sequence[Curve], metric: str, priced: bool) -> list[Row]:
    """The metric first, then what it took, then other metrics. `priced`: the runs are paid in one currency."""
    better, unit = better_of(metric), unit_of(metric)
    at = [best_at(curve, better) for curve in curves]
    pairs = list(zip(curves, at, strict=True))

    def row(
        name: str, unit: str, kind: Kind, better: Better | None, values: Sequence[Number], wide: bool = False
    ) -> Row:
        marks = best_of(values, None if kind == "money" and not priced else better)
        return Row(name=name, unit=unit, kind=kind, better=better, values=_plain(values), best=marks, wide=wide)

    def totals(pick: Callable[[Totals], Number]) -> list[Number]:
        return [None if run.totals is None else pick(run.totals) for run in runs]

    money = _currency(runs)
    found = [
        row(f"{metric}, last", unit, "metric", better, [c.means[-1] if c.points else None for c in curves]),
        row(f"{metric}, best", unit, "metric", better, [None if i is None else c.means[i] for c, i in pairs]),
        row("  at step", "", "count", None, [None if i is None else c.points[i].step for c, i in pairs]),
        row(
            "  at tokens", "tokens", "count", None, [None if i is None else c.points[i].tokens for c, i in pairs], True
        ),
        row("  at cost", money, "money", None, [None if i is None else _amount(c, i) for c, i in pairs]),
        row("price of the last 0.01", f"{money} per 0.01 {unit}", "money", None, _marginal(curves, metric)),
        row("tokens", "tokens", "count", None, totals(lambda t: t.tokens)),
        row("training work", "FLOPs", "flops", None, totals(_flops)),
        row("held", "hours", "hours", None, totals(lambda t: float(t.held_seconds) / 3600)),
        row(_hours_name(runs), "hours", "hours", None, totals(lambda t: float(t.hours)), True),
        row("spent", money, "money", "lower", totals(lambda t: t.cost)),
        row("wasted", money, "money", "lower", totals(lambda t: t.wasted)),
        row("wasted share", "of what was spent", "share", "lower", totals(_share)),
        row("cost per billion tokens", money, "money", "lower", totals(lambda t: t.cost_per_billion_tokens)),
        row("speed", "tokens/s, median of steps", "speed", "higher", [_median(run, _SPEED) for run in runs]),
        row("MFU", "of peak, median of steps", "share", "higher", [_median(run, _MFU) for run in runs]),
        *(
            row(f"{name}, last", unit_of(name), "metric", better_of(name), [_last(run, name) for run in runs], wide)
            for name, wide in _others(runs, metric)
        ),
    ]
    return [one for one in found if any(value is not None for value in one.values)]


def cost_rows(runs: Sequence[RunFacts]) -> list[Row]:
    """Money by class of time: what learned, what is the price of running at all, and what bought nothing."""
    rows = []
    for name in CLASSES:
        values: list[Number] = [
            None if r.totals is None else r.totals.cost_by_class.get(name, Decimal(0)) for r in runs
        ]
        if any(values):
            marked = f"{name} (wasted)" if name in WASTED else name
            none = [False] * len(values)
            rows.append(
                Row(name=marked, unit=_currency(runs), kind="money", better=None, values=_plain(values), best=none)
            )
    return rows


def _plain(values: Sequence[Number]) -> list[str | int | float | None]:
    return [format(value, "f") if isinstance(value, Decimal) else value for value in values]


def _currency(runs: Sequence[RunFacts]) -> str:
    found = sorted({run.currency for run in runs})
    return "/".join(found)


def _hours_name(runs: Sequence[RunFacts]) -> str:
    return " and ".join(sorted({f"{run.unit}s" for run in runs}))


def _amount(curve: Curve, at: int) -> Decimal:
    return as_money(curve.points[at].dollars)


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


def _last(run: RunFacts, metric: str) -> float | None:
    """As it was reported last; that of training jumps from step to step."""
    return next((point.metrics[metric] for point in reversed(run.points) if metric in point.metrics), None)


def _others(runs: Sequence[RunFacts], metric: str) -> list[tuple[str, bool]]:
    """Metrics of evaluations, and some more; those that not every run has, and of sources, only where there is room."""
    names: dict[str, int] = {}
    for run in runs:
        for name in dict.fromkeys(name for point in run.points for name in point.metrics):
            names[name] = names.get(name, 0) + 1
    chosen = [name for name in names if name != metric and (name.startswith("eval/") or name in (LOSS, *_MORE))]
    return [(name, names[name] < len(runs) or name.count("/") > 1 or name in _MORE) for name in chosen]
