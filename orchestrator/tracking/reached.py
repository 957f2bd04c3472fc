"""What MLflow has reached of what it shall show: `tracking.json` in the run's folder.

Invariant: nothing here is needed. Without the file, runs are found by their tags, and what is sent again is equal to
what is there. The file only saves the trouble, and tells whether anything is missing without asking the server.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, ValidationError

_CREDENTIALS = re.compile(r"(?<=://)(?:(?<!http://)(?<!https://)\S*|[^/\s]*)@")
"""Up to the last @ before the path: a password may hold one. That of a database may hold a slash too."""


class Reached(BaseModel):
    """The state of one job's mirror in one MLflow."""

    version: Literal[2] = 2
    target: str = ""
    """The MLflow that this is about, without credentials."""
    experiment_id: str | None = None
    parent: str | None = None
    children: dict[int, str] = Field(default_factory=dict)
    described: set[str] = Field(default_factory=set)
    """Runs whose parameters and datasets are written."""
    tags: dict[str, dict[str, str]] = Field(default_factory=dict)
    """By run."""
    status: dict[str, str] = Field(default_factory=dict)
    """By run; with the time at which it ended."""
    seen: dict[str, int] = Field(default_factory=dict)
    """Highest `seq` whose points are sent, by attempt and incarnation."""
    final: int = 0
    """The last attempt whose totals are sent."""
    artifacts: dict[str, str] = Field(default_factory=dict)
    """Digest of each file that is there."""
    settled: str | None = None
    """What the folder was when nothing was missing any more and nobody was adding to it."""

    @classmethod
    def load(cls, path: Path, target: str) -> Self:
        """As it was written; empty where there is none, it is damaged, or it is about another MLflow."""
        found = cls.peek(path)
        return found if found is not None and found.target == target else cls(target=target)

    @classmethod
    def peek(cls, path: Path) -> Self | None:
        """The file as it is; None where there is none of this version."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def save(self, path: Path) -> None:
        """Replace the file whole."""
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        os.replace(fresh, path)


def without_credentials(text: str) -> str:
    """A URI, or a text with URIs in it, that may be shown and stored."""
    return _CREDENTIALS.sub("", text)
