"""A simulated world for `decide`: one job, drivers that run, end, crash or hang, and a service that is killed now and
then, between any two actions. What must never happen is asserted at every action."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.controller.decide import (
    Accept,
    Action,
    Kill,
    Leave,
    Money,
    Newest,
    Order,
    Queue,
    Reject,
    Release,
    Remove,
    Settle,
    Situation,
    Start,
    WriteEnd,
)
from orchestrator.controller.retry import Tally
from orchestrator.launch.events import Ended
from orchestrator.launch.failure import FailureClass, Verdict
from orchestrator.spec import Retry
from orchestrator.status import Phase, Reason

RETRY = Retry(max_attempts=4, stop_after_attempts_without_progress=2)
Decide = Callable[[Situation], tuple[Action, ...]]


@dataclass
class Driver:
    """An attempt as the world knows it."""

    number: int
    begun: bool = False
    alive: bool = False
    left: bool = False
    hung: bool = False
    deaf: bool = False
    """It does not obey orders."""
    saved: bool = False
    ordered: str | None = None
    waited: int = 0
    """Looks since it was ordered."""
    ended: Ended | None = None
    verdict: Verdict | None = None
    """How it ended, by what a launcher saw."""


@dataclass
class World:
    """The job's wish, its attempts, and what was recorded of it."""

    decide: Decide
    drivers: list[Driver] = field(default_factory=list)
    phase: Phase = Phase.PENDING
    reason: Reason | None = None
    accepted: bool = False
    fit: bool = True
    suspend: bool = False
    cancel: bool = False
    delete: bool = False
    granted_after: int = 0
    money: int = 100
    leave: bool = True
    holds: bool = False
    removed: bool = False
    suspects: str = ""
    """What this service has seen of a hanging driver; forgotten when it is killed."""

    # ------------------------------------------------------------------ the service
    def turn(self, actions: int | None = None) -> int:
        """Look and act; killed after so many `actions`, or not. -> how many were done."""
        if self.removed:
            return 0
        decided = self.decide(self.situation())
        for action in decided[:actions]:
            self._do(action)
        if actions is not None and actions < len(decided):
            self.suspects = ""
        return len(decided[:actions])

    def situation(self) -> Situation:
        newest = self.drivers[-1] if self.drivers else None
        poor = self.money <= 2 or (self._over_budget() and self.money <= 5)
        return Situation(
            phase=self.phase,
            reason=self.reason,
            accepted=self.accepted,
            problems="" if self.fit or self.accepted else "no such data",
            suspend=self.suspend,
            cancel=self.cancel,
            delete=self.delete,
            newest=None if newest is None else self._seen(newest),
            tally=self._tally(),
            retry=RETRY,
            money=Money(stop=self.money <= 3, end=self.money <= 0, suffices=not poor, why="spent"),
            leaves=(Leave(), Leave(self.leave, Reason.WAITING_FOR_SLOTS, "full")),
            holds=self.holds,
        )

    def _seen(self, driver: Driver) -> Newest:
        return Newest(
            number=driver.number,
            alive=driver.alive,
            begun=driver.begun,
            left=driver.left and not driver.alive,
            ended=driver.ended,
            ordered=driver.ordered,
            grace_over=driver.waited > 3,
            hangs=self.suspects,
            forgiven=driver.number <= self.granted_after,
            verdict=driver.verdict,
        )

    def _tally(self) -> Tally:
        tally = Tally()
        for driver in self.drivers:
            ended = driver.ended
            if ended is not None and ended.outcome == "failed" and driver.number > self.granted_after:
                tally = tally.add(ended, progressed=driver.saved)
        return tally

    def _over_budget(self) -> bool:
        ended = self.drivers[-1].ended if self.drivers else None
        return ended is not None and ended.failure_class is FailureClass.OVER_BUDGET

    def _do(self, action: Action) -> None:
        newest = self.drivers[-1] if self.drivers else None
        match action:
            case Start(number):
                self._start(number)
            case Order(reason):
                assert newest is not None
                assert newest.alive
                assert newest.ordered is None, "told once"
                newest.ordered = reason
            case Kill():
                assert newest is not None
                assert newest.alive or newest.left, "there is something to kill"
                newest.alive = newest.left = False
            case WriteEnd(outcome, failure, message):
                assert newest is not None
                assert not newest.alive, "nobody speaks for the living"
                assert newest.ended is None, "the last word is said once"
                assert newest.begun, "no driver of it was ever started"
                newest.ended = last_word(newest.number, outcome, failure, message)
                self.suspects = ""
            case Accept():
                assert not self.accepted
                self.accepted, self.phase, self.reason = True, Phase.PLANNED, None
            case Reject():
                self.phase, self.reason = Phase.FAILED, Reason.FAILED
            case Queue(reason):
                self.phase, self.reason = Phase.QUEUED, reason
            case Settle(phase, reason):
                assert newest is None or not newest.alive, "nothing rests while its driver lives"
                self.phase, self.reason = phase, reason
            case Release():
                assert newest is None or not newest.alive
                self.holds = False
            case Remove():
                assert self.delete
                assert not any(one.alive or one.left for one in self.drivers), "what is forgotten has left nothing"
                self.removed = True

    def _start(self, number: int) -> None:
        assert not any(one.alive for one in self.drivers), "one driver of a job at most"
        assert not any(one.left for one in self.drivers), "nothing of the one before is left"
        assert not any(one.begun and one.ended is None for one in self.drivers), "the one before has ended"
        assert not any((self.suspend, self.cancel, self.delete)), "nobody wants it"
        assert self.money > 2, "there is money"
        assert self.leave, "there is room"
        last = self.drivers[-1] if self.drivers else None
        if last is None or last.begun:
            assert number == len(self.drivers) + 1
            self.drivers.append(Driver(number))
            last = self.drivers[-1]
        assert number == last.number
        self.holds = True
        last.begun = last.alive = last.left = True
        self.phase, self.reason = Phase.STARTING, None

    # ------------------------------------------------------------------ fate
    def pass_time(self, costs: int = 1) -> None:
        """The driver, if one lives, obeys if it can; the service sees that it hangs; money goes."""
        driver = self.drivers[-1] if self.drivers else None
        if driver is None or not driver.alive:
            return
        self.phase = Phase.RUNNING
        self.money -= costs
        driver.waited += driver.ordered is not None
        if driver.hung:
            self.suspects = "no event for 900 s"
        elif driver.ordered is not None and not driver.deaf:
            over = driver.ordered == "over-budget"
            failure = FailureClass.OVER_BUDGET if over else FailureClass.INTERRUPTED
            driver.saved = True
            self.end("stopped", failure)

    def end(self, outcome: str, failure: FailureClass | None) -> None:
        """The living driver ends with a word of its own, and takes all that it started along."""
        driver = self.drivers[-1]
        driver.ended = last_word(driver.number, outcome, failure, "")
        driver.alive = driver.left = False
        self.suspects = ""


def last_word(attempt: int, outcome: str, failure: FailureClass | None, message: str) -> Ended:
    values = {"job": "u", "attempt": attempt, "incarnation": "i", "seq": 1, "time": 0.0}
    return Ended.model_validate(values | {"outcome": outcome, "failure_class": failure, "message": message})
