"""The controller: looks at every open job of the store, decides, acts; again and again.

Every turn begins with what is there, not with what was remembered, so that a controller that was killed goes on where
it was. Invariants: a turn never waits for long; one broken job stops no other, and what is wrong with it stands in its
status; a run that another process follows is left alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal

from orchestrator.controller.decide import (
    Accept,
    Action,
    Kill,
    Leave,
    Order,
    Queue,
    Reject,
    Release,
    Remove,
    Situation,
    Start,
    WriteEnd,
    decide,
)
from orchestrator.controller.departed import Departed, remember
from orchestrator.controller.files import WatchedFile
from orchestrator.controller.follower import Follower
from orchestrator.controller.health import Health
from orchestrator.controller.keeping import Keeper
from orchestrator.controller.lending import Lending
from orchestrator.controller.mirror_process import MirrorProcess
from orchestrator.controller.removal import is_anothers_folder, paid_for
from orchestrator.controller.standing import LIVE, RESTS, troubled
from orchestrator.controller.sync import is_followed, is_settled
from orchestrator.controller.teams import PATIENCE_SECONDS
from orchestrator.controller.webhooks import Notifier
from orchestrator.errors import Conflict, FathomError, Unavailable
from orchestrator.launch.base import Capacity, Launcher, RunFolder
from orchestrator.launch.slots import Holding, Place, Waiting, need_of, oversubscribed, places, refusal
from orchestrator.settings import Settings
from orchestrator.status import Phase, Reason
from orchestrator.store.base import JobStore, StoredJob, Wish

POLL_SECONDS, IDLE_SECONDS = 0.2, 1.0
"""Between two turns: while something is followed, and else."""
_PAUSES = 4.0
"""Times as long as a turn took, before the next one while something is followed, but no longer than if nothing was."""
_AGAIN_SECONDS = 5.0
"""Before a job that could not be looked after is tried again."""
NEW_SECONDS = 0.2
"""Of a turn, for jobs that are new, and as much for those that start."""
MLFLOW_SECONDS = 60.0
"""So long a person waits at the end of a run for MLflow."""
TEAM_SECONDS = 0.1
"""For another launch to be done with the money of a team; then it is tried again in another turn."""
_MIRROR_SECONDS = 20.0
"""For MLflow to hear of the end of a run that is deleted."""
_MOST_PASSES = 8
"""Decisions about one job in one turn."""


def pause(took: float) -> float:
    """Seconds until the next turn, after one of so many seconds: whatever is followed, a core is not used up by it."""
    return min(IDLE_SECONDS, max(POLL_SECONDS, _PAUSES * took))


@dataclass
class _Quiet:
    """A job with which nothing is to be done until something changes."""

    version: int
    file: WatchedFile


@dataclass
class _Case:
    """One job in one turn."""

    stored: StoredJob
    follower: Follower
    seen: Situation = field(default_factory=Situation)
    actions: tuple[Action, ...] = ()
    """As decided without what has to be asked for."""


class Controller:
    """Of one home. Used by one thread, but for `stop`, `wake` and `slots`."""

    def __init__(
        self,
        store: JobStore,
        launcher: Launcher,
        settings: Settings,
        say: Callable[[str], None],
        *,
        only: str | None = None,
        mirror: MirrorProcess | None = None,
    ) -> None:
        """`only`: the uid of the one job to look after, which is kept when it has come to rest (`followed`)."""
        self._store, self._launcher, self._settings, self._say, self._only = store, launcher, settings, say, only
        self.health = Health()
        self._mirror = mirror or MirrorProcess(settings)
        self._notifier = Notifier(settings, say)
        self._keeper = Keeper(store, self._mirror, self._notifier, settings)
        self._lending = Lending(settings.home, launcher, store.open_jobs)
        self._followers: dict[str, Follower] = {}
        self._quiet: dict[str, _Quiet] = {}
        self._not_before: dict[str, float] = {}
        self._removing: dict[str, float] = {}
        """Since when MLflow is waited for."""
        self._told: set[str] = set()
        self._stopped, self._woken = threading.Event(), threading.Event()
        self._holders: tuple[StoredJob, ...] = ()

    # ------------------------------------------------------------------ from other threads
    def stop(self) -> None:
        """End after this turn; trainings go on."""
        self._stopped.set()
        self._woken.set()

    def wake(self) -> None:
        """Something was wished: look now."""
        self._woken.set()

    def slots(self) -> tuple[Capacity | None, tuple[StoredJob, ...]]:
        """What there is to share out, None: nothing here; and the jobs that hold some."""
        return self._launcher.capacity(), self._holders

    # ------------------------------------------------------------------ the loop
    def run(self) -> None:
        """Until `stop`."""
        self._notifier.start()
        try:
            self._launcher.sweep()
            while not self._stopped.is_set():
                self._woken.clear()
                began = time.monotonic()
                with suppress(FathomError):  # of the store: told, counted, and tried again
                    self.turn()
                self._woken.wait(pause(time.monotonic() - began) if self._followers else IDLE_SECONDS)
        finally:
            self.close()

    def close(self) -> None:
        """Leave all runs to whoever comes next."""
        for follower in self._followers.values():
            follower.close()
        self._followers.clear()
        self._notifier.close()
        self._mirror.close()

    def turn(self) -> None:
        """One look at all open jobs."""
        with self.health.turn(), ExitStack() as lent:
            try:
                jobs = [job for job in self._store.open_jobs() if self._only in (None, job.uid)]
            except FathomError as error:
                self._once(str(error))
                raise
            known, new = self._sorted(jobs)
            cases = [case for job in known if (case := self._observed(job)) is not None]
            found = self._places(jobs, cases, lent)
            self._act_on(cases, found)
            self._take_up(new)
            self._forget({job.uid for job in jobs})
            if self._only is None:
                self._keeper.start()
            self._keeper.turn()

    def _sorted(self, jobs: Sequence[StoredJob]) -> tuple[list[StoredJob], list[StoredJob]]:
        """Those that are looked at each turn, and those that are new to this process, of which there may be many."""
        if self._only is not None:
            return list(jobs), []
        known = [job for job in jobs if job.uid in self._followers or job.status.phase in LIVE]
        there = {job.uid for job in known}
        return known, [job for job in jobs if job.uid not in there]

    def _act_on(self, cases: list[_Case], found: dict[str, Place]) -> None:
        """What lives comes first; starting drivers takes its time, and so waits for the next turn after a while."""
        cases = sorted(cases, key=lambda case: not case.follower.alive)
        until: float | None = None
        for case in cases:
            starts = not found.get(case.stored.uid, Place("not asked for")).why
            if starts and until is not None and time.monotonic() >= until:
                self._woken.set()  # and that one soon
                continue
            until = time.monotonic() + NEW_SECONDS if starts and until is None else until
            self._guarded(case.stored, lambda case=case: self._advance(case, found))  # type: ignore[misc]

    def _take_up(self, jobs: Sequence[StoredJob]) -> None:
        """As many as there is time for, the oldest first; where slots are shared out, the next turn starts them."""
        until = time.monotonic() + NEW_SECONDS
        found = {job.uid: Place() for job in jobs} if self._launcher.capacity() is None else {}
        for job in jobs:
            if (case := self._observed(job)) is None:
                continue
            self._guarded(job, lambda case=case: self._advance(case, found))  # type: ignore[misc]
            if time.monotonic() >= until:
                self._woken.set()
                return

    def finish(self, uid: str, say: Callable[[str], None], give_up: Callable[[], bool]) -> None:
        """Of the only job, which rests: wait until MLflow has all of it, for a while, and write down where."""
        follower, stored = self._followers[uid], self._store.by_uid(uid)
        folder = follower.folder
        self._mirror.tell(folder.root.name)
        if not self._mirror.finish(lambda: is_settled(folder, self._settings), MLFLOW_SECONDS, give_up):
            say(f"MLflow is behind; `fathom sync {folder.root}` sends what is missing")
        if stored is not None:
            self._keeper.keep(stored, follower, now=True)

    def followed(self, uid: str) -> Follower | None:
        """The run of a job, while it is followed."""
        return self._followers.get(uid)

    def _forget(self, there: set[str]) -> None:
        """Jobs with which nothing is to be done any more."""
        for uid in [uid for uid in self._followers if uid not in there and uid != self._only]:
            self._drop(uid)
        for known in (self._quiet, self._not_before, self._removing):
            for uid in [uid for uid in known if uid not in there]:
                del known[uid]

    def _drop(self, uid: str) -> None:
        if (follower := self._followers.pop(uid, None)) is not None:
            follower.close()
            self._keeper.left(uid, follower)

    # ------------------------------------------------------------------ observe
    def _observed(self, job: StoredJob) -> _Case | None:
        if self._is_quiet(job) or time.monotonic() < self._not_before.get(job.uid, 0.0):
            return None
        if job.uid not in self._followers and self._only is None and self._is_anothers(job):
            return None
        case: list[_Case] = []
        self._guarded(job, lambda: case.append(self._case(job)))
        return case[0] if case else None

    def _is_quiet(self, job: StoredJob) -> bool:
        quiet = self._quiet.get(job.uid)
        if quiet is None or quiet.version != job.version or quiet.file.changed():
            self._quiet.pop(job.uid, None)
            return False
        return True

    def _is_anothers(self, job: StoredJob) -> bool:
        """Followed by a `fathom train` of this home, say; its driver holds its slots all the same."""
        if not is_followed(RunFolder(self._settings.home / job.folder)):
            return False
        self._not_before[job.uid] = time.monotonic() + IDLE_SECONDS
        return True

    def _case(self, job: StoredJob) -> _Case:
        follower = self._followers.get(job.uid)
        if follower is None:
            patience = TEAM_SECONDS if self._only is None else PATIENCE_SECONDS
            follower = Follower(job, self._settings, self._launcher, self._saying(job), patience=patience)
            self._followers[job.uid] = follower
        changed = job.generation > job.status.observed_generation
        if changed and not job.wish.deleted_at and not follower.follow_wish(job.wish):
            # seen later: until then its status is about the wish of before
            job = replace(job, generation=job.status.observed_generation)
        follower.observe()
        if not changed:
            self._take_over_limit(job, follower)
        return self._decided(_Case(job, follower))

    def _decided(self, case: _Case) -> _Case:
        job, follower = case.stored, case.follower
        refused = follower.standing.refused and not follower.last
        again = refused and job.wish.cancelled_at is None and job.generation > job.status.observed_generation
        case.seen = follower.situation(job.wish, again=again)
        case.actions = decide(case.seen)
        return case

    def _take_over_limit(self, job: StoredJob, follower: Follower) -> None:
        """One that somebody has changed in the run's folder (`fathom budget FOLDER`)."""
        budget = follower.record.job.spec.budget
        if budget == job.wish.job.spec.budget or budget is None:
            return

        def edit(wish: Wish) -> Wish:
            spec = wish.job.spec.model_copy(update={"budget": budget})
            return replace(wish, job=wish.job.model_copy(update={"spec": spec}))

        with suppress(Conflict):  # somebody has wished something else just now: that counts
            self._store.change(job.namespace, job.name, edit, generation=job.generation)

    # ------------------------------------------------------------------ slots
    def _places(self, jobs: list[StoredJob], cases: list[_Case], lent: ExitStack) -> dict[str, Place]:
        """By uid of who would start. `lent` is left at the end of the turn."""
        mine = {case.stored.uid for case in cases}
        others = [job for job in jobs if job.uid not in mine and job.status.phase in LIVE]
        holding = [case for case in cases if case.follower.uses]
        self._holders = (*(case.stored for case in holding), *others)
        starting = [case for case in cases if any(isinstance(action, Start) for action in case.actions)]
        if (capacity := self._launcher.capacity()) is None:  # queues and schedulers of others have the last word
            return {case.stored.uid: Place() for case in starting}
        used = [Holding(need_of(case.stored.wish.job).cpus, case.follower.gpus) for case in holding]
        used += [Holding(need_of(job.wish.job).cpus) for job in others]
        now = datetime.now(UTC)
        waiting = [
            Waiting(job.uid, need_of(job.wish.job), (now - job.created_at).total_seconds())
            for case in sorted(starting, key=_lacks_other_things)
            for job in (case.stored,)
        ]
        cpus, gpus = capacity.cpus, self._launcher.gpus()
        if not any(one.need.gpus for one in waiting):
            return places(cpus, gpus, used, waiting)
        return self._lending.share(mine, lambda strange: places(cpus, gpus, [*used, *strange], waiting), lent)

    # ------------------------------------------------------------------ decide and act
    def _advance(self, case: _Case, found: dict[str, Place]) -> None:
        """Until nothing is to be done for now; then its status."""
        follower, job = case.follower, case.stored
        for number in range(_MOST_PASSES):
            if number:
                self._decided(case)
            if any(isinstance(action, Start) for action in case.actions):
                if job.uid not in found:
                    break  # it has come so far just now: the next turn shares out the slots
                self._ask(case, found[job.uid].why)
            if not case.actions:
                break
            for action in case.actions:
                if isinstance(action, Remove):
                    return self._remove(case)
                follower.standing = follower.standing.after(self._act(case, action, found.get(job.uid, Place())))
            if any(isinstance(action, Start | Order) for action in case.actions):
                break
            if follower.holds and any(isinstance(action, Kill) for action in case.actions):
                break  # what does not die at once is killed again in the next turn: others wait
        self._keeper.keep(job, follower)
        if not case.actions and not follower.alive and follower.standing.phase in RESTS:
            self._rest(job, follower)

    def _ask(self, case: _Case, why: str) -> None:
        """Who would start: for its slots first, then for all that stands in files."""
        leave = Leave(not why, Reason.WAITING_FOR_SLOTS, why)
        case.seen = replace(case.seen, leaves=(leave,))
        if leave.granted:
            case.seen = case.follower.asked(case.seen)
        case.actions = decide(case.seen)
        refused = [(one.reason, one.why) for one in case.seen.leaves if not one.granted]
        if not case.seen.money.suffices:
            refused.insert(0, (Reason.LIMIT_REACHED, case.seen.money.why))
        standing = case.follower.standing
        if refused and standing.reason is refused[0][0]:  # the numbers in it may be others by now
            case.follower.standing = replace(standing, message=refused[0][1])

    def _act(self, case: _Case, action: Action, place: Place) -> Action:
        """-> what has come of it. `place`: for its start."""
        follower = case.follower
        match action:
            case Accept():
                return self._accept(case)
            case Start():
                machine, need = self._launcher.capacity(), need_of(case.stored.wish.job)
                if machine is not None and (note := oversubscribed(need, machine)):
                    self._saying(case.stored)(note)
                follower.start(action, place.gpus)
            case Order():
                follower.order(action)
            case Kill():
                follower.kill(action)
            case WriteEnd():
                follower.write_end(action)
            case Release():
                follower.release()
            case Queue(Reason.WAITING_FOR_SLOTS, why) if self._only is not None:
                self._say(f"it waits: {why}")  # a person does, too
            case Reject() | Queue() | _:
                pass  # it is written down with the status
        return action

    def _accept(self, case: _Case) -> Accept | Reject:
        need, machine = need_of(case.stored.wish.job), self._launcher.capacity()
        problem = "" if machine is None else refusal(need, machine)
        problem = problem or case.follower.problems()
        return Reject(problem) if problem else Accept()

    def _remove(self, case: _Case) -> None:
        """Its files first: a job that is in the store is tried again."""
        job, follower = case.stored, case.follower
        if not self._is_mirrored(job, follower):
            return
        self._keeper.farewell(job, follower)
        follower.release()
        self._followers.pop(job.uid, None)
        follower.close()
        if not job.wish.keep_files:
            if follower.last:
                spent, rate = follower.history.charged(), follower.history.rate(follower.last)
                self._remember(job, spent, rate.currency)
            self._launcher.remove(follower.folder)
        self._store.remove(job.uid)
        self._keeper.gone(job.uid, follower.folder)
        self._saying(job)("it is deleted" + (f"; its files stay in {follower.folder.root}" * job.wish.keep_files))

    def _is_mirrored(self, job: StoredJob, follower: Follower) -> bool:
        """Whether MLflow knows how the run ended, or has had its time: it would stay RUNNING there for ever."""
        folder = follower.folder
        if job.wish.keep_files or not folder.tracking.exists() or is_settled(folder, self._settings):
            return True
        since = self._removing.setdefault(job.uid, time.monotonic())
        self._mirror.tell(folder.root.name)
        return time.monotonic() - since >= _MIRROR_SECONDS

    def _rest(self, job: StoredJob, follower: Follower) -> None:
        """Nothing is to be done: the run is everybody's again."""
        if self._only is not None:
            return
        self._drop(job.uid)
        now = self._store.by_uid(job.uid)
        if now is not None and now.generation == job.generation:
            file = WatchedFile(follower.folder.job)
            file.changed()
            self._quiet[job.uid] = _Quiet(now.version, file)

    # ------------------------------------------------------------------ trouble
    def _guarded(self, job: StoredJob, act: Callable[[], object]) -> None:
        """Whatever is wrong with one job is told in its status, and stops no other."""
        try:
            act()
        except Exception as error:
            self._not_before[job.uid] = time.monotonic() + _AGAIN_SECONDS
            follower = self._followers.pop(job.uid, None)
            if follower is not None:
                follower.close()
            elif self._only is not None and isinstance(error, FathomError):
                raise  # it could not even be taken up, and a person waits
            self._trouble(job, error)

    def _trouble(self, job: StoredJob, error: Exception) -> None:
        words = str(error) if isinstance(error, FathomError) else f"{type(error).__name__}: {error}"
        message = f"the controller cannot look after the job, and tries again: {words}"
        self._once(f"{job.namespace}/{job.name}: {message}")
        lasting = not isinstance(error, Unavailable)
        if job.wish.deleted_at is not None and lasting and self._removed_anyhow(job):
            return
        with suppress(FathomError):
            if (now := self._store.by_uid(job.uid)) is not None:
                status = troubled(now.status, message, datetime.now(UTC), now.status.observed_generation)
                self._store.set_status(job.uid, status)

    def _removed_anyhow(self, job: StoredJob) -> bool:
        """A job whose record cannot be read can be deleted all the same, unless its driver lives; what lies in its
        place and is another's stays."""
        folder = RunFolder(self._settings.home / job.folder)
        with suppress(Exception):  # it is tried again, and whatever it is stops no other job
            if is_anothers_folder(folder, job.uid):
                self._store.remove(job.uid)
                return True
            last = folder.last_attempt()
            sight = self._launcher.look(folder, last) if last else None
            if sight is not None and (sight.alive or sight.left):
                self._launcher.kill(folder, last)
                return False
            self._keeper.farewell(job, None)
            if not job.wish.keep_files:
                if (paid := paid_for(job, folder)) is not None:
                    self._remember(job, *paid)
                self._launcher.remove(folder)
            self._store.remove(job.uid)
            self._keeper.gone(job.uid, folder)
            return True
        return False

    def _remember(self, job: StoredJob, spent: Decimal, currency: str) -> None:
        run = Departed(team=job.namespace, name=job.name, folder=job.folder, spent=spent, currency=currency)
        remember(self._settings.home, job.uid, run)

    def _saying(self, job: StoredJob) -> Callable[[str], None]:
        if self._only is not None:
            return self._say
        return lambda text: self._say(f"{job.namespace}/{job.name}: {text}")

    def _once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._say(message)


def _lacks_other_things(case: _Case) -> bool:
    """Whether it was refused for something else than slots: those who need only slots come first, since it might hold
    a place, and not start, for ever."""
    standing = case.follower.standing
    return standing.phase is Phase.QUEUED and standing.reason not in (None, Reason.WAITING_FOR_SLOTS)
