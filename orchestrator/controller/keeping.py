"""Writes down how jobs stand: the record in a run's folder, the status in the store; and tells MLflow and webhooks.

Invariant: figures are written now and then, everything else at once; a record that takes long is written less often.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.controller.follower import Follower
from orchestrator.controller.mirror_process import MirrorProcess
from orchestrator.controller.report import budget_condition, job_status, plan_of
from orchestrator.controller.standing import differ, status_of
from orchestrator.controller.webhooks import Notifier
from orchestrator.errors import FathomError
from orchestrator.launch.base import RunFolder
from orchestrator.launch.devices import in_words
from orchestrator.launch.files import replace_file
from orchestrator.settings import Settings
from orchestrator.status import ConditionType, JobStatus, MlflowRun, Reason
from orchestrator.store.base import JobStore, StoredJob
from orchestrator.tracking.mlflow import Reference, reference, target
from orchestrator.tracking.reached import Reached

SAVE_SECONDS = 2.0
TRACK_SECONDS = 5.0
SAVE_PAUSES = 20.0
"""Times as long as saving took, before it is saved again."""
_LINK_SECONDS = 600.0
"""So long a run that is over may take to appear in MLflow, for its status to say where."""


@dataclass
class _Kept:
    """What was written last of one job."""

    status: JobStatus | None = None
    save_at: float = 0.0
    told_at: float = float("-inf")
    events: int = 0
    """So many of the run are known to the webhooks."""
    failed: bool = False


class Keeper:
    """Of all jobs of a controller."""

    def __init__(self, store: JobStore, mirror: MirrorProcess, notifier: Notifier, settings: Settings) -> None:
        self._store, self._mirror, self._notifier, self._settings = store, mirror, notifier, settings
        self._kept: dict[str, _Kept] = {}
        self._unlinked: dict[str, tuple[float, RunFolder]] = {}
        """Runs that are over and not in MLflow yet."""
        self._look_at = 0.0

    def keep(self, job: StoredJob, follower: Follower, *, now: bool = False) -> None:
        """Write down what is due, or all of it `now`."""
        kept, began = self._kept.setdefault(job.uid, _Kept()), time.monotonic()
        if not now and kept.status is not None and began < kept.save_at and not self._news(job, follower, kept.status):
            return
        status = self.status(job, follower)
        try:
            self._save(follower, status)
            kept.failed = False
        except OSError as error:  # a disk that is full for a while must not end the watch over a run
            if not kept.failed:
                follower.say(f"the run's record could not be written, it is tried again: {error}")
            kept.failed = True
        if self._store.set_status(job.uid, status):
            events = follower.history.events
            self._notifier.tell(job.uid, job.wish.job, kept.status, status, events[kept.events :])
            kept.events, kept.status = len(events), status
        ended = time.monotonic()
        if ended >= kept.told_at + TRACK_SECONDS:
            kept.told_at = ended
            self._mirror.tell(follower.folder.root.name)
        kept.save_at = ended + max(SAVE_SECONDS, SAVE_PAUSES * (ended - began))

    def status(self, job: StoredJob, follower: Follower) -> JobStatus:
        """As it is now."""
        kept = self._kept.get(job.uid)
        before = kept.status if kept is not None and kept.status is not None else job.status
        return status_of(
            follower.standing,
            _by_its_events(follower, self._settings),
            before,
            datetime.now(UTC),
            alive=follower.alive,
            ordered=follower.ordered,
            generation=job.generation,
            machines=in_words(follower.gpus),
        )

    def _news(self, job: StoredJob, follower: Follower, known: JobStatus) -> bool:
        """Whether more than figures has changed; without the ledger, which takes long to make."""
        phase, seen = follower.standing.phase, follower.observation
        condition = known.condition(ConditionType.RUNNING)
        stopping = condition is not None and condition.reason is Reason.STOPPING
        if job.generation != known.observed_generation or (follower.ordered is not None) != stopping:
            return True
        if follower.alive:
            running = known.phase.value == "Running"
            return seen.running != running or known.attempt_count != follower.last
        return differ(known, known.model_copy(update={"phase": phase}))

    def _save(self, follower: Follower, status: JobStatus) -> None:
        record, ledger = follower.record, follower.ledger()
        if follower.history.held:
            record.save_held(follower.history.held)
        if ledger is not None:
            replace_file(follower.folder.ledger, ledger.to_json())
        record.save_status(status)

    # ------------------------------------------------------------------ MLflow
    def left(self, uid: str, follower: Follower) -> None:
        """A run that is followed no longer."""
        self._kept.pop(uid, None)
        if follower.last:
            self._mirror.tell(follower.folder.root.name)
            self._unlinked[uid] = (time.monotonic() + _LINK_SECONDS, follower.folder)

    def gone(self, uid: str, folder: RunFolder) -> None:
        """A job that is deleted: nobody needs to remember it, nor MLflow's process its events."""
        self._kept.pop(uid, None)
        self._unlinked.pop(uid, None)
        self._mirror.tell(folder.root.name)

    def turn(self) -> None:
        """Say where runs that are over are to be found, once MLflow has them."""
        now = time.monotonic()
        if not self._unlinked or now < self._look_at:
            return
        self._look_at = now + TRACK_SECONDS
        for uid, (until, folder) in list(self._unlinked.items()):
            found = linked(folder, self._settings)
            if found is None and now < until:
                continue
            del self._unlinked[uid]
            stored = self._store.by_uid(uid)
            if found is not None and stored is not None and stored.status.mlflow is None:
                self._store.set_status(uid, stored.status.model_copy(update={"mlflow": _shown(found)}))


def linked(folder: RunFolder, settings: Settings) -> Reference | None:
    """Where the run is in MLflow, once it is there."""
    try:
        return reference(Reached.load(folder.tracking, target(settings.tracking_uri)))
    except (FathomError, OSError):
        return None


def _shown(run: Reference) -> MlflowRun:
    return MlflowRun(experiment_id=run.experiment_id, run_id=run.run_id, url=run.url)


def _by_its_events(follower: Follower, settings: Settings) -> JobStatus:
    budget, resolved, history = follower.record.job.spec.budget, follower.resolved, follower.history
    limit = None if budget is None else budget.amount
    ledger = follower.ledger()
    if resolved is None or ledger is None:
        conditions = [budget_condition(follower.observation, history.charged(), limit, history.held)]
        return JobStatus(conditions=conditions, plan=None if resolved is None else plan_of(resolved, follower.plan))
    return job_status(
        resolved,
        follower.observation,
        history.events,
        ledger,
        history.held,
        linked(follower.folder, settings),
        limit,
        follower.plan,
    )
