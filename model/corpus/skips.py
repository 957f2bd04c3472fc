"""What is left out of a dataset, and why: counted, with a few examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from model.dataset import Skip, Skipped

Kind = Literal[
    "archive", "binary", "undecodable", "empty", "too_large", "duplicate", "symlink", "unreadable", "damaged", "no_text"
]
EXAMPLES = 5


@dataclass
class Skips:
    """Counts by kind; of each kind the first examples."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: Kind, label: str, count: int = 1) -> None:
        """Leave out `count` records; `label` names the first."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        shown = self.examples.setdefault(kind, [])
        if len(shown) < EXAMPLES:
            shown.append(label[:500])

    def update(self, other: Skips) -> None:
        """Add those of another part."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            shown = self.examples.setdefault(kind, [])
            shown.extend(other.examples.get(kind, [])[: EXAMPLES - len(shown)])

    def skipped(self) -> Skipped:
        """For the manifest."""
        return Skipped.model_validate(
            {
                kind: Skip(count=count, examples=tuple(self.examples.get(kind, [])))
                for kind, count in self.counts.items()
            }
        )

    def __str__(self) -> str:
        known = [kind for kind in get_args(Kind) if self.counts.get(kind)]
        return ", ".join(f"{self.counts[kind]:,} {kind.replace('_', ' ')}" for kind in known) or "none"


def total(parts: Iterable[Mapping[int, Skips]]) -> dict[int, Skips]:
    """By source, of all parts in order."""
    found: dict[int, Skips] = {}
    for part in parts:
        for source, skips in part.items():
            found.setdefault(source, Skips()).update(skips)
    return found
