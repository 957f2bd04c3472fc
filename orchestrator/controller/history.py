"""What a run has gone through, in the hands of its launcher: its events, when it held devices, and what that cost."""

from __future__ import annotations

import math
from decimal import Decimal

from orchestrator.controller.observe import Observation
from orchestrator.controller.record import Record
from orchestrator.controller.report import training_flops
from orchestrator.cost import budget
from orchestrator.cost.ledger import Ledger, Owner, build_ledger
from orchestrator.cost.meter import Rate, Spent, total
from orchestrator.cost.tariff import Tariff
from orchestrator.cost.timeline import Held
from orchestrator.launch.events import Ended, Evaluated, Event, EventLog, FailureClass, Progress, Started
from orchestrator.launch.resolve import Resolved, read_resolved


class History:
    """Grows while the run is followed. Each attempt is priced by the tariff that it was started with."""

    def __init__(self, record: Record) -> None:
        """UsageError if a file of the record is damaged."""
        self._record, self._folder = record, record.folder
        self._log = EventLog(self._folder.events)
        self._offset = 0
        self.events: list[Event] = []
        self.observation = Observation(steps=0)
        self.held = record.held()
        self._resolved: dict[int, Resolved] = {}
        self.read()
        self._close_held()

    def refresh(self) -> None:
        """Take in what another History, that of the launcher, has written since."""
        self.read()
        self.held = self._record.held()
        self._close_held()

    def read(self) -> list[Event]:
        """New events; what a driver of an earlier attempt still says is left out, since it no longer counts.

        An evaluation comes from no driver: it is kept, whichever attempt wrote the state that was evaluated.
        """
        found, self._offset = self._log.read(self._offset)
        news = []
        for event in found:
            if isinstance(event, Evaluated) or event.attempt >= self.observation.attempt:
                self.observation.add(event)
                news.append(event)
        self.events += news
        return news

    def end(self, resolved: Resolved, outcome: str, failure: FailureClass, message: str, *, time: float | None) -> None:
        """Write an attempt's last event, which its driver has not written; `time` None: now."""
        steps = [e.step for e in self._of(resolved.attempt) if isinstance(e, Started | Progress)]
        self._log.append(
            "ended",
            job=self._record.uid,
            attempt=resolved.attempt,
            incarnation=resolved.incarnation,
            time=time,
            outcome=outcome,
            failure_class=failure,
            message=message,
            step=max(steps, default=None),
        )
        self.read()

    def has_ended(self, attempt: int) -> bool:
        """Whether its last event is written."""
        return self.end_of(attempt) is not None

    def last_word(self, attempt: int) -> float | None:
        """When the attempt was last known to hold its devices, or to say something.

        The load of its machine is its driver's word; what was evaluated later, by whomever, is not.
        """
        held = [one.end for one in self.held if one.attempt == attempt]
        return max([*held, *(event.time for event in self._of(attempt))], default=None)

    def end_of(self, attempt: int) -> Ended | None:
        """Its last event, once that is written."""
        ends = [event for event in self._of(attempt) if isinstance(event, Ended)]
        return ends[-1] if ends else None

    def _of(self, attempt: int) -> list[Event]:
        return [event for event in self.events if event.attempt == attempt and not isinstance(event, Evaluated)]

    # ------------------------------------------------------------------ time and money
    def hold(self, attempt: int, began: float, now: float) -> None:
        """An attempt holds devices from now on."""
        if not self.held or self.held[-1].attempt != attempt:
            self.held.append(Held(attempt, began, now))

    def extend(self, now: float) -> None:
        """The last attempt holds its devices still."""
        last = self.held[-1]
        self.held[-1] = Held(last.attempt, last.start, max(last.end, now))

    def _close_held(self) -> None:
        """Up to the last word of its driver, if that went on after an earlier launcher had died."""
        if self.held:
            last = self.held[-1]
            self.held[-1] = Held(last.attempt, last.start, self.last_word(last.attempt) or last.end)

    def resolved(self, attempt: int) -> Resolved:
        """What was decided for an attempt; UsageError if that cannot be read."""
        if attempt not in self._resolved:
            self._resolved[attempt] = read_resolved(self._folder.resolved(attempt))
        return self._resolved[attempt]

    def rate(self, attempt: int) -> Rate:
        """What an hour of an attempt cost when it was started."""
        return self.resolved(attempt).rate

    def tariff(self, attempt: int) -> Tariff:
        """What an attempt pays, as that changes with time."""
        return self.resolved(attempt).tariff

    def spent_at(self, moment: float) -> Spent:
        """What all attempts together had used up at a moment."""
        parts = [self.tariff(h.attempt).spent(h.start, min(moment, h.end)) for h in self.held]
        return total(parts, self._currency())

    def _currency(self) -> str:
        last = self._folder.last_attempt()
        return self.rate(last).currency if last else "USD"

    def paid(self) -> Decimal:
        """What was spent so far, by the meter."""
        return self.spent_at(math.inf).amount

    def charged(self) -> Decimal:
        """What was spent so far, as the budget counts it."""
        return budget.spent(self.held, {one.attempt: self.tariff(one.attempt) for one in self.held})

    def ledger(self, resolved: Resolved) -> Ledger:
        """Where each second and dollar went; `resolved` is the present attempt."""
        tariffs = {one.attempt: self.tariff(one.attempt) for one in self.held}
        return build_ledger(
            self.events,
            self.held,
            resolved.tariff,
            tariffs,
            flops_per_token=training_flops(resolved.recipe),
            owner=Owner(job=resolved.job.name, team=resolved.job.namespace, uid=resolved.job.uid),
        )
