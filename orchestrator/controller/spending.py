"""The budget of a run in the hands of its launcher: what was measured of it, and what the money asks for now.

Feed it all events, then look again and again. Decides by `cost.budget`; starts and stops nothing itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from orchestrator.cost import budget
from orchestrator.cost.budget import Deadlines
from orchestrator.cost.meter import money
from orchestrator.cost.tariff import Tariff
from orchestrator.launch.events import BudgetNote, CheckpointCommitted, Event, Progress, Started
from orchestrator.spec import Budget

OVER_BUDGET = "over-budget"
"""The reason of an order to stop; see `launch.entry.how_it_ended`."""


@dataclass
class Pace:
    """How long this job takes to hear an order and to save, by its own events."""

    saves: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    """Seconds from the end of a step to the commit of its checkpoint, the part beside training included."""
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    """Seconds between steps, with what stands between them: workers look for an order at each."""
    _ends: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=1000))

    @classmethod
    def of(cls, events: Iterable[Event]) -> Pace:
        """By these events."""
        pace = cls()
        pace.add(events)
        return pace

    def add(self, events: Iterable[Event]) -> None:
        """Take events into account."""
        for event in events:
            if isinstance(event, Started):
                self._ends.clear()
            elif isinstance(event, Progress):
                if self._ends:
                    self.gaps.append(max(0.0, event.time - self._ends[-1][1]))
                self._ends.append((event.step, event.time))
            elif isinstance(event, CheckpointCommitted):
                ended = next((time for step, time in reversed(self._ends) if step == event.step), event.time)
                self.saves.append(max(event.seconds, event.time - ended))

    @property
    def reserve(self) -> budget.Reserve:
        """What is needed from an order to stop until the machines are given back."""
        usual = budget.Reserve()
        return budget.Reserve(
            heartbeat=max([usual.heartbeat, *self.gaps]),
            save=budget.percentile_95(self.saves, usual.save),
        )


@dataclass(frozen=True)
class Look:
    """What the money asks for at one moment."""

    share: Decimal | None = None
    """Of the limit: a person should be told now that it is spent."""
    stop: bool = False
    """A final checkpoint now, or it would not fit any more."""
    end: bool = False
    """By force, now: the job should have done so itself."""
    until: Deadlines | None = None
    """When the attempt must stop, by this reckoning; None without a budget."""


class Spending:
    """Of one job, one attempt after the other."""

    def __init__(self, limit: Budget, notes: Iterable[BudgetNote] = ()) -> None:
        """`notes`: what was said of the money before, by any launcher: no share of a limit is told twice."""
        self.budget = limit
        self._told = Decimal(0)
        for note in notes:
            if note.about == "share-spent" and note.share is not None:
                self._told = _exact(note.share)
            elif note.about == "limit-changed" and note.limit is not None and note.spent is not None:
                self._forget(Decimal(note.spent), Decimal(note.limit))
        self.pace = Pace()

    def change(self, limit: Budget, paid: Decimal) -> None:
        """Another limit is in force, when so much is spent."""
        self.budget = limit
        self._forget(paid, limit.amount)

    def look(self, paid: Decimal, tariff: Tariff, began: float, now: float) -> Look:
        """At this moment, when all attempts together have cost `paid` and the present one has gone on since `began`."""
        limit, until = self.budget.amount, self.deadlines(paid, tariff, began, now)
        return Look(
            share=self._share(paid),
            until=until,
            stop=budget.must_stop(paid, limit, tariff, now, budget.kept(until.limit - began, self.pace.reserve)),
            end=now >= (until.end + until.limit) / 2,  # the job's own deadline comes first
        )

    def deadlines(self, paid: Decimal, tariff: Tariff, began: float, now: float) -> Deadlines:
        """Of the present attempt, as it looks at this moment."""
        return budget.deadlines(self.budget.amount - paid, tariff, now, self.pace.reserve, began)

    def _share(self, paid: Decimal) -> Decimal | None:
        share = budget.passed(paid, self.budget.amount, self._shares, self._told)
        if share is not None:
            self._told = share
        return share

    def _forget(self, paid: Decimal, limit: Decimal) -> None:
        """Of shares that were told those stand that are spent of the new limit, too."""
        told = [share for share in self._shares if share <= self._told and paid >= share * limit]
        self._told = max(told, default=Decimal(0))

    @property
    def _shares(self) -> list[Decimal]:
        return [_exact(share) for share in self.budget.warn_at]


def words(share: Decimal, paid: Decimal, limit: Budget) -> str:
    """How a person is told."""
    spent, of = money(paid, limit.currency), money(limit.amount, limit.currency)
    return f"{(share * 100).normalize():f}% of the budget is spent: {spent} of {of}"


def _exact(share: float) -> Decimal:
    """The shortest decimal that stands for the float: 0.95, not 0.9499999."""
    return Decimal(str(share))
