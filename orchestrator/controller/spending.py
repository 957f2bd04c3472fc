"""The budget of a run in the hands of its launcher: what was measured of it, and what the money asks for now.

Feed it all events, then look again and again. Decides by `cost.budget`; starts and stops nothing itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from orchestrator.cost import budget
from orchestrator.cost.meter import money
from orchestrator.cost.tariff import Tariff
from orchestrator.launch.events import CheckpointCommitted, Event, Progress, Started
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

    warning: str | None = None
    stop: bool = False
    """A final checkpoint now, or it would not fit any more."""
    end: bool = False
    """By force, now: the job should have done so itself."""


class Spending:
    """Of one job, one attempt after the other."""

    def __init__(self, limit: Budget) -> None:
        self._limit = limit
        self._told = Decimal(0)
        self.pace = Pace()

    def look(self, paid: Decimal, tariff: Tariff, began: float, now: float) -> Look:
        """At this moment, when all attempts together have cost `paid` and the present one has gone on since `began`."""
        limit, reserve = self._limit.amount, self.pace.reserve
        until = budget.deadlines(limit - paid, tariff, now, reserve, began)
        return Look(
            warning=self._warning(paid),
            stop=budget.must_stop(paid, limit, tariff, now, budget.kept(until.limit - began, reserve)),
            end=now >= (until.end + until.limit) / 2,  # the job's own deadline comes first
        )

    def _warning(self, paid: Decimal) -> str | None:
        share = budget.passed(paid, self._limit.amount, self._told)
        if share is None:
            return None
        self._told = share
        limit, currency = self._limit.amount, self._limit.currency
        return f"{share:.0%} of the budget is spent: {money(paid, currency)} of {money(limit, currency)}"
