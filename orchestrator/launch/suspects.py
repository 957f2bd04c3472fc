"""Which machines of a cluster the next attempt does better without: those on which earlier ones have lost workers.

A plain retry on the same machines was seen to be in vain two times in three, and few machines to be behind most
failures (arXiv 2605.09370: 3 of 63 nodes were more than half of all exclusions). An attempt goes elsewhere if it can,
and back if it cannot: a process that dies says little of its machine, and no job may wait for one that is not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

MOST_BLAMED = 2
"""Nodes that go at once by their own fault; where more do, it is the network, the job, or a person."""
MOST = 32
"""Nodes that one attempt keeps away from: those with most losses."""


def suspects(losses: Iterable[str]) -> tuple[str, ...]:
    """Of the nodes of all losses so far, one entry for each: their names, in order. Pure."""
    return tuple(sorted(node for node, _ in Counter(losses).most_common(MOST)))


def blamed(nodes: Sequence[str]) -> list[str]:
    """Of the nodes whose workers went at once, those that may be to blame. Pure."""
    return list(nodes) if len(nodes) <= MOST_BLAMED else []


def note_place(path: Path, rank: int, node: str) -> None:
    """OSError where it cannot be written."""
    with path.open("a") as file:
        file.write(f"{rank} {node}\n")


def nodes_of(path: Path, ranks: Sequence[int]) -> list[str]:
    """On which these ranks were last, as far as they have said."""
    known = dict(_places(path)) if ranks else {}
    return sorted({known[rank] for rank in ranks if rank in known})


def _places(path: Path) -> Iterator[tuple[int, str]]:
    with suppress(OSError):
        for line in path.read_text().splitlines():
            rank, _, node = line.partition(" ")
            if rank.isdecimal() and node:
                yield int(rank), node
