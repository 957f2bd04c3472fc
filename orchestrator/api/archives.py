"""What routes that read a job's files need: its archive, and where the job stands."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.api.desk import Desk
from orchestrator.api.following import Standing
from orchestrator.launch.archive import Archive, FolderArchive
from orchestrator.launch.base import RunFolder
from orchestrator.store.base import StoredJob


def run_folder(desk: Desk, stored: StoredJob) -> RunFolder:
    """Where the run of a job lies, once it has begun."""
    return RunFolder(desk.settings.home / stored.folder)


def archive_of(desk: Desk, stored: StoredJob) -> Archive:
    """What the job has left to be read."""
    return FolderArchive(run_folder(desk, stored))


def standing(desk: Desk, stored: StoredJob) -> Callable[[], Standing]:
    """Asks where this job stands; another one of its name does not count. A wish that the controller has not seen yet,
    e.g. to resume, may still come true: the job is not over."""
    last = stored.status.phase

    def ask() -> Standing:
        nonlocal last
        found = desk.store.by_uid(stored.uid)
        if found is None:
            return Standing(last, over=True, gone=True)
        last = found.status.phase
        return Standing(last, over=last.terminal and found.status.observed_generation >= found.generation)

    return ask
