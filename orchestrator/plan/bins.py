"""A simulated run in equal pieces of time, so that a picture of hundreds of failures stays readable. Pure.

Called by `tracking.run_timeline`. Invariant: the classes of all bins add up to those of the run, up to rounding.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from orchestrator.plan.simulate import CLASSES, Run, TimeClass

MOST_BINS = 60
_HOUR = 3_600_000_000
_WIDTHS = (_HOUR // 60, _HOUR // 6, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, 24 * _HOUR, 48 * _HOUR, 168 * _HOUR)


@dataclass(frozen=True)
class Bins:
    """Equal widths but for the last, which ends with the run; all in microseconds."""

    width: int
    count: int
    times: dict[TimeClass, list[float]]
    failures: dict[str, list[int]]
    """How many of each cause, the most frequent first."""


def bins(run: Run) -> Bins:
    """At most MOST_BINS pieces of a round width."""
    width = next((w for w in _WIDTHS if run.wall <= w * MOST_BINS), math.ceil(run.wall / MOST_BINS))
    count = math.ceil(run.wall / width)
    found = Bins(width, count, {name: [0.0] * count for name in CLASSES}, {})
    for stretch in run.stretches:
        length = stretch.end - stretch.start
        if length:
            _spread(found, "checkpoint", stretch.start, stretch.end, stretch.checkpoint)
            _spread(found, "slow", stretch.start, stretch.end, stretch.slow)
            _spread(found, "productive", stretch.start, stretch.end, length - stretch.checkpoint - stretch.slow)
    _recoveries(found, run)
    _rework(found, run)
    for cause, number in run.counts().most_common():
        hits = Counter(one.at // width for one in run.incidents if one.cause == cause)
        found.failures[cause] = [hits[place] for place in range(count)]
        assert sum(found.failures[cause]) == number
    return found


def _recoveries(found: Bins, run: Run) -> None:
    for incident in run.incidents:
        at = incident.at
        steps: tuple[tuple[TimeClass, int], ...] = (
            ("detecting", incident.detecting), ("waiting", incident.waiting), ("replacing", incident.replacing),
            ("restarting", incident.restarting),
        )  # fmt: skip
        for name, spent in steps:
            _spread(found, name, at, at + spent, spent)
            at += spent


def _rework(found: Bins, run: Run) -> None:
    """Work that was lost moves from productive to lost in the training before its failure, backwards."""
    stretches, last = run.stretches, -1
    work = [one.end - one.start - one.checkpoint - one.slow for one in stretches]
    left = [float(one) for one in work]
    for incident in run.incidents:
        while last + 1 < len(stretches) and stretches[last + 1].end <= incident.at:
            last += 1
        lost, place = float(incident.lost), last
        while lost > 0 and place >= 0:
            taken = min(lost, left[place])
            if taken > 0:
                per_work = (stretches[place].end - stretches[place].start) / work[place]
                end = stretches[place].start + per_work * left[place]
                _spread(found, "lost", end - per_work * taken, end, taken)
                _spread(found, "productive", end - per_work * taken, end, -taken)
                left[place] -= taken
                lost -= taken
            place -= 1


def _spread(found: Bins, name: TimeClass, start: float, end: float, amount: float) -> None:
    """An amount evenly over the time from start to end."""
    if not amount:
        return
    place, times = int(start // found.width), found.times[name]
    while place * found.width < end and place < found.count:
        inside = min(end, (place + 1) * found.width) - max(start, place * found.width)
        times[place] += amount * inside / (end - start)
        place += 1
