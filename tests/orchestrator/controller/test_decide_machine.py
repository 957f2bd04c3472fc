"""`decide` as a state machine over a simulated world, and the same machine over decisions with a planted defect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.job_world import Decide, World

from orchestrator.controller.decide import Action, Remove, Settle, Situation, Start, decide
from orchestrator.launch.failure import FailureClass, Verdict
from orchestrator.status import Phase as JobPhase
from orchestrator.status import Reason

RESTS = {JobPhase.SUCCEEDED, JobPhase.FAILED, JobPhase.CANCELLED, JobPhase.SUSPENDED}
FAILURES = sorted(set(FailureClass) - {FailureClass.OVER_BUDGET, FailureClass.INTERRUPTED})

OFTEN, SELDOM = st.sampled_from([True] * 7 + [False]), st.sampled_from([False] * 7 + [True])


class Machine(RuleBasedStateMachine):
    """Anything happens, in any order; then nothing happens any more but what the job's own drivers do."""

    decide: Decide = staticmethod(decide)
    _succeeded = False

    @initialize(
        fit=OFTEN, suspend=SELDOM, money=st.sampled_from([100, 100, 100, 8, 1]), turns=st.sampled_from([2, 2, 2, 0])
    )
    def submit(self, fit: bool, suspend: bool, money: int, turns: int) -> None:
        self.world = World(type(self).decide, fit=fit, suspend=suspend, money=money)
        for _ in range(turns):
            self.world.turn()

    # the service
    @rule(turns=st.integers(1, 4), last=st.sampled_from([None, 0, 1]))
    def turn(self, turns: int, last: int | None) -> None:
        """The last one may be cut off after so many actions: the service is killed."""
        for number in range(1, turns + 1):
            self.world.turn(last if number == turns else None)
        if last is not None:
            self.world.suspects = ""

    # people
    @rule(suspend=st.booleans())
    def patch_suspend(self, suspend: bool) -> None:
        self.world.suspend = suspend

    @precondition(lambda self: self.world.phase in (JobPhase.SUSPENDED, JobPhase.FAILED))
    @rule()
    def resume(self) -> None:
        self.world.suspend, self.world.granted_after = False, len(self.world.drivers)

    @rule(cancel=SELDOM, delete=SELDOM)  # never taken back, they hide what else could happen
    def give_up(self, cancel: bool, delete: bool) -> None:
        self.world.cancel |= cancel
        self.world.delete |= delete

    @rule(money=st.sampled_from([1, 4, 50]))
    def change_limit(self, money: int) -> None:
        self.world.money = money

    @rule(leave=st.booleans())
    def others_come_and_go(self, leave: bool) -> None:
        self.world.leave = leave

    # drivers
    @rule()
    def pass_time(self) -> None:
        self.world.pass_time()

    @precondition(lambda self: self._lives())
    @rule(fate=st.sampled_from(["spared", "spared", "ended", "terminated", "shot", "shot, and not all of it"]),
          failure=st.sampled_from([None, *FAILURES]), saved=st.booleans())  # fmt: skip
    def driver_meets(self, fate: str, failure: FailureClass | None, saved: bool) -> None:
        driver = self.world.drivers[-1]
        driver.saved |= saved
        if fate == "ended":
            self.world.end("succeeded" if failure is None else "failed", failure)
        elif fate == "terminated":
            self.world.end("stopped", FailureClass.INTERRUPTED)
        elif fate != "spared":
            driver.alive, driver.left = False, fate != "shot"
            driver.verdict = None if failure is None else Verdict(failure, "as it was seen")

    @precondition(lambda self: self._lives())
    @rule(hung=st.booleans())
    def driver_is_ill(self, hung: bool) -> None:
        self.world.drivers[-1].deaf = True
        self.world.drivers[-1].hung |= hung

    @precondition(lambda self: not self.world.removed and all(one.begun for one in self.world.drivers))
    @rule()
    def killed_while_it_starts(self) -> None:
        """The attempt is written down, and there is no driver."""
        found = self.world.decide(self.world.situation())
        if found and isinstance(found[-1], Start):
            self.world.turn()
            self.world.drivers[-1].begun = self.world.drivers[-1].alive = self.world.drivers[-1].left = False
            self.world.suspects = ""

    def _lives(self) -> bool:
        return bool(self.world.drivers) and self.world.drivers[-1].alive

    @invariant()
    def one_driver_at_most(self) -> None:
        world = getattr(self, "world", None)
        assert world is None or sum(one.alive for one in world.drivers) <= 1

    @invariant()
    def success_is_final(self) -> None:
        """The custom resource holds every controller to it."""
        world = getattr(self, "world", None)
        if world is None:
            return
        assert world.removed or not self._succeeded or world.phase is JobPhase.SUCCEEDED
        self._succeeded = world.phase is JobPhase.SUCCEEDED

    # the wish stays still, and the world is fair
    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        leave = world.leave
        for _ in range(60):
            if world.turn() == 0 and not self._lives():
                break
            world.pass_time(costs=0)
            if self._lives() and not (world.suspend or world.cancel or world.delete):
                # without a wish against it, a healthy driver ends well, and an ill one is found out
                ill = world.drivers[-1].hung or world.drivers[-1].deaf
                if not ill:
                    world.end("succeeded", None)
                world.drivers[-1].hung |= ill
        assert world.turn() == 0, f"it goes on for ever: {world.decide(world.situation())}"
        assert not any(one.alive or one.left for one in world.drivers), "nothing is left behind"
        if world.delete:
            assert world.removed, "forgotten"
            return
        assert not world.removed
        assert not world.holds, "the team has its money back"
        rests = RESTS if leave else RESTS | {JobPhase.QUEUED}
        assert world.phase in rests
        if world.cancel:
            assert world.phase in (JobPhase.CANCELLED, JobPhase.SUCCEEDED, JobPhase.FAILED)
        elif world.suspend:
            assert world.phase in (JobPhase.SUSPENDED, JobPhase.SUCCEEDED, JobPhase.FAILED)
        elif world.phase is JobPhase.SUSPENDED:
            assert world.reason is Reason.LIMIT_REACHED
            assert world.money <= 5


EXAMPLES = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestDecide = Machine.TestCase
TestDecide.settings = EXAMPLES


# ------------------------------------------------------------------ planted defects


def without(kind: type[Action]) -> Decide:
    return lambda seen: tuple(action for action in decide(seen) if not isinstance(action, kind))


def changed(change: Callable[[Situation], Situation]) -> Decide:
    return lambda seen: decide(change(seen))


def with_newest(**fields: object) -> Callable[[Situation], Situation]:
    def change(seen: Situation) -> Situation:
        return seen if seen.newest is None else replace(seen, newest=replace(seen.newest, **fields))  # type: ignore[arg-type]

    return change


def removes_at_once(seen: Situation) -> tuple[Action, ...]:
    return (Remove(),) if seen.delete else decide(seen)


def says_it_again(seen: Situation) -> tuple[Action, ...]:
    return decide(seen) or ((Settle(seen.phase, seen.reason),) if seen.reason is not None else ())


def takes_it_for_dead(seen: Situation) -> tuple[Action, ...]:
    if seen.newest is not None and seen.newest.alive and seen.newest.hangs:
        return (Start(seen.newest.number + 1),)
    return decide(seen)


DEFECTS: dict[str, tuple[Decide, str]] = {
    "a hanging driver is left alone, and the next one started": (takes_it_for_dead, "one driver of a job at most"),
    "what a dead driver has left is left": (changed(with_newest(left=False)), "is left"),
    "the grace never ends": (changed(with_newest(grace_over=False)), "left behind"),
    "an order is given again and again": (changed(with_newest(ordered=None)), "told once"),
    "a suspension is only a message": (changed(lambda seen: replace(seen, suspend=False)), "nobody wants it"),
    "a deleted job is forgotten before its driver is dead": (removes_at_once, "has left nothing"),
    "there is always money": (changed(lambda seen: replace(seen, money=replace(seen.money, suffices=True))), "money"),
    "the team's money is kept": (changed(lambda seen: replace(seen, holds=False)), "has its money back"),
    "it repeats itself": (says_it_again, "goes on for ever"),
    "an attempt that was only written down has been": (changed(with_newest(begun=True)), "was ever started"),
    "somebody else's room is taken": (changed(lambda seen: replace(seen, leaves=())), "there is room"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(defect: str) -> None:
    broken, words = DEFECTS[defect]
    machine = type("Broken", (Machine,), {"decide": staticmethod(broken)})
    quick = settings(EXAMPLES, max_examples=2000, derandomize=True, database=None, phases=[Phase.generate])
    with pytest.raises(Exception) as found:  # noqa: PT011 - an AssertionError, or a group of them
        run_state_machine_as_test(machine, settings=quick)
    assert words in "; ".join(said(found.value)), found.value


def said(error: BaseException | None) -> Iterator[str]:
    """By an error and all those behind it."""
    while error is not None:
        yield str(error)
        for one in getattr(error, "exceptions", ()):
            yield from said(one)
        error = error.__cause__ or error.__context__
