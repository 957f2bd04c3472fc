"""Runs one job on this machine to its end: attempts, tracking, money, status. `fathom train` is a face on it.

observe (read events, look at the driver) -> decide (`controller.decide`) -> act (start, order to stop, kill).
The driver is a process of its own: if this one dies, training goes on and `resume` finds it again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from orchestrator.controller.change import resolve_next
from orchestrator.controller.clock import ForwardClock
from orchestrator.controller.expected import expect
from orchestrator.controller.history import History
from orchestrator.controller.mirroring import Tracking
from orchestrator.controller.observe import Observation, remark_on
from orchestrator.controller.pictures import refresh_artifacts
from orchestrator.controller.purse import Purse
from orchestrator.controller.record import Record
from orchestrator.controller.report import job_status
from orchestrator.controller.retry import Decision, Tally, after_attempt
from orchestrator.controller.spending import OVER_BUDGET
from orchestrator.controller.sync import driver_lives
from orchestrator.controller.teams import release, reserve
from orchestrator.cost.ledger import Ledger
from orchestrator.errors import FathomError, OverBudget
from orchestrator.launch import local
from orchestrator.launch.events import CheckpointCommitted, Ended, Event, FailureClass
from orchestrator.launch.evidence import describe
from orchestrator.launch.files import replace_file
from orchestrator.launch.resolve import Resolved, read_resolved
from orchestrator.launch.watch import Watch
from orchestrator.settings import Settings

POLL_SECONDS = 0.2
TRACK_SECONDS = 5.0
SAVE_PAUSES = 20.0
"""Times as long as saving the record took, before it is saved again."""
GRACE_SECONDS = 120.0
"""From the order to stop until the process group is ended without a checkpoint."""


@dataclass(frozen=True)
class Snapshot:
    """What the command line shows."""

    observation: Observation
    resolved: Resolved
    spent: Decimal
    stopping: bool


@dataclass(frozen=True)
class Result:
    """How the job ended."""

    decision: Decision
    ended: Ended
    observation: Observation
    resolved: Resolved
    ledger: Ledger


class LocalRun:
    """One job in the hands of this process."""

    def __init__(self, record: Record, settings: Settings, say: Callable[[str], None]) -> None:
        self.settings, self.say, self.folder = settings, say, record.folder
        self._stop: str | None = None
        self._asked = self._kill = self._failed = False
        self._driver = local.running(self.folder)
        """One that an earlier launcher left behind."""
        self.history = History(record)
        self.observation = self.history.observation
        counted = self.history.held[-1].end if self._driver is not None and self.history.held else None
        self._clock = ForwardClock(time.time, time.monotonic, counted)
        self.purse = Purse(record, settings, self.history, say)
        self.resolved = self._resolve(self._next_attempt())
        self.observation.steps = self.resolved.recipe.steps
        self.observation.total_tokens = self.resolved.recipe.total_tokens
        self.tracking = Tracking(record, settings, say)
        self.plan = expect(record, self.resolved, settings)

    @property
    def record(self) -> Record:
        """With the budget that is in force now."""
        return self.purse.record

    def order_stop(self, reason: str) -> None:
        """First call: checkpoint and end. Second call: end at once. Safe in a signal handler."""
        self._kill = self._asked
        self._asked, self._stop = True, self._stop or reason

    def run(self, show: Callable[[Snapshot], None]) -> Result:
        """Until success, stop or failure. Conflict if another process follows the run already."""
        with local.hold_lock(self.folder.launcher_lock):
            ended = self.observation.ended
            if self._driver is None and ended is not None and ended.outcome == "succeeded":
                self.say("the run has succeeded already; its record is brought up to date")
                return self._finish("succeed", ended)
            self._reserve()
            try:
                if self._driver is None:
                    self._end_earlier()
                return self._attempts(show)
            except BaseException:
                self._abandon()
                raise
            finally:
                if not driver_lives(self.folder):
                    release(self.record)

    def _reserve(self) -> None:
        """The team's money; what runs already is not ended for want of it."""
        try:
            reserve(self.record, self.settings)
        except FathomError as error:
            if self._driver is None:
                raise
            self.say(f"the run goes on without leave: {error}")

    def _end_earlier(self) -> None:
        """The last attempt's end, where its driver and its launcher both died before they could write it."""
        last = self.folder.last_attempt()
        if not last or last == self.resolved.attempt or self.history.has_ended(last):
            return
        message = "the driver was gone without a word, and its launcher too: found so when the run was resumed"
        then = self.history.last_word(last)  # not now: nothing was held in between
        resolved = read_resolved(self.folder.resolved(last))
        self.history.end(resolved, "failed", FailureClass.DRIVER_LOST, message, at=then)
        self.say(f"attempt {last}: {message}")

    def _abandon(self) -> None:
        """This process fails: training goes on without it if it can, but no MLflow run stays RUNNING for ever."""
        self.tracking.finish(lambda: self._kill, live=driver_lives(self.folder))
        self.say(f"follow the run again with `fathom train --resume {self.folder.root}`")

    def _attempts(self, show: Callable[[Snapshot], None]) -> Result:
        """One after the other; whoever resumes a run grants it all its attempts anew."""
        tally = Tally()
        while True:
            ended = self._attempt(show)
            mine = (e for e in self.history.events if e.attempt == ended.attempt)
            tally = tally.add(ended, progressed=any(isinstance(e, CheckpointCommitted) for e in mine))
            decision = after_attempt(ended, self.record.job.spec.retry, tally)
            if decision != "retry":
                return self._finish(decision, ended)
            self.say(f"attempt {ended.attempt} ended: {ended.failure_class}: {ended.message}")
            if self._stop:
                return self._finish("stop", ended)
            try:
                self.resolved = self._resolve(self._next_attempt())
            except OverBudget as error:
                fields = {"outcome": "stopped", "failure_class": FailureClass.OVER_BUDGET, "message": str(error)}
                return self._finish("stop", ended.model_copy(update=fields))
            self.say(f"starting attempt {self.resolved.attempt}")

    # ------------------------------------------------------------------ one attempt
    def _attempt(self, show: Callable[[Snapshot], None]) -> Ended:
        driver = self._begin()
        self.tracking.tick()
        hangs = self._follow(driver, show)
        driver.kill()  # what it started may have outlived it
        self._observe()
        ended = self.observation.ended
        if ended is None or ended.attempt != self.resolved.attempt:
            ended = self._write_end(hangs)
        self._save()
        show(self._snapshot())
        return ended

    def _follow(self, driver: local.Driver, show: Callable[[Snapshot], None]) -> str | None:
        """Until the driver is gone, or hangs; -> then what was seen of it."""
        ordered, stop_since, save_at = False, math.inf, time.monotonic() + TRACK_SECONDS
        watch = Watch.of(self.resolved)
        for event in self.history.events:
            watch.add(event)
        while driver.alive():
            for event in self._observe():
                watch.add(event)
            watch.look(time.monotonic())
            if watch.driver_hangs():
                seen = describe(self.folder, self.resolved, driver.session())
                return f"the driver did not answer: no event for {watch.silent:.0f} s; {seen}"
            show(self._snapshot())
            self._keep_to_budget(driver)
            if self._stop and not ordered:
                ordered, stop_since = self._order(self._stop), min(stop_since, time.monotonic())
            if self._kill or time.monotonic() - stop_since > GRACE_SECONDS:
                driver.kill()
            if time.monotonic() > save_at:
                save_at = self._save_for_now()
            time.sleep(POLL_SECONDS)
        return None

    def _order(self, reason: str) -> bool:
        """Whether the driver could be told to stop; if not, it is tried again, and the driver is ended in time."""
        try:
            local.order_stop(self.folder, reason, GRACE_SECONDS)
        except OSError as error:
            if not self._failed:
                self.say(f"the order to stop could not be written, it is tried again: {error}")
            self._failed = True
            return False
        return True

    def _save_for_now(self) -> float:
        """-> when to do so again: the record of a long run takes long, and nobody watches meanwhile."""
        began = time.monotonic()
        try:
            self._save()
        except OSError as error:  # a disk that is full for a while must not end the watch over a run
            self.say(f"the run's record could not be written, it is tried again: {error}")
        self.tracking.tick()
        now = time.monotonic()
        return now + max(TRACK_SECONDS, SAVE_PAUSES * (now - began))

    def _keep_to_budget(self, driver: local.Driver) -> None:
        """Order the stop, or end what should have stopped by itself."""
        now = self._clock.now()
        self.history.extend(now)  # what is spent, and from when what is left lasts, are of one moment
        look = self.purse.look(self.resolved, now, self._clock.ahead)
        if look.stop:
            self._stop = self._stop or OVER_BUDGET
        if look.end:
            driver.kill()

    def _begin(self) -> local.Driver:
        """The driver of this attempt, found or started. That it holds its devices is written down first of all: what
        was started by a launcher that died at once is paid for, too."""
        driver, self._driver, now = self._driver, None, self._clock.now()
        began = now if driver is None else min(now, driver.process.create_time())
        if driver is None:
            local.prepare(self.folder, self.resolved)
        self.history.hold(self.resolved.attempt, began, now)
        self.record.save_held(self.history.held)
        if driver is None:
            driver = local.start(self.folder, self.resolved.attempt)
            self.observation.ended = None
        return driver

    def _write_end(self, hangs: str | None) -> Ended:
        """The driver ended without a word, or was ended: the launcher writes the attempt's last event."""
        end = partial(self.history.end, self.resolved, at=time.time())
        if hangs is not None:
            end("failed", FailureClass.STALLED, hangs)
        elif self._stop == OVER_BUDGET:
            end("stopped", FailureClass.OVER_BUDGET, "the budget was about to be gone before the last checkpoint's end")
        elif self._stop is not None:
            end("stopped", FailureClass.INTERRUPTED, self._stop)
        else:
            log = self.folder.log(self.resolved.attempt)
            end("failed", FailureClass.DRIVER_LOST, f"the driver ended without a word; see {log}")
        assert self.observation.ended is not None
        return self.observation.ended

    def _next_attempt(self) -> int:
        """That of a living driver, or of a run that has succeeded; otherwise a new one."""
        last, ended = self.folder.last_attempt(), self.observation.ended
        over = ended is not None and ended.outcome == "succeeded" and ended.attempt == last
        return last if last and (over or self._driver is not None) else last + 1

    def _resolve(self, attempt: int) -> Resolved:
        """As it was written if the attempt is known; otherwise decided now, with a new incarnation."""
        path = self.folder.resolved(attempt)
        if path.exists():
            return read_resolved(path)
        self.purse.follow_limit()
        return resolve_next(self.record, self.history, self.settings, attempt, self.purse.prices_now())

    def _observe(self) -> list[Event]:
        """What the driver has said, and that it has held its devices until now."""
        news = self.history.read()
        for event in news:
            if (remark := remark_on(event)) is not None:
                self.say(remark)
        self.purse.add(news)
        self.history.extend(self._clock.now())
        return news

    def _snapshot(self) -> Snapshot:
        amount = self.history.spent_at(self._clock.now()).amount
        return Snapshot(self.observation, self.resolved, amount, self._stop is not None)

    # ------------------------------------------------------------------ recording
    def _save(self) -> None:
        history, ledger = self.history, self.history.ledger(self.resolved)
        self.record.save_held(history.held)
        replace_file(self.folder.ledger, ledger.to_json())
        run = self.tracking.reference
        limit = None if (budget := self.record.job.spec.budget) is None else budget.amount
        status = job_status(
            self.resolved, self.observation, history.events, ledger, history.held, run, limit, self.plan
        )
        self.record.save_status(status)

    def _finish(self, decision: Decision, ended: Ended) -> Result:
        ledger = self.history.ledger(self.resolved)
        self._save()
        try:
            refresh_artifacts(self.record, self.history)
        except Exception as error:  # noqa: BLE001 - a full disk, or whatever matplotlib raises
            self.say(f"pictures and tables of the run could not be made: {error}")
        self.tracking.finish(lambda: self._kill)
        self._save()  # with where it is in MLflow
        return Result(decision, ended, self.observation, self.resolved, ledger)
