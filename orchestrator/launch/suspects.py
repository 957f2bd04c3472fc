"""Which machines of a cluster the next attempt does better without: those on which earlier ones have lost workers.

One loss may be anything, so that the next attempt only goes elsewhere if it can; on a node with two it does not go at
all. A plain retry on the same machines was seen to be in vain two times in three, and few machines to be behind most
failures (arXiv 2605.09370: 3 of 63 nodes were more than half of all exclusions).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MOST_BLAMED = 2
"""Nodes that go at once by their own fault; where more do, it is the network, the job, or a person."""
TIMES = 2
"""Losses on one node after which a job does not go there any more."""
MOST = 32
"""Nodes that one attempt keeps away from: those with most losses."""


@dataclass(frozen=True)
class Suspects:
    """Names of nodes, in their order."""

    avoid: tuple[str, ...] = ()
    """The attempt must not run there."""
    shun: tuple[str, ...] = ()
    """It runs elsewhere if it can."""


def suspects(losses: Iterable[str], *, unplaced: bool) -> Suspects:
    """Of the nodes of all losses so far, one entry for each. `unplaced`: the attempt before had no node at all, so
    that no node may be excluded now: there may be no others. Pure."""
    found = Counter(losses).most_common(MOST)
    worst = {node for node, times in found if times >= TIMES and not unplaced}
    return Suspects(tuple(sorted(worst)), tuple(sorted(node for node, _ in found if node not in worst)))


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
