"""A small world for the budget: a job that saves, dies and hears late, and a controller that sleeps.

It moves time; all decisions are those of the real functions. The job obeys its own deadlines (`Resolved.deadlines`),
as `launch.entry` does; the controller looks with `Spending.look` over the held time that it knows, as `run` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from random import Random

from orchestrator.controller.spending import Look, Spending
from orchestrator.cost import budget
from orchestrator.cost.budget import Deadlines, Reserve
from orchestrator.cost.tariff import Tariff
from orchestrator.cost.timeline import Held
from orchestrator.launch.events import Ended
from orchestrator.launch.resolve import Resolved
from orchestrator.spec import Budget
from support.runs import resolved
from support.stories import Story


@dataclass(frozen=True)
class Nature:
    """What may happen; seconds."""

    step: float
    """Longest optimizer step: a worker hears an order at the end of one."""
    save: float
    """Longest save."""
    save_every: int
    look: float
    """The controller looks that often while it is awake."""
    sleeps: float
    """Share of its looks at which it falls asleep."""
    sleep: float
    """Longest sleep."""
    death: float
    """Chance that an attempt dies at a step."""
    teardown: float
    """Longest time from the end of an attempt until its machines are given back."""


@dataclass(frozen=True)
class Stop:
    """Of an attempt that the budget stopped."""

    reserve: Reserve
    whole: bool
    """Whether the money was enough to keep all of it."""
    fits: bool
    """Whether the last checkpoint was committed."""


@dataclass
class World:
    """One job, from its first attempt until its money or its patience is at an end."""

    nature: Nature
    prices: Tariff
    limit: Decimal
    now: float
    chance: Random
    story: Story = field(default_factory=Story)
    held: list[Held] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    step: int = 0
    saved: int = 0

    @property
    def over_budget(self) -> bool:
        """Whether the last attempt was stopped by the budget."""
        last = self.story.events[-1]
        return isinstance(last, Ended) and last.outcome == "stopped"

    def live(self, attempts: int) -> None:
        """So many attempts at most."""
        spending = Spending(Budget(limit=format(self.limit, "f")))
        for number in range(1, attempts + 1):
            left = self.limit - budget.spent(self.held, self._tariffs(number))
            if left <= 0:
                return
            rates = self.prices.rates
            reserve = spending.pace.reserve
            plan = resolved(attempt=number, rate=rates[0], later_rates=rates[1:], money_left=left, reserve=reserve)
            self._attempt(plan, spending)
            if self.over_budget:
                return
            self.now += self.chance.uniform(0, 30)  # nothing is held

    def _tariffs(self, attempts: int) -> dict[int, Tariff]:
        return dict.fromkeys(range(1, attempts + 1), self.prices)

    def _attempt(self, plan: Resolved, spending: Spending) -> None:
        nature, chance, began, number = self.nature, self.chance, self.now, plan.attempt
        own = plan.deadlines(began)
        assert own is not None
        told, ordered = len(self.story.events), False
        next_look = began + chance.uniform(0, nature.look)
        at = began + chance.uniform(0, 4 * nature.step)  # until the workers are up
        self.step = self.saved
        while True:
            # The controller looks at all that it is awake for, until the next end of a step.
            while next_look <= min(at, own.end):
                self._say(told, number, spending, next_look)
                told = len(self.story.events)
                look = self._look(spending, plan, began, next_look)
                ordered = ordered or look.stop
                if look.end:
                    return self._end(began, own, number, next_look, "over-budget")
                asleep = chance.random() < nature.sleeps
                next_look += nature.look + (chance.uniform(0, nature.sleep) if asleep else 0.0)
            if at >= own.end:
                return self._stop(plan, began, own, own.end, fits=False)
            if self.story.events and self.story.events[-1].attempt == number:
                self.step += 1
                self.story.progress(at, self.step, number)
            else:
                self.story.started(at, self.step, number)
            if ordered or at >= own.stop:
                done = at + chance.uniform(0, nature.save)
                fits = done <= own.end
                if fits:
                    self._save(done, number, done - at)
                return self._stop(plan, began, own, min(done, own.end), fits=fits)
            if chance.random() < nature.death:
                return self._end(began, own, number, at, "worker-lost")
            if self.step and self.step % nature.save_every == 0 and self.step > self.saved:
                done = at + chance.uniform(0, nature.save)
                if done >= own.end:
                    at = done
                    continue
                self._save(done, number, done - at)
                at = done
            at += chance.uniform(0.01, nature.step)

    def _stop(self, plan: Resolved, began: float, own: Deadlines, at: float, *, fits: bool) -> None:
        whole = budget.kept(own.limit - began, plan.reserve) == plan.reserve.seconds
        self.stops.append(Stop(plan.reserve, whole, fits))
        self._end(began, own, plan.attempt, at, "over-budget")

    def _save(self, time: float, attempt: int, seconds: float) -> None:
        self.story.saved(time, self.step, seconds, attempt)
        self.saved = self.step

    def _say(self, told: int, attempt: int, spending: Spending, now: float) -> None:
        assert all(event.attempt == attempt for event in self.story.events[told:])
        spending.pace.add(event for event in self.story.events[told:] if event.time <= now)

    def _look(self, spending: Spending, plan: Resolved, began: float, now: float) -> Look:
        known = [*self.held, Held(plan.attempt, began, now)]
        look = spending.look(budget.spent(known, self._tariffs(plan.attempt)), self.prices, began, now)
        if look.warning is not None:
            self.warnings.append(look.warning)
        return look

    def _end(self, began: float, own: Deadlines, number: int, at: float, failure: str) -> None:
        """The machines go a little later, and never later than was foreseen for that."""
        outcome = "stopped" if failure == "over-budget" else "failed"
        self.story.ended(at, outcome, number, failure_class=failure)
        self.now = at + self.chance.uniform(0, min(self.nature.teardown, own.limit - max(at, own.end)))
        self.held.append(Held(number, began, self.now))
