"""A new limit for the budget of a run, also while it goes on. `fathom budget` is a face on it.

The limit in force stands in `job.json`, replaced as a whole under `job.lock`; the launcher that follows the run looks
there several times a second (`controller.purse`), and whoever resumes it begins with it. A launcher writes that file
only while nobody else can (`Record.change`), so that none ever takes a newer limit back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal

from orchestrator.controller.change import assigned, note_change
from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.controller.spending import Pace
from orchestrator.controller.teams import PATIENCE_SECONDS, require_more, reserve_more
from orchestrator.cost.budget import deadlines, to_hold
from orchestrator.errors import Conflict, UsageError
from orchestrator.launch import local
from orchestrator.settings import Settings
from orchestrator.spec import Budget, TrainingJob


@dataclass(frozen=True)
class Account:
    """What a run has of its money at a moment."""

    limit: Decimal | None
    """None: no budget."""
    currency: str
    spent: Decimal
    reserved: Decimal
    """What stopping will cost, if the run goes on."""
    running: bool

    @property
    def least(self) -> Decimal:
        """No limit may be below this."""
        return self.spent + self.reserved


def account(record: Record, now: float | None = None) -> Account:
    """Of a run as it is `now` (unix seconds, by default the clock's); UsageError if its record is damaged."""
    now = time.time() if now is None else now
    history, running = History(record), _runs(record)
    attempt, budget = record.folder.last_attempt(), record.job.spec.budget
    reserved = Decimal(0)
    if running and attempt and history.held:
        history.extend(now)  # the launcher writes down only now and then what is held
        reserved = to_hold(history.tariff(attempt), now, Pace.of(history.events).reserve.seconds)
    currency = budget.currency if budget else history.rate(attempt).currency if attempt else "USD"
    return Account(None if budget is None else budget.amount, currency, history.charged(), reserved, running)


def change_limit(
    record: Record, limit: str, settings: Settings, now: float | None = None, *, patience: float = PATIENCE_SECONDS
) -> Record:
    """The record with another limit, which is in force from now on, also for an attempt that runs.

    UsageError for one below what is spent and reserved; InvalidJob for what is no amount; OverBudget if the budget of
    the team does not allow it; Conflict if it is being changed by somebody else: TeamBusy, after `patience` seconds, if
    that is the money of its team.
    """
    with local.hold_lock(record.folder.job_lock):
        record = Record.open(record.folder.root)
        job, before = assigned(record.job, [f"budget.limit={limit}"]), account(record, now)
        budget = job.spec.budget
        assert budget is not None, "a limit was assigned"
        require(budget, before)
        with reserve_more(record, budget, settings, patience=patience):
            changed = _put(record, job, budget, now)
    return changed


def require_limit(record: Record, budget: Budget, settings: Settings, now: float | None = None) -> None:
    """Raises what `change_limit` would raise now, and changes nothing: for a wish that somebody else makes true."""
    require(budget, account(record, now))
    require_more(record, budget, settings)


def _put(record: Record, job: TrainingJob, budget: Budget, now: float | None) -> Record:
    """In force, and known to the job, in the order in which a crash in between costs no money that is not there; the
    launcher would tell the job, too, if there is one."""
    old, history = record.job.spec.budget, History(record)
    lower = old is None or budget.amount < old.amount
    if lower:
        _tell(record, history, budget, now)
    changed = record.with_job(job)
    if not lower:
        _tell(record, history, budget, now)
    note_change(changed, record.job, history)
    return changed


def _tell(record: Record, history: History, limit: Budget, now: float | None) -> None:
    """The job that runs, its deadline."""
    attempt = record.folder.last_attempt()
    if not (attempt and history.held and _runs(record)):
        return
    now = time.time() if now is None else now
    history.extend(now)
    left, reserve = limit.amount - history.charged(), Pace.of(history.events).reserve
    until = deadlines(left, history.tariff(attempt), now, reserve, history.held[-1].start)
    local.give_deadline(record.folder, history.resolved(attempt).incarnation, until)


def require(budget: Budget, before: Account) -> None:
    """UsageError unless the limit may be that."""
    if budget.currency != before.currency:
        raise UsageError(
            f"budget.currency is {budget.currency}, but the run is paid in {before.currency}: it cannot change"
        )
    if budget.amount < before.least:
        stopping = f" and the {before.reserved:.6f} that stopping costs" if before.reserved else ""
        raise UsageError(
            f"budget.limit={budget.limit} is below the {before.spent:.6f} {budget.currency} that are spent{stopping}: "
            f"give at least {before.least:.6f}"
        )


def _runs(record: Record) -> bool:
    try:
        return local.running(record.folder) is not None
    except Conflict:
        return True
