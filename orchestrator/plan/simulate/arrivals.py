"""When failures and stragglers strike: one stream of random numbers for each cause.

Called by `simulate.run`. Invariant: the times of one cause depend on the seed, its name and its rate only, so that
adding a cause or changing how the job recovers moves no other failure.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from orchestrator.errors import UsageError
from orchestrator.plan.failures import LEMONS, NEVER, Cause, Failures, node_count

MICRO = 1_000_000
"""Microseconds in a second: times are whole microseconds, so that they add up exactly."""
MOST_LEMONS = 10_000
"""Each has random numbers of its own."""


class Arrival(NamedTuple):
    """One failure, whether or not the job runs at that moment."""

    at: int
    order: int
    """Settles which of two at the same microsecond comes first."""
    cause: Cause
    lemon: int | None
    """Which of the nodes that fail again and again."""


def arrivals(failures: Failures, gpus: int, gpus_per_node: int, seed: int) -> Iterator[Arrival]:
    """All failures of a job of that size in the order of their times, without end."""
    nodes = node_count(gpus, gpus_per_node)
    sources: list[tuple[Cause, float, int | None]] = [
        (cause, cause.per_hour(gpus, nodes), None) for cause in failures.causes
    ]
    if failures.lemons is not None:
        lemon, rate, count = Cause(LEMONS, cure="process"), failures.lemons.per_hour, failures.lemons.count(nodes)
        if count > MOST_LEMONS:
            raise UsageError(
                f"{count:,} of {nodes:,} nodes fail again and again, at most {MOST_LEMONS:,} can be simulated: "
                "make their share smaller, or give the rate to all nodes as a cause"
            )
        sources += [(lemon, rate, number) for number in range(count)]
    streams = [
        _stream(cause, rate, number, order, Random(f"{seed}/{cause.name}/{number}"))
        for order, (cause, rate, number) in enumerate(sources)
        if rate > NEVER
    ]
    return heapq.merge(*streams)


def stragglers(failures: Failures, nodes: int, seed: int) -> Iterator[int]:
    """The moments at which a device becomes slow, without end if there are any."""
    slow = failures.stragglers
    if slow is None or slow.per_node_hour <= NEVER or slow.slowdown == 1:
        return
    yield from _exponential(slow.per_node_hour * nodes, Random(f"{seed}/stragglers"))


def _stream(cause: Cause, per_hour: float, lemon: int | None, order: int, random: Random) -> Iterator[Arrival]:
    times = _exponential(per_hour, random) if cause.every_seconds is None else _even(*cause.every_seconds, random)
    for at in times:
        yield Arrival(at, order, cause, lemon)


def _exponential(per_hour: float, random: Random) -> Iterator[int]:
    mean, at = 3600 * MICRO / per_hour, 0.0
    while True:
        at += random.expovariate(1.0) * mean
        yield int(at)


def _even(least: float, most: float, random: Random) -> Iterator[int]:
    at = 0.0
    while True:
        at += random.uniform(least, most) * MICRO
        yield int(at)
