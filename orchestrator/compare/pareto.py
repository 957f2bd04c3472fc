"""Which runs nobody beats: no other costs less, or as much, and is better, or as good. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.compare.measures import Better


def dominated_by(costs: Sequence[float], values: Sequence[float], better: Better) -> list[list[int]]:
    """For each run those that beat it: as cheap and as good at least, and cheaper or better. Empty: it is in the set.

    Runs that are equal in both do not beat each other.
    """
    sign = 1 if better == "lower" else -1
    spots = [(cost, sign * value) for cost, value in zip(costs, values, strict=True)]
    return [
        [i for i, other in enumerate(spots) if other != spot and other[0] <= spot[0] and other[1] <= spot[1]]
        for spot in spots
    ]


def frontier(costs: Sequence[float], values: Sequence[float], better: Better) -> list[int]:
    """Runs that nobody beats, by what they cost."""
    beaten = dominated_by(costs, values, better)
    return sorted((i for i, by in enumerate(beaten) if not by), key=lambda i: costs[i])
