"""Several runs side by side: what differs, what each has bought, and which are worth their price. Pure.

Called by `fathom compare` and `GET /v1/compare`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from difflib import get_close_matches
from itertools import pairwise

from orchestrator.compare.cautions import cautions_of
from orchestrator.compare.curve import Curve, best_at, curve_of, first_reach, thinned, value_at, windowed
from orchestrator.compare.document import (
    Comparison,
    Difference,
    Equal,
    Level,
    Metric,
    Pareto,
    Reached,
    Run,
    Series,
    Spot,
    Step,
    Value,
)
from orchestrator.compare.facts import Axis, RunFacts
from orchestrator.compare.measures import BITS, LOSS, better_of, is_priced, unit_of, window_of
from orchestrator.compare.pareto import dominated_by, frontier
from orchestrator.compare.rows import as_money, best_of, cost_rows, rows_of
from orchestrator.cost.records import FLOPS_CONVENTION
from orchestrator.errors import NotFound, UsageError
from orchestrator.tracking.view import compare_url

LEAST, MOST = 2, 20
"""Runs of a comparison."""
POINTS = 500
"""Of a run's curve."""
_LOCAL_MLFLOW = "http://127.0.0.1:5000"
"""Where `fathom mlflow` serves the local database."""
_LISTED = 30


def compare(runs: Sequence[RunFacts], by: Axis = Axis.tokens, metric: str | None = None) -> Comparison:
    """UsageError for too few, too many or the same run twice; NotFound where no run has the metric."""
    _check(runs)
    names, metric = names_of(runs), metric or _usual(runs)
    plain = [curve_of(run, metric) for run in runs]
    counts = [len(curve.points) for curve in plain]
    if not any(counts) and any(run.points for run in runs):
        raise NotFound(_unknown(runs, metric))
    window = window_of(metric, min(filter(None, counts), default=1))
    curves = [windowed(curve, window) for curve in plain]
    currencies = {run.currency for run in runs}
    priced = len(currencies) == 1
    axes = [by, *(axis for axis in Axis if axis is not by)]
    differing, same = _configuration(runs)
    return Comparison(
        by=by,
        metric=Metric(name=metric, unit=unit_of(metric), better=better_of(metric), window=window),
        currency=runs[0].currency if priced else None,
        flops_convention=FLOPS_CONVENTION,
        runs=[_run(run, name) for run, name in zip(runs, names, strict=True)],
        cautions=cautions_of(runs, names, metric),
        equal=[e for axis in axes if priced or axis is not Axis.dollars if (e := _equal(curves, names, metric, axis))],
        level=_level(curves, names, metric, priced),
        rows=rows_of(runs, curves, metric, priced),
        pareto=_pareto(runs, curves, names, metric) if priced else None,
        differing=differing,
        equal_settings=same,
        cost=cost_rows(runs),
        series=[_series(curve, name, metric) for curve, name in zip(curves, names, strict=True)],
        mlflow_url=_mlflow(runs),
    )


def names_of(runs: Sequence[RunFacts]) -> list[str]:
    """By job; with the team, and then with the beginning of the uid, where that is not enough."""
    for pick in (
        lambda run: run.name,
        lambda run: f"{run.team}/{run.name}",
        lambda run: f"{run.name} ({run.uid[:8]})",
    ):
        names = [pick(run) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [f"{run.name} ({run.uid})" for run in runs]


def require_number(runs: int) -> None:
    """UsageError for too few or too many; to be asked before anything is read."""
    if not LEAST <= runs <= MOST:
        advice = "name another one, with which to compare" if runs < LEAST else "leave some out"
        raise UsageError(f"a comparison is of {LEAST} to {MOST} runs, got {runs}: {advice}")


def _check(runs: Sequence[RunFacts]) -> None:
    require_number(len(runs))
    twice = [run.name for run in runs if sum(run.uid == other.uid for other in runs) > 1]
    if twice:
        raise UsageError(f"the run {twice[0]} is named twice: name it once")


def _usual(runs: Sequence[RunFacts]) -> str:
    """Bits per byte where every run that has steps has them; else the training loss."""
    stepped = [run for run in runs if run.points]
    every = all(any(BITS in point.metrics for point in run.points) for run in stepped)
    return BITS if every else LOSS


def _unknown(runs: Sequence[RunFacts], metric: str) -> str:
    there = sorted({name for run in runs for point in run.points for name in point.metrics})
    if near := get_close_matches(metric, there, n=3):
        return f"no run has the metric {metric!r}: did you mean {' or '.join(near)}?"
    more = f" and {len(there) - _LISTED} more" if len(there) > _LISTED else ""
    return f"no run has the metric {metric!r}: there are {', '.join(there[:_LISTED])}{more}"


def _run(run: RunFacts, name: str) -> Run:
    totals = run.totals
    return Run(
        name=name,
        job=run.name,
        team=run.team,
        uid=run.uid,
        phase=run.phase,
        currency=run.currency,
        unit=run.unit,
        spent=None if totals is None else totals.cost,
        wasted=None if totals is None else totals.wasted,
        limit=run.limit,
        mlflow_url=run.mlflow.url if run.mlflow else None,
    )


def _equal(curves: Sequence[Curve], names: Sequence[str], metric: str, axis: Axis) -> Equal | None:
    """At the largest x that every run with a curve has reached; None where fewer than two have a curve."""
    ends = [curve.xs(axis)[-1] for curve in curves if curve.points]
    if len(ends) < LEAST:
        return None
    x = min(ends)
    found = [value_at(curve, axis, x) if curve.points else None for curve in curves]
    values = [None if one is None else one.value for one in found]
    noises = [None if one is None else one.noise for one in found]
    shares = [
        x / curve.xs(axis)[-1] if one is not None and x else None for curve, one in zip(curves, found, strict=True)
    ]
    return Equal(
        axis=axis,
        x=x,
        values=[
            Value(
                run=name,
                value=one.value if one else None,
                how=one.how if one else None,
                noise=one.noise if one else None,
                share=share,
            )
            for name, one, share in zip(names, found, shares, strict=True)
        ],
        best=[name for name, best in zip(names, best_of(values, better_of(metric), noises), strict=True) if best],
    )


def _level(curves: Sequence[Curve], names: Sequence[str], metric: str, priced: bool) -> Level | None:
    better = better_of(metric)
    named = [(curve, name) for curve, name in zip(curves, names, strict=True) if curve.points]
    if better is None or len(named) < LEAST:
        return None
    bests = [curve.means[at] for curve, _ in named if (at := best_at(curve, better)) is not None]
    value = max(bests) if better == "lower" else min(bests)
    places = [(name, spot) for curve, name in named if (spot := first_reach(curve, value, better)) is not None]
    marks = {
        axis: best_of([getattr(spot, axis.value) for _, spot in places], "lower")
        for axis in Axis
        if priced or axis is not Axis.dollars
    }
    return Level(
        value=value,
        runs=[Reached(run=name, **asdict(spot) | {"dollars": as_money(spot.dollars)}) for name, spot in places],
        best={axis: [n for (n, _), best in zip(places, of, strict=True) if best] for axis, of in marks.items()},
    )


def _pareto(runs: Sequence[RunFacts], curves: Sequence[Curve], names: Sequence[str], metric: str) -> Pareto | None:
    """All that a run has cost, and the best that it has reached."""
    better = better_of(metric)
    if better is None:
        return None
    found = [
        (name, run.totals.cost, curve.means[at])
        for run, curve, name in zip(runs, curves, names, strict=True)
        if run.totals is not None and (at := best_at(curve, better)) is not None
    ]
    if len(found) < LEAST:
        return None
    costs, values = [float(cost) for _, cost, _ in found], [value for _, _, value in found]
    beaten = dominated_by(costs, values, better)
    order = frontier(costs, values, better)
    return Pareto(
        spots=[
            Spot(run=name, dollars=cost, value=value, dominated_by=[found[i][0] for i in by])
            for (name, cost, value), by in zip(found, beaten, strict=True)
        ],
        frontier=[found[i][0] for i in order],
        steps=[s for one, two in pairwise(order) if (s := _step(found[one], found[two], metric))],
    )


def _step(one: tuple[str, Decimal, float], two: tuple[str, Decimal, float], metric: str) -> Step | None:
    more, gained = two[1] - one[1], abs(one[2] - two[2])
    if not more or not gained:  # equal in both
        return None
    per = as_money(float(more) * 0.01 / gained) if is_priced(metric) else None
    return Step(cheaper=one[0], better=two[0], dollars=more, improvement=gained, per_hundredth=per)


def _series(curve: Curve, name: str, metric: str) -> Series:
    kept = thinned(curve.values, POINTS, better_of(metric))
    points = [curve.points[i] for i in kept]
    hours, dollars = curve.xs(Axis.hours), curve.xs(Axis.dollars)
    return Series(
        run=name,
        measured=len(curve.points),
        step=[point.step for point in points],
        tokens=[point.tokens for point in points],
        flops=[point.flops for point in points],
        hours=[hours[i] for i in kept],
        dollars=[as_money(dollars[i]) for i in kept],
        value=[curve.values[i] for i in kept],
        mean=[curve.means[i] for i in kept] if curve.window > 1 else None,
    )


def _configuration(runs: Sequence[RunFacts]) -> tuple[list[Difference], int]:
    """Settings that are not the same in all runs that have any, and the number of those that are."""
    known = [run.configuration for run in runs if run.configuration]
    keys = dict.fromkeys(key for one in known for key in one)
    found, same = [], 0
    for key in keys:
        if len({one.get(key) for one in known}) == 1:
            same += 1
        else:
            found.append(Difference(key=key, values=[run.configuration.get(key) for run in runs]))
    return found, same


def _mlflow(runs: Sequence[RunFacts]) -> str | None:
    """None unless all runs are in one MLflow; a local database is shown by `fathom mlflow`."""
    places = [run.mlflow for run in runs if run.mlflow is not None]
    targets = Counter(place.target for place in places)
    if len(places) < len(runs) or len(targets) > 1:
        return None
    [target] = targets
    base = target if target.startswith(("http://", "https://")) else _LOCAL_MLFLOW
    experiments = list(dict.fromkeys(place.experiment_id for place in places))
    return compare_url(base, experiments, [place.run_id for place in places])
