"""Runs as people name them: by their folder, or by the name of their job."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from orchestrator.controller.record import Record
from orchestrator.errors import FathomError, NotFound
from orchestrator.launch.base import RECORDS

_SHOWN = 5


def find_run(given: str, home: Path) -> Record:
    """The run in this folder, or the newest of the job NAME or TEAM/NAME in the home; NotFound if there is neither."""
    folder = Path(given)
    team, _, name = given.rpartition("/")
    if folder.is_dir() or "/" in team:
        return Record.open(folder)
    found = [one for one in _named(name, home) if team in ("", one.job.metadata.namespace)]
    if not found:
        known = ", ".join(_known(home))
        raise NotFound(
            f"there is no run of a job {given!r} in {home}, nor a folder of that name"
            + (f"; the newest there are {known}" if known else ": set FATHOM_HOME if runs are elsewhere")
        )
    return found[-1]


def _named(name: str, home: Path) -> Sequence[Record]:
    """Oldest first; those that cannot be read are left out, since nobody knows whose they are."""
    found = []
    for path in sorted(home.glob(f"{glob.escape(name)}*/job.json")):
        try:
            record = Record.open(path.parent)
        except FathomError:
            continue
        if name in (record.job.metadata.name, path.parent.name):
            found.append(record)
    return sorted(found, key=lambda one: _stamp(one.folder.root.name))


def _known(home: Path) -> list[str]:
    names = sorted((path.parent.name for path in home.glob(RECORDS)), key=_stamp, reverse=True)
    return names[:_SHOWN]


def _stamp(folder: str) -> str:
    """When it was made, which is how its name ends."""
    return "-".join(folder.split("-")[-2:])
