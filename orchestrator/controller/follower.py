"""One run in the hands of the controller: what is seen of it, and what is done to it. Nothing here waits.

Used by `controller.service`: `observe`, then `situation`, then `act` on what `decide` makes of that, then `save`. The
driver is a process of its own: if this one dies, training goes on, and the next follower finds it again.
Invariant: while it exists it holds the run's `launcher.lock`, so that no other process writes the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Decimal

from orchestrator.controller.clock import ForwardClock
from orchestrator.controller.decide import Kill, Money, Newest, Order, Situation, Start, WriteEnd
from orchestrator.controller.drafting import Drafting
from orchestrator.controller.expected import expect
from orchestrator.controller.history import History
from orchestrator.controller.limit import change_limit
from orchestrator.controller.observe import Observation, remark_on
from orchestrator.controller.purse import Purse
from orchestrator.controller.record import Record
from orchestrator.controller.retry import Tally
from orchestrator.controller.spending import Look, Pace
from orchestrator.controller.standing import Standing
from orchestrator.controller.teams import PATIENCE_SECONDS, TeamBusy, release
from orchestrator.cost.budget import lasts
from orchestrator.cost.ledger import Ledger
from orchestrator.errors import OverBudget, UsageError
from orchestrator.launch import local
from orchestrator.launch.base import Launcher, Sight
from orchestrator.launch.devices import in_words
from orchestrator.launch.events import Ended, Event, FailureClass
from orchestrator.launch.resolve import Resolved, read_resolved
from orchestrator.launch.watch import Watch
from orchestrator.settings import Settings
from orchestrator.status import Phase
from orchestrator.store.base import StoredJob, Wish

GRACE_SECONDS = 120.0
"""From the order to stop until the driver is ended without a checkpoint."""
LATE_SECONDS = 5.0
"""Without a look, after which a driver that is gone did not live until now."""
WORTHWHILE = 2.0
"""An attempt that follows one for which the money was gone must have this many times what stopping takes."""


@dataclass(frozen=True)
class Snapshot:
    """What the command line shows."""

    observation: Observation
    resolved: Resolved
    spent: Decimal
    stopping: bool


class Follower:
    """Of one run. Conflict if another process follows it."""

    def __init__(
        self,
        stored: StoredJob,
        settings: Settings,
        launcher: Launcher,
        say: Callable[[str], None],
        *,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """`patience`: seconds for another launch that has the team's money in its hands."""
        self._settings, self._launcher, self.say, self._patience = settings, launcher, say, patience
        self._remote = launcher.capacity() is None
        self._locks = ExitStack()
        record = Record.take(settings.home / stored.folder, stored.uid, stored.wish.job)
        self.folder = record.folder
        self._locks.enter_context(local.hold_lock(self.folder.launcher_lock))
        try:
            self._begin(record, stored)
        except BaseException:
            self.close()
            raise

    def _begin(self, record: Record, stored: StoredJob) -> None:
        self.standing = Standing.of(stored.status)
        self.hurry = False
        """Whether the person who waits here wants no last checkpoint; `Wish.force` is for all others."""
        self.history = History(record)
        self.last = self.folder.last_attempt()
        self.sight = self._launcher.look(self.folder, self.last) if self.last else None
        counted = self.history.held[-1].end if self.sight and self.sight.alive and self.history.held else None
        self._clock = ForwardClock(time.time, time.monotonic, counted)
        self.purse = Purse(record, self._settings, self.history, self.say, remote=self._remote)
        self.resolved: Resolved | None = self.history.resolved(self.last) if self.last else None
        self.plan = expect(record, self.resolved, self._settings) if self.resolved is not None else None
        self._drafting = Drafting(self._launcher, self._settings, self.purse, self.history, self._patience)
        self._watched = False
        self._expect_steps()
        self._forget()
        if self.sight is not None and self.sight.alive:
            self._take_over(self.sight)
            self._adopt(self.sight)

    def close(self) -> None:
        """Leave the run to others."""
        self._locks.close()

    @property
    def record(self) -> Record:
        """With the budget that is in force now."""
        return self.purse.record

    @property
    def observation(self) -> Observation:
        return self.history.observation

    @property
    def remote(self) -> bool:
        """Whether its attempts are those of a cluster."""
        return self._remote

    @property
    def alive(self) -> bool:
        """Whether a driver lives, as it was seen last."""
        return self.sight is not None and self.sight.alive

    @property
    def holds(self) -> bool:
        """Whether something of it is still on the machine."""
        return self.sight is not None and (self.sight.alive or self.sight.left)

    @property
    def uses(self) -> bool:
        """Whether it has a share of the machines."""
        return self.sight is not None and (self.sight.paid if self._remote else self.holds)

    @property
    def gpus(self) -> tuple[str, ...] | None:
        """Those of the newest attempt, which are its own while it holds any; None: nobody knows which."""
        return () if self.resolved is None else self.resolved.gpus_held

    @property
    def ordered(self) -> str | None:
        """Why the living driver was told to stop."""
        return self.sight.ordered if self.sight is not None and self.alive else None

    def _forget(self) -> None:
        """What belongs to one attempt only."""
        self._watch: Watch | None = None
        self._hangs, self._look = "", Look()
        self._asked: float | None = None
        """Since when it has been told to stop, or could not be."""
        self._failed = False

    # ------------------------------------------------------------------ the wish
    def follow_wish(self, wish: Wish) -> bool:
        """Bring `job.json` to what is wished; a limit that cannot be is told, and the one before stays in force.
        False if it must be tried again: another launch has the team's money in its hands just now."""
        own = Record.open(self.folder.root)
        if own.job == wish.job:
            return True
        wished, before = wish.job.spec.budget, own.job.spec.budget
        started = self.last > 0
        if wished is not None and started and (before is None or wished.amount != before.amount):
            try:
                change_limit(own, wished.limit, self._settings, patience=self._patience)
            except TeamBusy:
                return False
            except (UsageError, OverBudget) as error:
                self.say(f"the limit stays what it is: {error}")
        with local.hold_lock(self.folder.job_lock):
            in_force = Record.open(self.folder.root).job.spec.budget  # others may have changed it until now
            if wished is None or (started and in_force is None):
                wished = in_force
            elif started and in_force is not None:
                wished = wished.model_copy(update={"limit": in_force.limit})
            spec = wish.job.spec.model_copy(update={"budget": wished})
            changed = own.with_job(wish.job.model_copy(update={"spec": spec}))
        self.purse.follow_limit()
        self.purse.record = changed
        self._drafting.forget()
        return True

    # ------------------------------------------------------------------ observe
    def observe(self) -> None:
        """What has happened since the last time."""
        if self.last and not self._is_closed():
            self._observe_attempt()
        self.purse.follow_limit()

    def _observe_attempt(self) -> None:
        was_alive, was_paid = self.alive, self.sight is not None and self.sight.paid
        self.sight = self._launcher.look(self.folder, self.last)  # before the events: its last word is among them then
        self._take_over(self.sight)
        for event in self._read():
            if self._watch is not None:
                self._watch.add(event)
        self._count(self.sight, was_paid=was_paid)
        if not self.alive and self.sight.verdict is not None:
            self.history.refine(self.last, self.sight.verdict)
        if self.alive:
            self._observe_life(self.sight)
        elif was_alive and (ended := self.history.end_of(self.last)) is not None:
            self._tell_end(ended)

    def _count(self, sight: Sight, *, was_paid: bool) -> None:
        """Held time: by this clock, unless others have said from when to when."""
        if self._remote and sight.began is not None:
            self.history.begin(self.last, sight.began)
        if sight.paid or (was_paid and self._clock.now() - self.history.held[-1].end < LATE_SECONDS):
            self.history.extend(self._clock.now())
        elif was_paid:
            self.history.close_held()  # this process slept: nobody pays for what was over meanwhile
        if not sight.paid and sight.let_go is not None:
            self.history.let_go(self.last, sight.let_go)

    def _take_over(self, sight: Sight) -> None:
        """The incarnation by which the attempt's events are known, once it is."""
        name, resolved = sight.incarnation, self.resolved
        if name is None or resolved is None or name == resolved.incarnation:
            return
        self.resolved = resolved.model_copy(update={"incarnation": name})
        local.prepare(self.folder, self.resolved)
        self.history.decided(self.resolved)
        if self._watch is not None:
            self._begin_watch(self.resolved)

    def _observe_life(self, sight: Sight) -> None:
        assert self.resolved is not None
        assert self._watch is not None
        if sight.up:
            self._watch.look(time.monotonic())
        if not self._hangs and self._watch.driver_hangs():
            seen = self._launcher.describe(self.folder, self.last)
            self._hangs = f"the driver did not answer: no event for {self._watch.silent:.0f} s; {seen}"
        if sight.paid:
            now = self._clock.now()
            self.history.extend(now)  # what is spent, and from when what is left lasts, are of one moment
            self._look = self.purse.look(self.resolved, now, self._clock.ahead)
        if sight.ordered is not None and self._asked is None:
            left = GRACE_SECONDS if sight.deadline is None else sight.deadline - time.time()
            self._asked = time.monotonic() - GRACE_SECONDS + min(GRACE_SECONDS, max(0.0, left))

    def _read(self) -> Sequence[Event]:
        news = self.history.read()
        for event in news:
            if (remark := remark_on(event)) is not None:
                self.say(remark)
        self.purse.add(news)
        return news

    def _is_closed(self) -> bool:
        """Whether nothing of the newest attempt is left to be seen."""
        sight = self.sight
        return sight is not None and not sight.alive and not sight.left and self.history.has_ended(self.last)

    def _adopt(self, sight: Sight) -> None:
        """A driver that an earlier follower left behind, or that has just been started."""
        assert self.resolved is not None
        now = self._clock.now()
        self.history.hold(self.last, min(now, sight.began or now), now)
        self._watched = True
        self._begin_watch(self.resolved)

    def _begin_watch(self, resolved: Resolved) -> None:
        self._watch = Watch.of(resolved)
        for event in self.history.events:
            self._watch.add(event)

    def _expect_steps(self) -> None:
        if self.resolved is not None:
            self.observation.steps = self.resolved.recipe.steps
            self.observation.total_tokens = self.resolved.recipe.total_tokens

    def _tell_end(self, ended: Ended) -> None:
        if ended.outcome == "failed":
            self.say(f"attempt {ended.attempt} ended: {ended.failure_class}: {ended.message}")

    # ------------------------------------------------------------------ what decides
    def situation(self, wish: Wish, *, again: bool = False) -> Situation:
        """Without what has to be asked for; see `asked`. `again`: a job that was refused is to be looked at anew."""
        standing, newest = self.standing, self._newest(wish)
        return Situation(
            phase=Phase.PENDING if again else standing.phase,
            reason=standing.reason,
            accepted=standing.accepted and not again,
            suspend=wish.job.spec.suspend,
            cancel=wish.cancelled_at is not None,
            delete=wish.deleted_at is not None,
            newest=newest,
            tally=self._tally(wish.granted_after),
            retry=wish.job.spec.retry,
            money=self._money(newest),
            holds=self.folder.reserved.exists(),
        )

    def _newest(self, wish: Wish) -> Newest | None:
        if not self.last or self.sight is None:
            return None
        late = self._asked is not None and time.monotonic() - self._asked > GRACE_SECONDS
        return Newest(
            number=self.last,
            alive=self.sight.alive,
            begun=self.sight.begun,
            left=self.sight.left,
            ended=self.history.end_of(self.last) if self.sight.begun else None,
            ordered=self.sight.ordered,
            grace_over=late or self.hurry or wish.force,
            hangs=self._hangs,
            forgiven=self.last <= wish.granted_after,
            verdict=self.sight.verdict,
        )

    def _tally(self, granted_after: int) -> Tally:
        tally = Tally()
        for number in range(granted_after + 1, self.last + 1):
            ended = self.history.end_of(number)
            if ended is not None and ended.outcome == "failed":
                tally = tally.add(ended, progressed=number in self.history.saved)
        return tally

    def _money(self, newest: Newest | None) -> Money:
        if self.alive:
            return Money(stop=self._look.stop, end=self._look.end)
        budget, ended = self.record.job.spec.budget, None if newest is None else newest.ended
        gone = ended is not None and ended.failure_class is FailureClass.OVER_BUDGET
        if budget is None or newest is None or newest.forgiven or not gone:
            return Money(end=self._look.end)
        left = budget.amount - self.history.charged()
        seconds = float(lasts(left, self.history.tariff(self.last), self._clock.now())) if left > 0 else 0.0
        needed = WORTHWHILE * Pace.of(self.history.events).reserve.seconds
        why = (
            f"of {budget.limit} {budget.currency} {max(left, Decimal(0)):.6f} are left, which pay for {seconds:.0f} s; "
            f"an attempt needs more than {needed:.0f} s to be worth its start: raise budget.limit"
        )
        return Money(suffices=seconds > needed, why=why)

    def asked(self, seen: Situation) -> Situation:
        """With the answers to what an attempt needs; see `Drafting.ask`."""
        found = self._drafting.ask(1 if seen.newest is None else self._following(seen.newest))
        money = seen.money if found.money.suffices else found.money
        return replace(seen, problems=found.problems, money=money, leaves=(*seen.leaves, *found.leaves))

    @staticmethod
    def _following(newest: Newest) -> int:
        return newest.number + 1 if newest.begun else newest.number

    def problems(self) -> str:
        """Why the job could never run as it is written; the plan is made by the way."""
        problems, draft = self._drafting.problems(self.last + 1)
        if self.resolved is None and draft is not None:
            self.resolved, self.plan = draft, expect(self.record, draft, self._settings)
            self._expect_steps()
        return problems

    # ------------------------------------------------------------------ act
    def start(self, action: Start, gpus: tuple[str, ...]) -> None:
        """That it holds its devices is written down first of all: what was started by a controller that died at once is
        paid for, too. `gpus`: those that it is given."""
        draft = self._drafting.take()
        assert draft is not None
        assert draft.attempt == action.attempt, "it was asked for just now"
        assert self._remote or draft.workers * draft.gpus_per_worker == len(gpus), (draft.workers, gpus)
        draft = draft.model_copy(update={"gpus": gpus})
        if action.attempt > 1:
            self.say(f"starting attempt {action.attempt}")
        if gpus:
            self.say(f"attempt {action.attempt} has {in_words(gpus)}")
        local.prepare(self.folder, draft)
        self.history.decided(draft)
        self.last, self.resolved = action.attempt, draft
        self._expect_steps()
        if self.plan is None:
            self.plan = expect(self.record, draft, self._settings)
        self._forget()
        now = self._clock.now()
        self.history.hold_anew(action.attempt, now)
        self.history.keep_held()
        self.sight = Sight(alive=False, begun=False)
        self._launcher.start(self.folder, action.attempt)
        self.observation.ended = None
        self.sight = self._launcher.look(self.folder, action.attempt) if self._remote else Sight(alive=True, began=now)
        self._adopt(self.sight)

    def order(self, action: Order) -> None:
        """If the driver cannot be told, it is tried again, and ended in time."""
        if self._asked is None:
            self._asked = time.monotonic()
        try:
            self._launcher.order_stop(self.folder, action.reason, GRACE_SECONDS)
        except OSError as error:
            if not self._failed:
                self.say(f"the order to stop could not be written, it is tried again: {error}")
            self._failed = True

    def kill(self, action: Kill) -> None:
        """With everything that it started."""
        if self.alive and action.why:
            self.say(f"attempt {self.last} is ended: {action.why}")
        self._launcher.kill(self.folder, self.last)
        self._observe_attempt()

    def write_end(self, action: WriteEnd) -> None:
        """In the name of a driver that is gone, when it was last seen or heard of: until then its devices count as held
        for whoever reads the record later."""
        resolved = read_resolved(self.folder.resolved(self.last))
        message, now, last = action.message, time.time(), self.history.last_word(self.last)
        if action.failure is FailureClass.DRIVER_LOST and (self.sight is None or self.sight.verdict is None):
            message = f"{message}; see {self.folder.log(self.last)}"
            if not self._watched:
                message = "the driver was gone without a word, and its launcher too: found so when the run was resumed"
        moment = now if last is None else min(now, last)
        self.history.end(resolved, action.outcome, action.failure, message, at=moment)
        if (ended := self.history.end_of(self.last)) is not None:
            self._tell_end(ended)

    def release(self) -> None:
        """What is kept of the team's money."""
        release(self.record)
        self._drafting.forget()

    # ------------------------------------------------------------------ show
    def snapshot(self) -> Snapshot | None:
        """None before anything was decided."""
        if self.resolved is None:
            return None
        amount = self.history.spent_at(self._clock.now()).amount if self.history.held else Decimal(0)
        return Snapshot(self.observation, self.resolved, amount, self.ordered is not None or self._asked is not None)

    def ledger(self) -> Ledger | None:
        """None before the first attempt."""
        return None if self.resolved is None or not self.history.held else self.history.ledger(self.resolved)
