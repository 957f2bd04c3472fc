"""What a job store is: documents of jobs, what is wished of each, and the status that the controller writes.

Used by the API (wishes), the controller (status) and the command line. Invariants: the wish and the status are written
by different parties and never overwrite each other; `generation` grows with changes of the wish, `version` with all;
every method is one transaction, so that a crash leaves all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from orchestrator.errors import Conflict
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus, Phase, Reason
from orchestrator.store.tally import TeamTally

MAX_LIMIT = 1000
"""Jobs of one page at most."""


def is_unlinked(status: JobStatus) -> bool:
    """Whether the job has run, and its status does not say where that is in MLflow, or says that MLflow is away."""
    away = any(one.reason is Reason.SERVER_UNREACHABLE for one in status.conditions)
    return status.attempt_count > 0 and (status.mlflow is None or away)


@dataclass(frozen=True)
class Wish:
    """What people want of a job; changed by them only."""

    job: TrainingJob
    """Without status. `spec.suspend` is part of it."""
    cancelled_at: datetime | None = None
    """Since when the job shall save and end for good; never taken back."""
    deleted_at: datetime | None = None
    """Since when it shall also be forgotten, once nothing of it runs; never taken back."""
    keep_files: bool = False
    """Whether the run's folder outlives the job that is forgotten."""
    force: bool = False
    """Of one that is cancelled or deleted: end it at once, without a last checkpoint; never taken back."""
    granted_after: int = 0
    """Attempts up to this number no longer count against `retry`: whoever resumes a job grants all of them anew."""
    resumed: int = 0
    """How often somebody resumed it: one that failed before its first attempt changes by this alone."""

    def require_lasting(self, after: Wish) -> None:
        """What may never be taken back is our own affair: no user of the API can ask for it."""
        assert after.job.metadata == self.job.metadata, "a job keeps its name"
        assert self.cancelled_at is None or after.cancelled_at is not None, "a cancellation is never taken back"
        assert self.deleted_at is None or after.deleted_at is not None, "a deletion is never taken back"
        assert after.force or not self.force, "who was in a hurry stays so"
        assert after.keep_files or not self.keep_files, "files that shall be kept are kept"
        assert after.granted_after >= self.granted_after, "what was granted stays granted"
        assert after.resumed >= self.resumed, "what was resumed was resumed"


@dataclass(frozen=True)
class StoredJob:
    """One job as it stands in the store."""

    uid: str
    wish: Wish
    status: JobStatus
    generation: int
    """Grows with each change of the wish, from 1."""
    version: int
    """Grows with each change of anything."""
    created_at: datetime
    created_by: str
    """Name of the token that submitted it."""
    folder: str
    """Name of the run's folder, chosen when the job was created; unique in the store."""

    @property
    def name(self) -> str:
        return self.wish.job.metadata.name

    @property
    def namespace(self) -> str:
        """The team."""
        return self.wish.job.metadata.namespace

    def require(self, *, generation: int | None, uid: str | None) -> None:
        """Conflict unless it is the job, and the wish, that somebody has read; None: he has read none."""
        what = f"{self.namespace}/{self.name}"
        if uid is not None and uid != self.uid:
            raise Conflict(f"{what} is another job than the one you read: that one was deleted")
        if generation is not None and generation != self.generation:
            raise Conflict(
                f"{what} was changed since you read it: it is at generation {self.generation}, you have {generation}; "
                "read it again"
            )


@dataclass(frozen=True)
class Query:
    """Which jobs, newest first."""

    namespace: str | None = None
    """None: of all teams."""
    phases: frozenset[Phase] = frozenset()
    """Empty: any."""
    name_contains: str = ""
    limit: int = 100
    after: str = ""
    """Cursor of the page before."""


@dataclass(frozen=True)
class Page:
    """Some of the jobs that were asked for."""

    jobs: Sequence[StoredJob] = field(default_factory=tuple)
    next: str = ""
    """Cursor of what follows; empty at the end."""


@dataclass(frozen=True)
class DocumentPage:
    """The same as documents (`store.document`), passed on as they lie in the store: nothing is validated again."""

    documents: Sequence[dict[str, Any]] = field(default_factory=tuple)
    next: str = ""


@dataclass(frozen=True)
class TextPage:
    """The same documents as JSON text."""

    texts: Sequence[str] = field(default_factory=tuple)
    next: str = ""


class JobStore(Protocol):
    """Jobs are named by (namespace, name), and by a uid that no other job ever has."""

    def create(self, job: TrainingJob, *, by: str) -> StoredJob:
        """A new job in phase Pending. Conflict if there is one of that name in the namespace."""
        ...

    def get(self, namespace: str, name: str) -> StoredJob:
        """NotFound where there is none."""
        ...

    def by_uid(self, uid: str) -> StoredJob | None:
        """None where there is none (any more)."""
        ...

    def list(self, query: Query) -> Page:
        """Newest first, in an order that does not change while pages are turned. UsageError for a wrong cursor."""
        ...

    def documents(self, query: Query) -> DocumentPage:
        """As `list`, for answers: far cheaper."""
        ...

    def texts(self, query: Query) -> TextPage:
        """As `documents`, for those who only pass them on: cheaper again."""
        ...

    def open_jobs(self) -> Sequence[StoredJob]:
        """Those with which the controller has something to do: not in a terminal phase, or to be deleted, or whose wish
        was changed since the status was written (`status.observed_generation` < `generation`); oldest first."""
        ...

    def unlinked(self) -> Sequence[StoredJob]:
        """Those of which it may be that MLflow lacks something (`is_unlinked`), open or not, oldest first. Reads the
        status of every job."""
        ...

    def tally(self, team: str | None = None) -> Sequence[TeamTally]:
        """Of all teams, or of one, by name; a team without jobs is left out."""
        ...

    def change(
        self,
        namespace: str,
        name: str,
        edit: Callable[[Wish], Wish],
        *,
        generation: int | None = None,
        uid: str | None = None,
    ) -> StoredJob:
        """With the wish that `edit` makes of the present one, in one transaction; unchanged if it returns an equal one.

        NotFound; Conflict if `generation` or `uid` is given and is not that of the job now; whatever `edit` raises.
        """
        ...

    def set_status(self, uid: str, status: JobStatus) -> bool:
        """By the controller only; False if the job is gone."""
        ...

    def remove(self, uid: str) -> None:
        """Forget it; nothing happens if it is gone."""
        ...
