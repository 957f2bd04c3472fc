"""Jobs that a person runs by hand on this machine (`fathom train`), in the store of the home like all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.controller.record import Record
from orchestrator.errors import Conflict, NotFound
from orchestrator.launch.base import RunFolder
from orchestrator.launch.locks import is_locked
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus
from orchestrator.store.base import StoredJob, Wish
from orchestrator.store.sqlite import SqliteStore

BY = "fathom train"
_MOST_NAMES = 10_000


def serves(home: Path) -> bool:
    """Whether a service looks after this home."""
    return is_locked(home / "service.lock")


def submit(store: SqliteStore, job: TrainingJob, say: Callable[[str], None]) -> StoredJob:
    """A new job; under the next free name if its own is taken, which is told. Its experiment in MLflow stays."""
    return _named(job, say, lambda one: store.create(one, by=BY))


def find(store: SqliteStore, settings: Settings, run: str) -> Record:
    """A run by its folder, or by the name of its job. NotFound if there is neither."""
    root = Path(run)
    if (root / "job.json").exists() or root.exists():
        return Record.open(root)
    namespace, _, name = run.rpartition("/")
    try:
        return Record.open(settings.home / store.get(namespace or "default", name).folder)
    except NotFound:
        return Record.open(root)  # which says what is wrong with that


def take_up(store: SqliteStore, record: Record, settings: Settings, say: Callable[[str], None]) -> StoredJob:
    """A run that shall go on, with all its attempts granted anew. One of an older version gets a place in the store.

    Conflict if it was cancelled or is being deleted.
    """
    stored = store.by_uid(record.uid) or _adopted(store, record, settings, say)
    last = RunFolder(record.folder.root).last_attempt()

    def edit(wish: Wish) -> Wish:
        if wish.cancelled_at is not None or wish.deleted_at is not None:
            ending = "deleted" if wish.deleted_at is not None else "cancelled"
            raise Conflict(f"{stored.namespace}/{stored.name} was {ending}, and cannot go on: start a new job")
        spec = record.job.spec.model_copy(update={"suspend": False})
        job = wish.job.model_copy(update={"spec": spec})
        return replace(wish, job=job, granted_after=max(last, wish.granted_after), resumed=wish.resumed + 1)

    return store.change(stored.namespace, stored.name, edit)


def suspend(store: SqliteStore, stored: StoredJob) -> None:
    """Let it save, end, and wait for whoever resumes it."""

    def edit(wish: Wish) -> Wish:
        spec = wish.job.spec.model_copy(update={"suspend": True})
        return replace(wish, job=wish.job.model_copy(update={"spec": spec}))

    store.change(stored.namespace, stored.name, edit)


def _adopted(store: SqliteStore, record: Record, settings: Settings, say: Callable[[str], None]) -> StoredJob:
    root = record.folder.root
    folder = root.name if root.parent == settings.home else str(root)
    status = record.status() or JobStatus()
    return _named(record.job, say, lambda one: store.adopt(one, uid=record.uid, folder=folder, status=status, by=BY))


def _named(job: TrainingJob, say: Callable[[str], None], make: Callable[[TrainingJob], StoredJob]) -> StoredJob:
    name = job.metadata.name
    for number in range(1, _MOST_NAMES):
        try:
            made = make(job if number == 1 else _renamed(job, number))
        except Conflict:
            continue
        if number > 1:
            say(f"the name {name} is taken by an earlier job: this one is {made.name}")
        return made
    raise Conflict(f"{_MOST_NAMES} jobs are called {name}, {name}-2, ...: give this one another name")


def _renamed(job: TrainingJob, number: int) -> TrainingJob:
    """`name-2`; in the experiment that it would have had."""
    name, suffix = job.metadata.name, f"-{number}"
    metadata = job.metadata.model_copy(update={"name": name[: 40 - len(suffix)].rstrip("-") + suffix})
    experiment = job.spec.tracking.experiment or name
    tracking = job.spec.tracking.model_copy(update={"experiment": experiment})
    spec = job.spec.model_copy(update={"tracking": tracking})
    return job.model_copy(update={"metadata": metadata, "spec": spec})
