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
from orchestrator.controller.standing import RESTS, differ, farewell, is_news, status_of, tracked
from orchestrator.controller.sync import is_settled
from orchestrator.controller.webhooks import Notifier
from orchestrator.cost.ledger import Ledger, Row
from orchestrator.errors import FathomError
from orchestrator.launch.base import RunFolder
from orchestrator.launch.devices import in_words
from orchestrator.launch.files import replace_file
from orchestrator.launch.rayjob.names import attempt_name
from orchestrator.settings import Settings
from orchestrator.status import Attempt, ConditionType, JobStatus, MlflowRun, Phase, Reason
from orchestrator.store.base import JobStore, StoredJob
from orchestrator.tracking import trouble
from orchestrator.tracking.mlflow import Reference, reference, target
from orchestrator.tracking.reached import Reached

SAVE_SECONDS = 2.0
TRACK_SECONDS, QUIET_SECONDS = 5.0, 60.0
"""Between two words to MLflow's process on a run that goes on: while it says something, and else."""
SAVE_PAUSES = 20.0
"""Times as long as saving took, before it is saved again."""
SAVE_SHARE, LONGEST_PAUSE = 0.05, 10.0
"""Of the controller's time, for the figures of all jobs together; and the longest pause in seconds that this may lead
to: so much of the held time of a run is not written down yet."""
LONGEST_COUNT = 60.0
"""The same for its ledger, which takes the longer the more events it has; the money in a status may be as old."""
_LINK_SECONDS = 600.0
"""So long a run that is over may take to be whole in MLflow; one that MLflow refuses is watched for longer."""
_LOOKS = 100
"""Runs that are over at which one turn looks."""


@dataclass
class _Kept:
    """What was written last of one job."""

    status: JobStatus | None = None
    save_at: float = 0.0
    ledger: Ledger | None = None
    """As it was made last, in short: all rows of many jobs would take much memory."""
    count_at: float = 0.0
    told_at: float = float("-inf")
    told: tuple[int, int] = (0, 0)
    """What MLflow's process was told of last: so many attempts, so many events."""
    events: int = 0
    """So many of the run are known to the webhooks."""
    failed: bool = False


class Keeper:
    """Of all jobs of a controller."""

    def __init__(self, store: JobStore, mirror: MirrorProcess, notifier: Notifier, settings: Settings) -> None:
        self._store, self._mirror, self._notifier, self._settings = store, mirror, notifier, settings
        self._kept: dict[str, _Kept] = {}
        self._unlinked: dict[str, tuple[float, RunFolder]] = {}
        """Runs that are over and not whole in MLflow yet; the one that was looked at last is the last."""
        self._look_at = 0.0
        self._started = False

    def start(self) -> None:
        """Take over, once, those that have come to rest and whose status does not say where they are in MLflow: it was
        away, or an earlier controller died before it could say so. MLflow's process may have ends to send of others.
        Only after all that lives is followed: what nobody follows counts as over, with the money that is written down.
        """
        if self._started:
            return
        for stored in self._store.unlinked():
            folder = RunFolder(self._settings.home / stored.folder)
            if stored.status.phase in RESTS and folder.job.exists():
                self._unlinked[stored.uid] = (time.monotonic() + _LINK_SECONDS, folder)
                self._mirror.tell(folder.root.name)
        self._mirror.start()
        self._started = True

    def keep(self, job: StoredJob, follower: Follower, *, now: bool = False) -> None:
        """Write down what is due, or all of it `now`."""
        kept, began = self._kept.setdefault(job.uid, _Kept()), time.monotonic()
        news = now or kept.status is None or self._news(job, follower, kept.status)
        if not news and began < kept.save_at:
            return
        self._unlinked.pop(job.uid, None)  # it is followed again
        ledger = self._counted(kept, follower) if news or not follower.alive or began >= kept.count_at else None
        began = time.monotonic()
        status = self._status(job, follower, ledger or kept.ledger)
        try:
            self._save(follower, status, ledger)
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
        said = (follower.last, len(follower.history.events))
        if ended >= kept.told_at + (TRACK_SECONDS if said != kept.told else QUIET_SECONDS):
            kept.told_at, kept.told = ended, said
            self._mirror.tell(follower.folder.root.name)
        kept.save_at = ended + self._pause(ended - began, LONGEST_PAUSE)

    def _counted(self, kept: _Kept, follower: Follower) -> Ledger | None:
        """The ledger as it is now; None before the first attempt."""
        began = time.monotonic()
        ledger = follower.ledger()
        ended = time.monotonic()
        kept.ledger, kept.count_at = _in_short(ledger), ended + self._pause(ended - began, LONGEST_COUNT)
        return ledger

    def _pause(self, took: float, longest: float) -> float:
        """Until what took so long is done again."""
        return max(SAVE_SECONDS, SAVE_PAUSES * took, min(longest, took * len(self._kept) / SAVE_SHARE))

    def _status(self, job: StoredJob, follower: Follower, ledger: Ledger | None) -> JobStatus:
        """As it is now."""
        kept, sight = self._kept.get(job.uid), follower.sight
        before = kept.status if kept is not None and kept.status is not None else job.status
        return status_of(
            follower.standing,
            _by_its_events(follower, ledger, self._settings),
            before,
            datetime.now(UTC),
            alive=follower.holds,
            ordered=follower.ordered,
            generation=job.generation,
            machines=in_words(follower.gpus),
            untracked=untracked(follower.folder, self._settings),
            admitted=None if sight is None else sight.admitted,
            running=None if sight is None else sight.running,
        )

    def _news(self, job: StoredJob, follower: Follower, known: JobStatus) -> bool:
        """Whether more than figures has changed; without the ledger, which takes long to make."""
        phase, seen = follower.standing.phase, follower.observation
        condition = known.condition(ConditionType.RUNNING)
        stopping = condition is not None and condition.reason is Reason.STOPPING
        if job.generation != known.observed_generation or (follower.ordered is not None) != stopping:
            return True
        if follower.holds and follower.sight is not None:
            running, sight = known.phase is Phase.RUNNING, follower.sight
            if follower.history.has_ended(follower.last):  # and is on its way out, which may take a minute in a cluster
                return not known.attempts or known.attempts[-1].outcome is None
            news = seen.running != running or known.attempt_count != follower.last
            return news or is_news(known, sight.admitted, sight.running)
        return differ(known, known.model_copy(update={"phase": phase}))

    def _save(self, follower: Follower, status: JobStatus, ledger: Ledger | None) -> None:
        follower.history.keep_held()
        if ledger is not None:
            replace_file(follower.folder.ledger, ledger.to_json())
        follower.record.save_status(status)

    def farewell(self, job: StoredJob, follower: Follower | None) -> None:
        """The last word on a job that is deleted, before its files go: in the store, where a process finds it that
        comes after one that died here, and to webhooks. `follower` None: its record cannot be read."""
        kept, now, last, ledger = self._kept.get(job.uid, _Kept()), datetime.now(UTC), job.status, None
        if follower is not None and follower.last >= last.attempt_count:  # else its files are gone already
            ledger = follower.ledger()
            last = self._status(job, follower, ledger)
        last = farewell(last, now, job.generation)
        if follower is not None and job.wish.keep_files:
            self._save(follower, last, ledger)
        self._store.set_status(job.uid, last)
        events = () if follower is None else follower.history.events[kept.events :]
        self._notifier.tell(job.uid, job.wish.job, kept.status, last, events, deleted=True)

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
        for uid in list(self._unlinked)[:_LOOKS]:
            until, folder = self._unlinked[uid] = self._unlinked.pop(uid)  # kept, too, where the store does not answer
            if self._is_tracked(uid, folder, waits=now < until):
                del self._unlinked[uid]
            else:
                self._mirror.tell(folder.root.name)  # its process may be another one by now

    def _is_tracked(self, uid: str, folder: RunFolder, *, waits: bool) -> bool:
        """Whether there is no more to be said of it; what there is now is written down."""
        settled, why, stored = is_settled(folder, self._settings), untracked(folder, self._settings), None
        found = linked(folder, self._settings)
        if (found or why) and (stored := self._store.by_uid(uid)) is not None:
            run = None if found is None else _shown(found)
            status = tracked(stored.status, run, why, datetime.now(UTC))
            if differ(stored.status, status) or status.mlflow != stored.status.mlflow:
                self._store.set_status(uid, status)
        if not folder.job.exists() or ((found or why) and stored is None):
            return True  # it is gone
        return not why and (settled or not waits)


def untracked(folder: RunFolder, settings: Settings) -> str:
    """Why MLflow lacks something of the run, and what becomes of that; empty where nothing is in the way."""
    found = trouble.load(folder.tracking_trouble, target(settings.tracking_uri))
    if found is None:
        return ""
    since = datetime.fromtimestamp(found.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"{found.why} (since {since}); training goes on and nothing is lost: what is missing is sent as soon as MLflow "
        "answers, or by `fathom sync`"
    )


def linked(folder: RunFolder, settings: Settings) -> Reference | None:
    """Where the run is in MLflow, once it is there."""
    try:
        return reference(Reached.load(folder.tracking, target(settings.tracking_uri)))
    except (FathomError, OSError):
        return None


def _shown(run: Reference) -> MlflowRun:
    return MlflowRun(experiment_id=run.experiment_id, run_id=run.run_id, url=run.url)


def _in_short(ledger: Ledger | None) -> Ledger | None:
    """With one row for each attempt, for a status."""
    if ledger is None:
        return None
    rows: dict[int, Row] = {}
    for row in ledger.rows:
        known = rows.get(row.attempt)
        quantity, cost = row.consumed_quantity, row.billed_cost
        if known is not None:
            quantity, cost = known.consumed_quantity + quantity, known.billed_cost + cost
        rows[row.attempt] = (known or row).model_copy(update={"consumed_quantity": quantity, "billed_cost": cost})
    return ledger.model_copy(update={"rows": tuple(rows.values())})


def _by_its_events(follower: Follower, ledger: Ledger | None, settings: Settings) -> JobStatus:
    budget, resolved, history = follower.record.job.spec.budget, follower.resolved, follower.history
    limit = None if budget is None else budget.amount
    if resolved is None or ledger is None:
        conditions = [budget_condition(follower.observation, history.charged(), limit, history.held)]
        return JobStatus(conditions=conditions, plan=None if resolved is None else plan_of(resolved, follower.plan))
    found = job_status(
        resolved,
        follower.observation,
        history.events,
        ledger,
        history.held,
        linked(follower.folder, settings),
        limit,
        follower.plan,
        paid=follower.sight is None or follower.sight.paid,
    )
    return found.model_copy(update={"attempts": [_named(one, follower) for one in found.attempts]})


def _named(attempt: Attempt, follower: Follower) -> Attempt:
    """With its RayJob, where a cluster runs it: named before it is there, or each job had one status more to write."""
    if not follower.remote:
        return attempt
    return attempt.model_copy(update={"ray_job": attempt_name(follower.record.job.metadata.name, attempt.number)})
