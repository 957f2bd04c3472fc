"""The money of a run in the hands of its launcher: limit and price, as they change while the run goes on.

Asked several times a second. The limit is that of `job.json`, which `controller.limit` changes; prices are those of
FATHOM_PRICES: another one counts from when the job could have stopped at the old one. Whenever the reckoning of the
deadline moves, the driver is told (`local.give_deadline`), so that the limit in force holds with this process gone.
Invariant: what cannot be read changes nothing, and is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

from orchestrator.controller.files import WatchedFile
from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.controller.spending import Look, Pace, Spending, words
from orchestrator.cost.budget import Deadlines, Reserve
from orchestrator.cost.tariff import Tariff, repriced
from orchestrator.errors import FathomError, UsageError
from orchestrator.launch import local
from orchestrator.launch.events import Event
from orchestrator.launch.resolve import Resolved
from orchestrator.plan.prices import PriceBook
from orchestrator.settings import Settings
from orchestrator.spec import Budget

_CALM_SECONDS, _CLOSE_SECONDS = 1.0, 5.0
"""So long a reckoning stands where all that it was made of does, unless the stop is as close as the second."""
_LIMIT_SECONDS, _STOP_SECONDS = 1e-3, 1.0
"""Differences of a reckoning that the driver need not hear of: rounding, and what stopping takes by newer steps."""


@dataclass(frozen=True)
class _Reckoning:
    """What was found at a moment, and what it was made of."""

    at: float
    of: tuple[str, float, Budget, Reserve, Tariff]
    """Incarnation, how far the clock is ahead, limit, what stopping takes, prices."""
    look: Look

    def stands(self, now: float, of: tuple[str, float, Budget, Reserve, Tariff]) -> bool:
        """Whether nothing else would be found now: with all else as it was, the money is gone at the same moment."""
        calm, until = 0.0 <= now - self.at < _CALM_SECONDS, self.look.until
        return calm and until is not None and now + _CLOSE_SECONDS < until.stop and of == self.of


class Purse:
    """Of one run, one attempt after the other."""

    def __init__(
        self, record: Record, settings: Settings, history: History, say: Callable[[str], None], *, remote: bool = False
    ) -> None:
        """`remote`: the driver does not know since when its attempt is paid for; its deadline is told to it."""
        self._remote = remote
        self.record = record
        """With the budget that is in force now."""
        self._history, self._say = history, say
        self._job = WatchedFile(record.folder.job)
        self._file = None if settings.price_file is None else WatchedFile(settings.price_file, patient=True)
        self._ahead = 0.0
        self._prices: PriceBook | None = None
        """The last ones that could be read here."""
        self._given: tuple[str, Deadlines | None] | None = None
        """Incarnation, and what it knows of its deadline."""
        self._reckoned: _Reckoning | None = None
        self._told: set[str] = set()
        budget = record.job.spec.budget
        self._spending = None if budget is None else self._spend(budget)

    @property
    def budget(self) -> Budget | None:
        """In force now."""
        return self.record.job.spec.budget

    def add(self, events: Iterable[Event]) -> None:
        """Events of the run, each once."""
        if self._spending is not None:
            self._spending.pace.add(events)

    def look(self, resolved: Resolved, now: float, ahead: float = 0.0) -> Look:
        """What the money asks for at this moment, while the attempt `resolved` holds its devices.

        `ahead`: seconds that `now` is before the clock of the job, after that was set back.
        """
        self._ahead = ahead
        self.follow_limit()
        self._follow_prices(resolved, now)
        spending, history = self._spending, self._history
        if spending is None:
            return Look()
        tariff, began = history.tariff(resolved.attempt), history.held[-1].start
        of = (resolved.incarnation, ahead, spending.budget, spending.pace.reserve, tariff)
        if self._reckoned is not None and self._reckoned.stands(now, of):
            return self._reckoned.look
        paid = history.charged()
        look = spending.look(paid, tariff, began, now)
        self._reckoned = _Reckoning(now, of, replace(look, share=None))
        if look.share is not None:
            said = words(look.share, paid, spending.budget)
            self._note("share-spent", said, paid, share=float(look.share))
        if look.until is not None:
            self._tell(resolved, began, look.until)
        return look

    def follow_limit(self) -> None:
        """Take over the budget of `job.json`, if somebody has changed it."""
        if not self._job.changed():
            return
        try:
            found = Record.open(self.record.folder.root).job.spec.budget
        except FathomError as error:
            return self._once(f"{error}; the budget of before stays in force")
        if found == self.budget:
            return
        if found is None:
            return self._once(f"{self._job.path} has no budget any more; that of before stays in force")
        if self.budget is not None and found.currency != self.budget.currency:
            return self._once(f"{self._job.path} has a budget in {found.currency}; that of before stays in force")
        spec = self.record.job.spec.model_copy(update={"budget": found})
        self.record = replace(self.record, job=self.record.job.model_copy(update={"spec": spec}))
        if self._spending is None:
            self._spending = self._spend(found)
        else:
            self._spending.change(found, self._history.charged())

    def prices_now(self) -> PriceBook | None:
        """For the next attempt: those of the file, or the last ones that could be read; None without a file."""
        if self._file is not None:
            try:
                self._prices = PriceBook.load(self._file.path)
            except UsageError as error:
                if self._prices is None:
                    raise
                self._once(f"{error}; the prices of before stay in force")
        return self._prices

    def _spend(self, budget: Budget) -> Spending:
        spending = Spending(budget, self._history.notes())
        spending.pace.add(self._history.events)
        return spending

    # ------------------------------------------------------------------ prices
    def _follow_prices(self, resolved: Resolved, now: float) -> None:
        """What the price file says from now on, if somebody has changed it."""
        if self._file is None or not self._file.changed():
            return
        compute, before = self.record.job.spec.compute, self._history.tariff(resolved.attempt)
        since = now + Pace.of(self._history.events).reserve.seconds
        try:
            book = PriceBook.load(self._file.path)
            after = repriced(before, book.history(compute.accelerator, compute.price_class), now, since)
        except (UsageError, ValueError) as error:
            return self._once(f"{error}; the prices of before stay in force")
        self._prices = book
        if after == before:
            return
        try:
            self._reprice(resolved, after, now)
        except OSError as error:
            self._file.again()
            return self._once(f"the new price could not be written down, it is tried again: {error}")
        self._note("price-changed", _news(before, after, since), self._history.charged())

    def _reprice(self, resolved: Resolved, tariff: Tariff, now: float) -> None:
        """In the order in which a crash in between costs no money that is not there: an earlier deadline is given
        before the price counts, a later one after it (by `look`)."""
        if self._spending is not None:
            began = self._history.held[-1].start
            until = self._by_its_clock(self._spending.deadlines(self._history.charged(), tariff, began, now))
            known = self._known(resolved, began)
            if known is None or until.limit < known.limit:
                local.give_deadline(self.record.folder, resolved.incarnation, until)
                self._given = (resolved.incarnation, until)
        self._history.reprice(resolved.attempt, tariff)

    # ------------------------------------------------------------------ the driver
    def _tell(self, resolved: Resolved, began: float, until: Deadlines) -> None:
        """Its deadline, if that has moved since it was told, by whomever."""
        until = self._by_its_clock(until)
        if not moved(self._known(resolved, began), until):
            return
        try:
            local.give_deadline(self.record.folder, resolved.incarnation, until)
        except OSError as error:  # tried again at the next look
            return self._once(f"the newer deadline could not be given to the job: {error}")
        self._given = (resolved.incarnation, until)

    def _by_its_clock(self, until: Deadlines) -> Deadlines:
        return Deadlines(until.stop - self._ahead, until.end - self._ahead, until.limit - self._ahead)

    def _known(self, resolved: Resolved, began: float) -> Deadlines | None:
        """What the job knows of its deadline."""
        if self._given is None or self._given[0] != resolved.incarnation:
            told = local.given_deadline(self.record.folder, resolved.incarnation)
            reckoned = None if self._remote else resolved.deadlines(began)
            known = Deadlines(told.stop, told.end, told.limit) if told else reckoned
            self._given = (resolved.incarnation, known)
        return self._given[1]

    def _note(self, about: str, message: str, paid: Decimal, share: float | None = None) -> None:
        """Among the events, from where it is told to a person; at once if it cannot be written there."""
        limit = None if self.budget is None else self.budget.limit
        try:
            self._history.note(about, message, spent=paid, limit=limit, share=share)
        except OSError:
            self._say(message)

    def _once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._say(message)


def moved(known: Deadlines | None, until: Deadlines) -> bool:
    """Whether the job must hear of a newer reckoning."""
    if known is None:
        return True
    stop, end = abs(known.stop - until.stop), abs(known.end - until.end)
    return abs(known.limit - until.limit) > _LIMIT_SECONDS or max(stop, end) > _STOP_SECONDS


def _news(before: Tariff, after: Tariff, since: float) -> str:
    old, new = before.at(since), after.at(since)
    if old.per_hour == new.per_hour:
        return f"prices to come have changed; it stays at {new.per_hour} {new.currency} per hour for now"
    at = datetime.fromtimestamp(since, UTC).strftime("%H:%M:%S UTC")
    return f"the price is {new.per_hour} {new.currency} per hour from {at} on, not {old.per_hour} ({new.source})"
