"""A small world for the budget: a job that saves, dies and hears late, a controller that sleeps and is lost, and people
who change limit and prices meanwhile.

It moves time; all decisions are those of the real functions. The job obeys its own deadlines (`Resolved.deadlines`, and
then whichever answer `control.newest` lets count), as `launch.entry` does; the controller looks with `Spending.look`
over the held time that it knows, as `controller.purse` does; limits are changed by the rules of `controller.limit`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from random import Random

from orchestrator.controller.limit import Account, require
from orchestrator.controller.purse import moved
from orchestrator.controller.spending import Look, Pace, Spending
from orchestrator.cost import budget
from orchestrator.cost.budget import Deadlines, Reserve
from orchestrator.cost.tariff import Tariff, repriced, tariff_from
from orchestrator.cost.timeline import Held
from orchestrator.errors import UsageError
from orchestrator.launch.control import hard_deadline, newest
from orchestrator.launch.events import BudgetNote, Continue, Ended, HardDeadline
from orchestrator.launch.resolve import Resolved
from orchestrator.plan.prices import Price
from orchestrator.spec import Budget
from support.runs import resolved
from support.stories import Story

UNITS = 8


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
    """Longest time from the end of an attempt until its machines are given back; no more than is kept for it."""
    restless: float = 0.0
    """How many changes of limit or prices people make in the time of a step."""
    late: float = 0.0
    """Longest time until an answer has reached the job; answers may overtake each other."""
    lost: float = 0.0
    """Chance that the controller is another one after its sleep, and that it is lost while it changes a price."""
    longest: int = 10**9
    """Steps of an attempt: people may give it money for years."""


@dataclass(frozen=True)
class Stop:
    """Of an attempt that the budget stopped."""

    reserve: Reserve
    whole: bool
    """Whether the money was enough to keep all of it."""
    fits: bool
    """Whether the last checkpoint was committed."""


@dataclass
class Driver:
    """The job's own side of an attempt."""

    plan: Resolved
    began: float
    own: HardDeadline
    reserve: Reserve
    """What its deadline was reckoned with."""
    heard: float
    """When it learned of its deadline."""
    ordered: bool = False
    answers: list[tuple[float, HardDeadline, Reserve]] = field(default_factory=list)
    """On their way: when they come."""
    steps: int = 0
    sent: int = 0
    told: Deadlines | None = None
    """What was sent last."""

    @property
    def forced(self) -> float:
        """When it ends by force."""
        return max(self.own.end, self.heard)

    def hear(self) -> None:
        """The next answer."""
        when, offered, reserve = min(self.answers, key=lambda answer: answer[0])
        self.answers.remove((when, offered, reserve))
        incarnation = self.plan.incarnation
        found, complaint = newest(self.own, Continue(hard_deadline=offered), incarnation=incarnation, began=self.began)
        assert complaint == ""
        if found is not None and found != self.own:
            self.own, self.reserve, self.heard = found, reserve, when


@dataclass
class World:
    """One job, from its first attempt until its money or its patience is at an end."""

    nature: Nature
    file: list[Price]
    """The price file."""
    limit: Decimal
    """In force."""
    now: float
    chance: Random
    story: Story = field(default_factory=Story)
    held: list[Held] = field(default_factory=list)
    tariffs: dict[int, Tariff] = field(default_factory=dict)
    stops: list[Stop] = field(default_factory=list)
    notes: list[BudgetNote] = field(default_factory=list)
    step: int = 0
    saved: int = 0
    raises: int = 0
    edits: int = 0

    @property
    def over_budget(self) -> bool:
        """Whether the last attempt was stopped by the budget."""
        last = self.story.events[-1]
        return isinstance(last, Ended) and last.outcome == "stopped"

    def live(self, attempts: int) -> None:
        """So many attempts at most."""
        spending = self._controller()
        for number in range(1, attempts + 1):
            left = self.limit - budget.spent(self.held, self.tariffs)
            if left <= 0:
                return
            tariff = self.tariffs[number] = tariff_from(self.file, UNITS, datetime.fromtimestamp(self.now, UTC))
            rates, reserve = tariff.rates, spending.pace.reserve
            plan = resolved(attempt=number, rate=rates[0], later_rates=rates[1:], money_left=left, reserve=reserve)
            until = plan.deadlines(self.now)
            if until is None or until.limit - self.now <= reserve.seconds:
                return  # the resolver starts nothing that cannot pay for its own stop
            own = hard_deadline(0, plan.incarnation, until)
            spending = self._attempt(Driver(plan, self.now, own, reserve, self.now), spending)
            self.now += self.chance.uniform(0, 30)  # nothing is held
            if self.over_budget:
                if self.chance.random() >= self.nature.restless:
                    return
                self._change_limit(None, self.now)
                self._take_over(spending)

    # ------------------------------------------------------------------ one attempt
    def _attempt(self, driver: Driver, spending: Spending) -> Spending:
        nature, chance, began = self.nature, self.chance, self.now
        next_look, next_change = began + chance.uniform(0, nature.look), self._pause(began)
        at, file = began + chance.uniform(0, 4 * nature.step), list(self.file)  # until the workers are up
        told, self.step = len(self.story.events), self.saved
        while True:
            # What happens until the next end of a step, in its order.
            while True:
                arrival = min((answer[0] for answer in driver.answers), default=at + 1)
                when = min(next_look, next_change, arrival, driver.forced, at)
                if when == at:
                    break
                if when == driver.forced:
                    self._stop(driver, when, fits=False)
                    return spending
                if when == arrival:
                    driver.hear()
                elif when == next_change:
                    self._change(driver, when)
                    next_change = self._pause(when)
                else:
                    spending.pace.add(event for event in self.story.events[told:] if event.time <= when)
                    told = len(self.story.events)
                    look, file = self._look(spending, driver, when, file)
                    driver.ordered = driver.ordered or look.stop
                    if look.end:
                        self._end(driver, when, "over-budget")
                        return spending
                    asleep = chance.random() < nature.sleeps
                    next_look += nature.look + (chance.uniform(0, nature.sleep) if asleep else 0.0)
                    if asleep and nature.lost and chance.random() < nature.lost:
                        spending, told = self._controller(), len(self.story.events)
            ended, at = self._step(driver, at)
            if ended:
                spending.pace.add(self.story.events[told:])
                return spending

    def _step(self, driver: Driver, at: float) -> tuple[bool, float]:
        """The end of one, and what follows from it; -> whether that was the last, and when the next one ends."""
        nature, chance, number = self.nature, self.chance, driver.plan.attempt
        if self.story.events and self.story.events[-1].attempt == number:
            self.step += 1
            self.story.progress(at, self.step, number)
        else:
            self.story.started(at, self.step, number)
        if driver.ordered or at >= driver.own.stop:
            done = at + chance.uniform(0, nature.save)
            fits = done <= driver.forced
            if fits:
                self._save(done, number, done - at)
            self._stop(driver, min(done, driver.forced), fits=fits)
            return True, at
        driver.steps += 1
        if chance.random() < nature.death or driver.steps > nature.longest:
            self._end(driver, at, "worker-lost")
            return True, at
        if self.step and self.step % nature.save_every == 0 and self.step > self.saved:
            done = at + chance.uniform(0, nature.save)
            if done >= driver.forced:
                return False, done
            self._save(done, number, done - at)
            at = done
        return False, at + chance.uniform(0.01, nature.step)

    def _stop(self, driver: Driver, at: float, *, fits: bool) -> None:
        whole = budget.kept(driver.own.limit - driver.began, driver.reserve) == driver.reserve.seconds
        self.stops.append(Stop(driver.reserve, whole, fits))
        self._end(driver, at, "over-budget")

    def _save(self, time: float, attempt: int, seconds: float) -> None:
        self.story.saved(time, self.step, seconds, attempt)
        self.saved = self.step

    def _end(self, driver: Driver, at: float, failure: str) -> None:
        """The machines go a little later, whatever the money says."""
        outcome, number = "stopped" if failure == "over-budget" else "failed", driver.plan.attempt
        self.story.ended(at, outcome, number, failure_class=failure)
        self.now = at + self.chance.uniform(0, self.nature.teardown)
        self.held.append(Held(number, driver.began, self.now))
        assert budget.spent(self.held, self.tariffs) <= self.limit

    # ------------------------------------------------------------------ the controller
    def _controller(self) -> Spending:
        """A new one, which knows what was written down."""
        spending = Spending(Budget(limit=format(self.limit, "f")), self.notes)
        spending.pace.add(self.story.events)
        return spending

    def _take_over(self, spending: Spending) -> None:
        if spending.budget.amount != self.limit:
            spending.change(Budget(limit=format(self.limit, "f")), budget.spent(self.held, self.tariffs))

    def _look(self, spending: Spending, driver: Driver, now: float, file: list[Price]) -> tuple[Look, list[Price]]:
        """-> what it finds, and the prices that it knows."""
        number, began = driver.plan.attempt, driver.began
        paid = self._paid(driver, now)
        if spending.budget.amount != self.limit:
            spending.change(Budget(limit=format(self.limit, "f")), paid)
        if file != self.file:
            since = now + spending.pace.reserve.seconds
            tariff = repriced(self.tariffs[number], self.file, now, since)
            until = spending.deadlines(paid, tariff, began, now)
            if self.chance.random() < self.nature.lost:  # in the middle of it, and what follows knows nothing of it
                if until.limit < driver.own.limit:
                    self._send(driver, until, spending.pace.reserve, now)
                else:
                    self.tariffs[number] = tariff
                return Look(), file
            self.tariffs[number] = tariff
        look = spending.look(paid, self.tariffs[number], began, now)
        if look.share is not None:
            self._note("share-spent", paid, now, share=float(look.share))
        if look.until is not None and self.nature.late and moved(driver.told, look.until):
            self._send(driver, look.until, spending.pace.reserve, now)
        return look, list(self.file)

    def _send(self, driver: Driver, until: Deadlines, reserve: Reserve, now: float) -> None:
        driver.sent, driver.told = driver.sent + 1, until
        deadline = hard_deadline(driver.sent, driver.plan.incarnation, until)
        driver.answers.append((now + self.chance.uniform(0, self.nature.late), deadline, reserve))

    def _paid(self, driver: Driver, now: float) -> Decimal:
        return budget.spent([*self.held, Held(driver.plan.attempt, driver.began, now)], self.tariffs)

    def _note(self, about: str, paid: Decimal, now: float, **fields: object) -> None:
        content = {"job": "u", "attempt": 1, "incarnation": "a", "seq": len(self.notes) + 1, "time": now}
        spent = format(paid.quantize(Decimal("0.000001"), "ROUND_DOWN"), "f")
        content |= {"about": about, "message": about, "spent": spent, "limit": format(self.limit, "f"), **fields}
        self.notes.append(BudgetNote.model_validate(content))

    # ------------------------------------------------------------------ people
    def _pause(self, now: float) -> float:
        rate = self.nature.restless / self.nature.step
        return now + self.chance.expovariate(rate) if rate else float("inf")

    def _change(self, driver: Driver, now: float) -> None:
        if self.chance.random() < 0.5:
            return self._change_limit(driver, now)
        factor, at = Decimal(self.chance.choice(["0.01", "0.5", "2", "100"])), self.chance.randrange(len(self.file))
        self.edits += 1
        self.file = [
            price.model_copy(update={"amount": _admitted(price.amount * factor)}) if index >= at else price
            for index, price in enumerate(self.file)
        ]

    def _change_limit(self, driver: Driver | None, now: float) -> None:
        """By the rules of `controller.limit`, which tells the job, too, if there is one."""
        pace = Pace.of(event for event in self.story.events if event.time <= now)
        paid, reserved = budget.spent(self.held, self.tariffs), Decimal(0)
        if driver is not None:
            paid, tariff = self._paid(driver, now), self.tariffs[driver.plan.attempt]
            reserved = budget.to_hold(tariff, now, pace.reserve.seconds)
        assert paid <= self.limit
        amount = self.limit * Decimal(self.chance.choice(["0.1", "0.6", "0.95", "1.1", "3"]))
        wanted = Budget(limit=format(amount.quantize(Decimal("0.000001"), "ROUND_UP"), "f"))
        with contextlib.suppress(UsageError):
            require(wanted, Account(self.limit, "USD", paid, reserved, driver is not None))
            self.limit = wanted.amount
            self.raises += 1
            self._note("limit-changed", paid, now)
            if driver is not None:
                until = budget.deadlines(self.limit - paid, tariff, now, pace.reserve, driver.began)
                self._send(driver, until, pace.reserve, now)


def _admitted(amount: Decimal) -> Decimal:
    """What a price file may hold; many edits in a row go beyond it."""
    return min(max(amount, Decimal("0.000001")), Decimal(1_000_000))
