"""What to do with a job next. Pure; no I/O, and nothing in it of processes, pods or folders.

Called again and again by the controller with what it sees; every call stands for itself, so that a controller that was
killed between two actions goes on where it was. Invariants, held by a state machine over a simulated world
(`test_decide_machine`): an attempt is only started when every one before it is known to have ended and nothing of it
is left; while the wish stays still and nothing fails any more, the actions come to an end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from orchestrator.controller.retry import Tally, after_attempt
from orchestrator.launch.events import Ended
from orchestrator.launch.failure import FailureClass, Verdict
from orchestrator.spec import Retry
from orchestrator.status import Phase, Reason

OVER_BUDGET = "over-budget"
"""The reason of an order to stop; see `launch.entry.how_it_ended`."""


# ------------------------------------------------------------------ what is seen


@dataclass(frozen=True)
class Newest:
    """The newest attempt."""

    number: int
    alive: bool
    begun: bool = True
    """False: it was written down, and its driver never started."""
    left: bool = False
    """The driver is gone, and something that it started is not."""
    ended: Ended | None = None
    """Its last word."""
    ordered: str | None = None
    """Why it was told to stop."""
    grace_over: bool = False
    """It was told so long ago that it should have ended, or could not be told for as long."""
    hangs: str = ""
    """What was seen of a driver that does nothing any more."""
    forgiven: bool = False
    """Somebody has granted the job its attempts anew since."""
    verdict: Verdict | None = None
    """How it has ended if it left no last word, by what was seen of it."""


@dataclass(frozen=True)
class Money:
    """Of the job's own budget."""

    stop: bool = False
    """A final checkpoint now, or it would not fit any more."""
    end: bool = False
    """By force, now."""
    suffices: bool = True
    """What is left pays for the start of an attempt; after one that ended for want of money: for more than its end."""
    why: str = ""
    """If it does not suffice."""


@dataclass(frozen=True)
class Leave:
    """What has to be there before an attempt starts: a price, slots, the team's money."""

    granted: bool = True
    reason: Reason = Reason.NO_QUEUE
    """If not granted."""
    why: str = ""


@dataclass(frozen=True)
class Situation:
    """All that a decision needs."""

    phase: Phase = Phase.PENDING
    """As it was recorded last."""
    reason: Reason | None = None
    """What the job waits for, or why it rests, as it was recorded last."""
    accepted: bool = False
    """Whether it was found fit to run."""
    problems: str = ""
    """Why it can never run as it is written."""
    suspend: bool = False
    cancel: bool = False
    delete: bool = False
    newest: Newest | None = None
    tally: Tally = field(default_factory=Tally)
    """Of the attempts since the last grant, without those that were stopped."""
    retry: Retry = field(default_factory=Retry)
    money: Money = Money()
    leaves: tuple[Leave, ...] = ()
    """In the order in which they are asked for."""
    holds: bool = False
    """Some of its team's money is kept for it."""


# ------------------------------------------------------------------ what to do


@dataclass(frozen=True)
class Accept:
    """Record that it is fit to run, and what it should take."""


@dataclass(frozen=True)
class Reject:
    """It can never run as it is written: Failed."""

    message: str


@dataclass(frozen=True)
class Queue:
    """Record what it waits for."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Start:
    """Write the attempt down, and start its driver."""

    attempt: int


@dataclass(frozen=True)
class Order:
    """Tell the driver to write a final checkpoint and end."""

    reason: str


@dataclass(frozen=True)
class Kill:
    """End the driver and all that it started at once."""

    why: str


@dataclass(frozen=True)
class WriteEnd:
    """Write the last word of an attempt that ended without one."""

    outcome: Literal["stopped", "failed"]
    failure: FailureClass
    message: str


@dataclass(frozen=True)
class Release:
    """Give back what is kept of the team's money."""


@dataclass(frozen=True)
class Settle:
    """Record that nothing is to be done until the wish, or for want of money the limit, changes."""

    phase: Phase
    reason: Reason
    message: str = ""


@dataclass(frozen=True)
class Remove:
    """Forget the job, with its files if those are not kept."""


Action = Accept | Reject | Queue | Start | Order | Kill | WriteEnd | Release | Settle | Remove


def decide(seen: Situation) -> tuple[Action, ...]:
    """In the order in which they are to be done; nothing if all is as it should be."""
    newest = seen.newest
    if newest is not None and newest.alive:
        return _alive(seen, newest)
    if newest is not None and newest.left:
        return (Kill("its driver is gone"),)
    if newest is not None and newest.begun and newest.ended is None:
        return (_last_word(seen, newest),)
    goal = _goal(seen, newest)
    if isinstance(goal, Start | Accept):
        return (goal,)
    release = (Release(),) if seen.holds else ()
    return (*release, *(() if _is_so(seen, goal) else (goal,)))


def _alive(seen: Situation, newest: Newest) -> tuple[Action, ...]:
    """Its own word comes first; force only where it has not listened, or does nothing at all."""
    if seen.money.end:
        return (Kill(OVER_BUDGET),)
    if newest.hangs:
        return (Kill(newest.hangs),)
    wish = _wish_to_stop(seen)
    if wish is None and newest.ordered is None:
        return ()
    if newest.grace_over:
        return (Kill(newest.ordered or wish or ""),)
    return () if wish is None or newest.ordered is not None else (Order(wish),)


def _wish_to_stop(seen: Situation) -> str | None:
    """Why the attempt should end; money first, since it decides what becomes of the job."""
    if seen.money.stop:
        return OVER_BUDGET
    wishes = {"deleted": seen.delete, "cancelled": seen.cancel, "suspended": seen.suspend}
    return next((name for name, wished in wishes.items() if wished), None)


def _last_word(seen: Situation, newest: Newest) -> WriteEnd:
    """Of one that is gone without any."""
    if newest.hangs:
        return WriteEnd("failed", FailureClass.STALLED, newest.hangs)
    reason = newest.ordered or _wish_to_stop(seen)
    if seen.money.end or reason == OVER_BUDGET:
        message = "the budget was about to be gone before the last checkpoint's end"
        return WriteEnd("stopped", FailureClass.OVER_BUDGET, message)
    if reason is not None:
        return WriteEnd("stopped", FailureClass.INTERRUPTED, reason)
    if newest.verdict is not None:
        return WriteEnd("failed", newest.verdict.failure, newest.verdict.message)
    return WriteEnd("failed", FailureClass.DRIVER_LOST, "the driver ended without a word")


def _goal(seen: Situation, newest: Newest | None) -> Start | Accept | Reject | Queue | Settle | Remove:
    """Where a job without a driver should be."""
    if seen.delete:
        return Remove()
    ended = None if newest is None else newest.ended
    if ended is not None and ended.outcome == "succeeded":
        return Settle(Phase.SUCCEEDED, Reason.SUCCEEDED)
    if (failed := _failed(seen, newest)) is not None:
        return failed
    if seen.cancel:
        return Settle(Phase.CANCELLED, Reason.CANCELLED)
    if seen.problems:
        return Reject(seen.problems)
    if not seen.accepted:
        return Accept()
    if seen.suspend:
        return Settle(Phase.SUSPENDED, Reason.SUSPENDED)
    if not seen.money.suffices:
        return Settle(Phase.SUSPENDED, Reason.LIMIT_REACHED, seen.money.why)
    if (missing := next((leave for leave in seen.leaves if not leave.granted), None)) is not None:
        return Queue(missing.reason, missing.why)
    if newest is None:
        return Start(1)
    return Start(newest.number + 1 if newest.begun else newest.number)


def _failed(seen: Situation, newest: Newest | None) -> Settle | None:
    """If it has failed for good; a later change of the retry rules does not wake it up, a grant does."""
    forgiven = newest is not None and newest.forgiven
    if seen.phase is Phase.FAILED and not forgiven:
        return Settle(Phase.FAILED, Reason.FAILED)
    ended = None if newest is None else newest.ended
    if ended is None or forgiven or after_attempt(ended, seen.retry, seen.tally) != "fail":
        return None
    return Settle(Phase.FAILED, Reason.FAILED, f"attempt {ended.attempt}: {ended.failure_class}: {ended.message}")


def _is_so(seen: Situation, goal: Reject | Queue | Settle | Remove) -> bool:
    """Whether that is recorded already."""
    if isinstance(goal, Settle):
        return (seen.phase, seen.reason) == (goal.phase, goal.reason) or (seen.phase is goal.phase is Phase.FAILED)
    if isinstance(goal, Queue):
        return (seen.phase, seen.reason) == (Phase.QUEUED, goal.reason)
    return False
