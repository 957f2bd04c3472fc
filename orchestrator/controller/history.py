"""What a run has gone through, in the hands of its launcher: its events, when it held devices, and what that cost."""

from __future__ import annotations

import math
import os
import time
from decimal import ROUND_DOWN, Decimal

from pydantic import TypeAdapter, ValidationError

from orchestrator.controller.observe import Observation
from orchestrator.controller.record import Record
from orchestrator.controller.report import training_flops
from orchestrator.cost import budget
from orchestrator.cost.ledger import Ledger, Owner, build_ledger
from orchestrator.cost.meter import Rate, Spent, total
from orchestrator.cost.tariff import Tariff
from orchestrator.cost.timeline import Held
from orchestrator.errors import UsageError
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import (
    BudgetNote,
    CheckpointCommitted,
    Ended,
    Evaluated,
    Event,
    EventLog,
    FailureClass,
    Progress,
    Started,
)
from orchestrator.launch.failure import Verdict
from orchestrator.launch.files import in_short, replace_file
from orchestrator.launch.resolve import Resolved, read_resolved

_NO_DRIVERS = (Evaluated, BudgetNote)
"""Events that come from no driver, and say nothing of its life."""
_NOTES = "launcher"
"""Incarnation of words on money: they have numbers of their own, since a driver in a cluster counts its own events."""

_VERDICT: TypeAdapter[Verdict] = TypeAdapter(Verdict)
_LONGEST = 1000
"""Characters of a refined last word."""


class History:
    """Grows while the run is followed. Each attempt is priced by its own tariff: the one that it was started with, or
    what became of that when prices were changed."""

    def __init__(self, record: Record) -> None:
        """UsageError if a file of the record is damaged."""
        self._record, self._folder = record, record.folder
        self._log = EventLog(self._folder.events)
        self._offset = 0
        self.events: list[Event] = []
        self._ends: dict[int, Ended] = {}
        """By attempt; events may be a hundred thousand, and this is asked for several times a second."""
        self.saved: set[int] = set()
        """Attempts that have committed a checkpoint."""
        self._notes: list[BudgetNote] = []
        self.observation = Observation(steps=0)
        self.held = record.held()
        self._kept: list[Held] = []
        self._resolved: dict[int, Resolved] = {}
        self._tariffs: dict[int, Tariff] = {}
        self.read()
        self.close_held()

    def refresh(self) -> None:
        """Take in what another History, that of the launcher, has written since."""
        self.read()
        self._tariffs.clear()  # after the events: what they tell of prices stands there already
        self.held = self._record.held()
        self.close_held()

    def read(self) -> list[Event]:
        """New events; what a driver of an earlier attempt still says is left out, since it no longer counts.

        An evaluation comes from no driver, and no word on money: they are kept, whichever attempt they stand beside.
        """
        if self._is_read():
            return []
        found, self._offset = self._log.read(self._offset)
        news = []
        for said in found:
            event = _refined(said, self._folder) if isinstance(said, Ended) else said
            if isinstance(event, _NO_DRIVERS) or event.attempt >= self.observation.attempt:
                self.observation.add(event)
                self._index(event)
                news.append(event)
        self.events += news
        return news

    def _is_read(self) -> bool:
        """Whether nothing was written since, without opening the file."""
        try:
            return os.stat(self._folder.events).st_size == self._offset
        except FileNotFoundError:
            return self._offset == 0

    def _index(self, event: Event) -> None:
        if isinstance(event, Ended):
            self._ends[event.attempt] = event
        elif isinstance(event, CheckpointCommitted):
            self.saved.add(event.attempt)
        elif isinstance(event, BudgetNote):
            self._notes.append(event)

    def end(self, resolved: Resolved, outcome: str, failure: FailureClass, message: str, *, at: float | None) -> None:
        """Write an attempt's last event, which its driver has not written; `at` None: now."""
        steps = [e.step for e in self._of(resolved.attempt) if isinstance(e, Started | Progress)]
        self._log.append(
            "ended",
            job=self._record.uid,
            attempt=resolved.attempt,
            incarnation=resolved.incarnation,
            time=at,
            outcome=outcome,
            failure_class=failure,
            message=message,
            step=max(steps, default=None),
        )
        self.read()

    def refine(self, attempt: int, verdict: Verdict) -> None:
        """Keep what those say who watched an attempt, where that tells more than its driver's last word. The file of
        events stays as the driver wrote it; all that is read of it says it from now on."""
        ended = self._ends.get(attempt)
        if ended is None or not verdict.refines(ended.failure_class):
            return
        replace_file(self._folder.seen(attempt), _VERDICT.dump_json(verdict).decode(), durable=True)
        known = self._ends[attempt] = _refined(ended, self._folder)
        self.events = [known if event is ended else event for event in self.events]
        if self.observation.ended is ended:
            self.observation.ended = known

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
        """Its last event, once that is written, with what was seen from outside."""
        return self._ends.get(attempt)

    def _of(self, attempt: int) -> list[Event]:
        return [event for event in self.events if event.attempt == attempt and not isinstance(event, _NO_DRIVERS)]

    # ------------------------------------------------------------------ time and money
    def hold(self, attempt: int, began: float, now: float) -> None:
        """An attempt holds devices from now on."""
        if not self.held or self.held[-1].attempt != attempt:
            self.held.append(Held(attempt, began, now))

    def hold_anew(self, attempt: int, now: float) -> None:
        """An attempt is started now; if it was written down before and never started, it has held nothing."""
        self.held = [one for one in self.held if one.attempt != attempt]
        self.held.append(Held(attempt, now, now))

    def begin(self, attempt: int, began: float) -> None:
        """It holds machines since then, by the word of those who gave them; until now that was a guess."""
        last = self.held[-1]
        if last.attempt == attempt and last.start != began:
            self.held[-1] = Held(attempt, began, max(last.end, began))

    def let_go(self, attempt: int, at: float) -> None:
        """It held machines until then, by the same word."""
        last = self.held[-1]
        if last.attempt == attempt and last.end != at:
            self.held[-1] = Held(attempt, last.start, max(last.start, at))

    def extend(self, now: float) -> None:
        """The last attempt holds its devices still."""
        last = self.held[-1]
        self.held[-1] = Held(last.attempt, last.start, max(last.end, now))

    def keep_held(self) -> None:
        """Write it down, if it is not as it was written last: that waits for a disk."""
        if self.held != self._kept:
            self._record.save_held(self.held)
            self._kept = list(self.held)

    def close_held(self) -> None:
        """Up to the last word of its driver, if that went on after an earlier launcher had died, or while this one was
        stopped; but a word from the future holds nothing: it is a clock that was wrong. Of an attempt in a cluster no
        word of its driver counts: the cluster says what it held."""
        if self.held and not self._folder.ray_job(self.held[-1].attempt).exists():
            last = self.held[-1]
            word = self.last_word(last.attempt) or last.end
            self.held[-1] = Held(last.attempt, last.start, max(last.end, min(word, time.time())))

    def resolved(self, attempt: int) -> Resolved:
        """What was decided for an attempt; UsageError if that cannot be read."""
        if attempt not in self._resolved:
            self._resolved[attempt] = read_resolved(self._folder.resolved(attempt))
        return self._resolved[attempt]

    def decided(self, resolved: Resolved) -> None:
        """An attempt as its file has it from now on: it need not be read."""
        self._resolved[resolved.attempt] = resolved

    def rate(self, attempt: int) -> Rate:
        """What an hour of an attempt cost when it was started."""
        return self.resolved(attempt).rate

    def tariff(self, attempt: int) -> Tariff:
        """What an attempt pays, as that changes with time."""
        if attempt not in self._tariffs:
            self._tariffs[attempt] = changed_tariff(self._folder, attempt) or self.resolved(attempt).tariff
        return self._tariffs[attempt]

    def reprice(self, attempt: int, tariff: Tariff) -> None:
        """An attempt pays by this tariff, which says of the past what the one before said."""
        replace_file(self._folder.tariff(attempt), tariff.model_dump_json(indent=1), durable=True)
        self._tariffs[attempt] = tariff

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
            tariffs.get(resolved.attempt, resolved.tariff),
            tariffs,
            flops_per_token=training_flops(resolved.recipe),
            owner=Owner(job=resolved.job.name, team=resolved.job.namespace, uid=resolved.job.uid),
        ).model_copy(update={"limit": self.limit})

    # ------------------------------------------------------------------ the budget
    @property
    def limit(self) -> Decimal | None:
        """Of the budget, as it was changed last."""
        changes = (event.limit for event in reversed(self._notes) if event.about == "limit-changed")
        if (changed := next(changes, None)) is not None:
            return Decimal(changed)
        return None if (first := self._record.job.spec.budget) is None else first.amount

    def notes(self) -> list[BudgetNote]:
        """What was said of the money, in its order."""
        return list(self._notes)

    def note(
        self, about: str, message: str, *, spent: Decimal, limit: str | None = None, share: float | None = None
    ) -> None:
        """Say something of the money beside the newest attempt; OSError if it cannot be written."""
        resolved = self.resolved(self._folder.last_attempt())
        self._log.append(
            "budget",
            job=self._record.uid,
            attempt=resolved.attempt,
            incarnation=_NOTES,
            about=about,
            message=message,
            spent=format(spent.quantize(Decimal(1).scaleb(-6), ROUND_DOWN), "f"),
            limit=limit,
            share=share,
        )


def _refined(ended: Ended, folder: RunFolder) -> Ended:
    """A file that cannot be read tells nothing more."""
    try:
        seen = _VERDICT.validate_json(folder.seen(ended.attempt).read_bytes())
    except (OSError, ValidationError):
        return ended
    if not seen.refines(ended.failure_class):
        return ended
    return ended.model_copy(
        update={"failure_class": seen.failure, "message": f"{seen.message} ({ended.message})"[:_LONGEST]}
    )


def ledger_of(record: Record) -> Ledger | None:
    """Where each second and dollar of a run went, as its files say now; None if no attempt was ever prepared.

    UsageError if a file of the record is damaged.
    """
    last = record.folder.last_attempt()
    if not last:
        return None
    try:
        history = History(record)
    except OSError as error:
        raise UsageError(f"{record.folder.events} cannot be read: {error.strerror}") from None
    return history.ledger(history.resolved(last))


def changed_tariff(folder: RunFolder, attempt: int) -> Tariff | None:
    """What an attempt pays, if the price was changed while it ran; UsageError if that cannot be read."""
    path = folder.tariff(attempt)
    try:
        return Tariff.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read: {in_short(error)}; it says what attempt {attempt} pays: put it back from a "
            "backup, or remove it to count with the price that the attempt was started with"
        ) from None
