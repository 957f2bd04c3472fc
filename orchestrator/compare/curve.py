"""One metric of one run along its steps. Pure.

Invariant: every point is one that was measured; where a value between two of them is asked for, the answer says that
it is interpolated, and nothing is ever said beyond the first and the last.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal

from orchestrator.compare.facts import Axis, Point, RunFacts
from orchestrator.compare.measures import Better

How = Literal["measured", "interpolated", "mean"]
"""At a point; straight between two; mean of the last steps."""


@dataclass(frozen=True)
class Found:
    """A value, and how it was come by."""

    value: float
    how: How
    noise: float = 0.0
    """Standard error, of a mean of steps."""


@dataclass(frozen=True)
class Place:
    """Where on every axis something was reached."""

    step: int
    tokens: int
    flops: float
    hours: float
    dollars: float
    how: How


@dataclass(frozen=True)
class Curve:
    """The steps that have the metric."""

    points: tuple[Point, ...]
    values: tuple[float, ...]
    means: tuple[float, ...]
    """Of the last `window` values each; the values themselves for a window of 1."""
    window: int

    def xs(self, axis: Axis) -> list[float]:
        """Never falling: a clock that was set back does not give money back."""
        return list(accumulate((point.at(axis) for point in self.points), max))


def curve_of(run: RunFacts, metric: str) -> Curve:
    """Values as they were measured; empty if the run has never measured it."""
    points = tuple(point for point in run.points if metric in point.metrics)
    values = tuple(point.metrics[metric] for point in points)
    return Curve(points, values, values, 1)


def windowed(curve: Curve, window: int) -> Curve:
    """The same points, with means of the last `window` values each; fewer at the beginning."""
    return replace(curve, means=_means(curve.values, window), window=window)


def value_at(curve: Curve, axis: Axis, x: float) -> Found | None:
    """The metric when so much was used up; None before its first value and after its last."""
    xs = curve.xs(axis)
    at = bisect_right(xs, x) - 1
    if at < 0 or x > xs[-1]:
        return None
    if curve.window > 1:
        return Found(curve.means[at], "mean", noise(curve, at))
    if xs[at] == x:
        return Found(curve.values[at], "measured")
    share = (x - xs[at]) / (xs[at + 1] - xs[at])
    return Found(_between(curve.values[at], curve.values[at + 1], share), "interpolated")


def first_reach(curve: Curve, level: float, better: Better) -> Place | None:
    """Where the metric first was as good as `level`; None if it never was."""
    sign = 1 if better == "lower" else -1
    at = next((i for i, value in enumerate(curve.means) if sign * (value - level) <= 0), None)
    if at is None:
        return None
    if at == 0 or curve.window > 1 or curve.values[at] == level:
        return place(curve, at, "mean" if curve.window > 1 else "measured")
    before, after = curve.values[at - 1], curve.values[at]
    share = (level - before) / (after - before)
    one, two = place(curve, at - 1, "measured"), place(curve, at, "measured")
    return Place(
        step=round(_between(one.step, two.step, share)),
        tokens=round(_between(one.tokens, two.tokens, share)),
        flops=_between(one.flops, two.flops, share),
        hours=_between(one.hours, two.hours, share),
        dollars=_between(one.dollars, two.dollars, share),
        how="interpolated",
    )


def place(curve: Curve, at: int, how: How) -> Place:
    """Of one point."""
    point = curve.points[at]
    return Place(point.step, point.tokens, point.flops, point.hours, point.dollars, how)


def noise(curve: Curve, at: int) -> float:
    """Standard error of the mean there, by how far neighbours differ, so that the fall of a loss is no noise; 0 for
    what stands for itself."""
    values = curve.values[max(0, at + 1 - curve.window) : at + 1]
    if curve.window == 1 or len(values) < 2:
        return 0.0
    variance = sum((b - a) ** 2 for a, b in pairwise(values)) / (2 * (len(values) - 1))
    return math.sqrt(variance / len(values))


def best_at(curve: Curve, better: Better | None) -> int | None:
    """The point with the best value, the first of equals; None without points or direction. Of means over steps the
    last: their best is that of lucky batches."""
    if not curve.points or better is None:
        return None
    if curve.window > 1:
        return len(curve.points) - 1
    pick = min if better == "lower" else max
    return curve.means.index(pick(curve.means))


def thinned(values: Sequence[float], limit: int, better: Better | None) -> list[int]:
    """Positions of at most `limit` of the values: all if there are so few, else the first, and of each of equal
    stretches the best (lowest where nothing is better) and the last. So the last and the best of all stay."""
    if limit < 3:
        raise ValueError(f"at least 3 points are needed to show a curve, got {limit}")
    count = len(values)
    if count <= limit:
        return list(range(count))
    pick = max if better == "higher" else min
    stretches = (limit - 1) // 2
    kept = {0}
    for number in range(stretches):
        stretch = range(number * count // stretches, (number + 1) * count // stretches)
        kept |= {pick(stretch, key=values.__getitem__), stretch[-1]}
    return sorted(kept)


def _between(one: float, two: float, share: float) -> float:
    """Exact at both ends, and never outside of them."""
    return min(max(one + (two - one) * share, min(one, two)), max(one, two))


def _means(values: Sequence[float], window: int) -> tuple[float, ...]:
    if window == 1:
        return tuple(values)
    sums = [0.0, *accumulate(values)]
    return tuple((sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(sums)))
