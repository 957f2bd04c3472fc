"""In which order files are tested: those that wait for others most of the time first."""

from __future__ import annotations

from typing import Protocol

WAITING = ("ray", "kube", "processes")
"""Markers, and whose files come first; all others come after them."""


class Item(Protocol):
    """What pytest has collected, as far as it matters here."""

    nodeid: str

    def get_closest_marker(self, name: str) -> object | None:
        """None if it has no such marker."""


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
