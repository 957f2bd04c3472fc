"""What deleted runs have cost: a team gets no money back by deleting its jobs.

A file for each (`<home>/departed/UID.json`), written before the run's folder goes, and counted as soon as that is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

from pydantic import Field, ValidationError

from model.config import Frozen
from orchestrator.errors import UsageError
from orchestrator.launch.files import in_short, replace_file

_FOLDER = "departed"
_HELD = "held.json"
MARKS = ("job.json", _HELD)
"""A folder that has one of these is that of a run."""


class Departed(Frozen):
    """A run that is deleted, or about to be."""

    team: str
    name: str
    folder: str
    """Its name in the home."""
    spent: Decimal = Field(ge=0, allow_inf_nan=False)
    currency: str


def remember(home: Path, uid: str, run: Departed) -> None:
    """Before its folder is removed; again does no harm: what is known is not taken back. OSError if it cannot be
    written."""
    path = home / _FOLDER / f"{uid}.json"
    with suppress(OSError, ValidationError):
        if Departed.model_validate_json(path.read_bytes()).spent >= run.spent:
            return
    replace_file(path, run.model_dump_json(), durable=True)


def departed(home: Path, team: str) -> Iterator[tuple[str, Departed]]:
    """Of a team, by uid: names come again. UsageError for one that cannot be read, whose money would be spent twice."""
    for path in sorted((home / _FOLDER).glob("*.json")):
        try:
            run = Departed.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(
                f"{path} cannot be read: {in_short(error)}; it says what a deleted run has cost: put it back from a "
                "backup, or remove it to count that no longer"
            ) from None
        if run.team == team and not _has_spent(home / run.folder):
            yield path.stem, run


def _has_spent(folder: Path) -> bool:
    """Whether its own record says what it has cost. One that a controller has made anew, to finish a removal in which
    the one before was killed, says nothing."""
    return is_run(folder) and (folder / _HELD).exists()


def is_run(folder: Path) -> bool:
    """Whether it is counted itself: what is left of one that is being removed is not, nor what MLflow's process, which
    was sending just then, has written into its place."""
    return not folder.name.startswith(".") and any((folder / name).exists() for name in MARKS)
