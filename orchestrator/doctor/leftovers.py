"""What earlier processes have left behind: trainings that nobody follows, runs that died, notes that nobody took."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

from orchestrator.controller import outbox
from orchestrator.controller.record import Record
from orchestrator.controller.sync import is_followed
from orchestrator.doctor.findings import Finding, Place, State
from orchestrator.errors import Conflict, FathomError
from orchestrator.launch import local
from orchestrator.launch.base import RECORDS, RunFolder
from orchestrator.status import Phase

_SHOWN = 20
_ALIVE = (Phase.STARTING, Phase.RUNNING)


def runs(place: Place) -> Iterator[Finding]:
    """Of all runs in the home, those that need somebody."""
    folders = [path.parent for path in sorted(place.settings.home.glob(RECORDS))]
    served = _is_held(place.settings.home / "service.lock")
    found = [finding for folder in folders if (finding := _run(RunFolder(folder), served)) is not None]
    yield from found[:_SHOWN]
    if len(found) > _SHOWN:
        yield Finding("runs", State.WARN, f"and {len(found) - _SHOWN} more", "begin with those above")
    if not found:
        yield Finding("runs", State.OK, f"{len(folders)} in {place.settings.home}, none was left behind")


def _is_held(lock: Path) -> bool:
    """By the service, which follows all runs of its home."""
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def _run(folder: RunFolder, served: bool) -> Finding | None:
    followed = served or is_followed(folder)
    go_on = f"follow it again with `fathom train --resume {folder.root}`, or start `fathom serve`"
    try:
        driver = local.running(folder)
    except Conflict as error:
        return Finding("runs", State.WARN, str(error), "remove the lock only if no other machine uses this home")
    if driver is not None:
        if followed:
            return None
        says = f"{folder.root} trains (process {driver.process.pid}), but nobody follows it or writes its status"
        return Finding("runs", State.WARN, says, go_on)
    try:
        status = Record.open(folder.root).status()
    except FathomError as error:
        return Finding("runs", State.WARN, str(error), "put the file back from a backup, or move the folder away")
    if not followed and status is not None and status.phase in _ALIVE:
        says = f"{folder.root} is {status.phase} by its status, but no process of it lives"
        return Finding(
            "runs", State.WARN, says, f"go on from its last checkpoint with `fathom train --resume {folder.root}`"
        )
    return None


def notes(place: Place) -> Iterator[Finding]:
    """Of webhooks, those that have not arrived."""
    entries = [one for path in outbox.folder(place.settings.home).glob("*.json") for one in outbox.read(path)]
    late = [one for one in entries if one.done != "delivered" and one.tries]
    if late:
        says = f"{len(late)} notes have not arrived, the newest because {max(late, key=lambda one: one.at).error}"
        yield Finding("notes", State.WARN, says, "see docs/webhooks.md, and FATHOM_WEBHOOK_HOSTS")
