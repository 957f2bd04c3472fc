"""In which order files are tested: those that wait for others most of the time first."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Protocol

WAITING = ("ray", "kube", "processes")
"""Markers, and whose files come first; all others come after them."""


class Item(Protocol):
    """What pytest has collected, as far as it matters here."""

    nodeid: str

    def get_closest_marker(self, name: str) -> object | None:
        """None if it has no such marker."""


_SLOW = re.compile(r"mark\.(processes|ray)\b")
"""By which `make test` finds the files of its second half; see the Makefile."""


def require_findable(item: Item, path: Path) -> None:
    """ValueError if `make test` would leave the test out: it has a marker that its file does not name."""
    if any(item.get_closest_marker(name) for name in ("processes", "ray")) and not _named(path):
        raise ValueError(f"{item.nodeid}: name its marker in the file itself, where `make test` looks for it")


@functools.cache
def _named(path: Path) -> bool:
    return _SLOW.search(path.read_text()) is not None


def waiting_first(items: list[Item]) -> None:
    """Order whole files in place, and nothing within them.

    pytest's processes take file by file. The longest ones wait for leases, processes and servers, and have few tests:
    one that came last would keep one process busy for minutes, and the others idle.
    """
    turns: dict[str, int] = {}
    for item in items:
        file = _file(item)
        turns[file] = min(turns.get(file, len(WAITING)), _turn(item))
    items.sort(key=lambda item: turns[_file(item)])


def _file(item: Item) -> str:
    return item.nodeid.partition("::")[0]


def _turn(item: Item) -> int:
    return next((turn for turn, name in enumerate(WAITING) if item.get_closest_marker(name)), len(WAITING))
