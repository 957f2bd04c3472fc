"""What was chosen for the fields that a job leaves open, and the refusal of what cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from model.config import Frozen
from orchestrator.errors import InvalidJob, Problem

T = TypeVar("T", int, float, str)
CLAIM = "pvc://"
"""Before a volume claim and a path in it: a folder of a job's pods."""


class Choice(Frozen):
    """A field that the job left open, and what was chosen for it."""

    path: str
    value: str
    reason: str


@dataclass
class Choices:
    """Collects what is chosen."""

    made: list[Choice] = field(default_factory=list)

    def __call__(self, path: str, given: T | None, choose: Callable[[], tuple[T, str]]) -> T:
        """The given value, or the one that `choose` returns together with its reason."""
        if given is not None:
            return given
        value, reason = choose()
        self.made.append(Choice(path=path, value=str(value), reason=reason))
        return value


def refusal(path: str, message: str) -> InvalidJob:
    """The error for one field below `spec`."""
    return InvalidJob([Problem(f"spec.{path}", message)])


def absolute(uri: str) -> str:
    """Workers have another working directory: a path becomes absolute, a URL stays as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())
