"""A team's money on this machine: what a run may spend is reserved before it starts.

The team is the job's namespace, its account are the folders of its runs. A run keeps its reservation (`reserved.json`)
while it goes on: while a launcher follows it or its driver lives; what it has not spent then is free again. Invariant:
a reservation is read, granted and written under the lock of the team, so that of two launches at once only those are
granted that fit together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from orchestrator.controller.departed import MARKS, departed, is_run
from orchestrator.controller.history import History, changed_tariff
from orchestrator.controller.record import Record
from orchestrator.controller.sync import driver_lives, is_followed
from orchestrator.cost import budget as budgets
from orchestrator.cost.book import Account, Book, book_of, plain
from orchestrator.cost.tariff import Tariff
from orchestrator.cost.teams import TeamLimit, read_teams
from orchestrator.errors import Conflict, FathomError, OverBudget, UsageError
from orchestrator.launch import local
from orchestrator.launch.base import RunFolder
from orchestrator.launch.files import replace_file
from orchestrator.launch.locks import locked
from orchestrator.launch.resolve import read_resolved
from orchestrator.settings import Settings
from orchestrator.spec import Budget, TrainingJob
from orchestrator.status import Phase

PATIENCE_SECONDS = 60.0
_SETTLED_SECONDS = 2.0
"""A run that was changed so recently is read again: the clocks of file systems are coarse."""
_OVER = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED, Phase.SUSPENDED)


@dataclass(frozen=True)
class _Known:
    """Of a run as it was read."""

    mark: tuple[int, ...]
    team: str
    account: Account | None = None
    """Of one that is over."""


_KNOWN: dict[Path, _Known] = {}
"""By folder: whoever has thousands of runs would read them all each time that a job waits for its team's money."""


def require_leave(job: TrainingJob, settings: Settings) -> None:
    """OverBudget if the job could not start now. Reserves nothing: `reserve` does, once the job is a run."""
    if (team := _team(job, settings)) is not None:
        _reserved(team, accounts(settings.home, job.metadata.namespace), job.metadata.name, job.spec.budget)


def reserve(record: Record, settings: Settings) -> None:
    """Before a run starts, in the hands of its launcher; OverBudget if the team's money does not allow it."""
    team = _team(record.job, settings)
    if team is None:
        record.folder.reserved.unlink(missing_ok=True)
        return
    with local.hold_lock(record.folder.job_lock), _lock(settings.home, team.team):
        record = Record.open(record.folder.root)  # with the limit that nobody changes meanwhile
        others = accounts(settings.home, team.team, but=record.folder.root)
        own = [_account(record, reserved=None)]
        _reserved(team, [*others, *own], _name(record), record.job.spec.budget)
        assert record.job.spec.budget is not None, "what has none is refused"
        _write(record.folder, record.job.spec.budget)


@contextmanager
def reserve_more(record: Record, budget: Budget, settings: Settings) -> Iterator[None]:
    """While the limit of a run is changed to `budget`: OverBudget if it is more than before and its team's money does
    not allow that; what is reserved is written when the change is made. A run that does not go on reserves when it
    starts again."""
    team = _team(record.job, settings)
    if team is None or not _goes_on(record.folder):
        yield
        return
    with _lock(settings.home, team.team):
        reserved = _read(record.folder)
        _require_more(team, record, budget, settings)
        if reserved is None or reserved < budget.amount:
            _write(record.folder, budget)  # first: what is in force is never more than what is reserved
        yield
        _write(record.folder, budget)


def require_more(record: Record, budget: Budget, settings: Settings) -> None:
    """OverBudget if `reserve_more` would raise it now. Reserves nothing."""
    team = _team(record.job, settings)
    if team is not None and _goes_on(record.folder):
        _require_more(team, record, budget, settings)


def _require_more(team: TeamLimit, record: Record, budget: Budget, settings: Settings) -> None:
    reserved, before = _read(record.folder), record.job.spec.budget
    granted = reserved if reserved is not None or before is None else before.amount
    if granted is not None and budget.amount > granted:  # less is always allowed, whatever others have meanwhile
        others = accounts(settings.home, team.team, but=record.folder.root)
        _reserved(team, [*others, _account(record, reserved=granted)], _name(record), budget)


def release(record: Record) -> None:
    """The run has ended, or will not start."""
    record.folder.reserved.unlink(missing_ok=True)


def accounts(home: Path, team: str, *, but: Path | None = None) -> Iterator[Account]:
    """Of all runs of a team in a home, deleted ones too; UsageError for one whose money cannot be read: it would be
    spent unseen."""
    folders = {path.parent for name in MARKS for path in home.glob(f"*/{name}")}
    for gone in [folder for folder in list(_KNOWN) if folder.parent == home and folder not in folders]:
        _KNOWN.pop(gone, None)
    counted = set()
    for folder in sorted(folder for folder in folders if folder != but and is_run(folder)):
        try:
            found = _account_in(folder, team)
        except (FathomError, OSError):
            if not folder.exists() or _team_of(RunFolder(folder), team) != team:
                continue  # removed just now, or another team's
            raise
        if found is not None:
            counted |= {folder} if found.spent else set()
            yield found
    for uid, run in departed(home, team):
        if home / run.folder not in counted:  # or it was removed since
            yield Account(f"{run.name} ({uid}, deleted)", run.spent, run.currency)


def _account_in(folder: Path, team: str) -> Account | None:
    """Of the run in a folder; None if that is another team's."""
    mark, known = _mark(folder), _KNOWN.get(folder)
    if known is not None and known.mark == mark and (known.team != team or known.account is not None):
        return known.account if known.team == team else None
    record = Record.open(folder)
    settled = time.time() - max(mark) / 1e9 > _SETTLED_SECONDS
    if (owner := record.job.metadata.namespace) != team:
        if settled:
            _KNOWN[folder] = _Known(mark, owner)
        return None
    granted = _granted(record)
    found = _account(record, reserved=granted)
    if settled and granted is None and _is_closed(record):
        _KNOWN[folder] = _Known(mark, team, found)
    return found


def _mark(folder: Path) -> tuple[int, ...]:
    """Changes with every file in a run's folder, which are all replaced whole; with these also if edited in place."""
    return (_written(folder), *(_written(folder / name) for name in (*MARKS, "status.json")))


def _written(path: Path) -> int:
    try:
        return path.stat().st_ctime_ns  # which nobody can set back
    except FileNotFoundError:
        return 0


def _account(record: Record, reserved: Decimal | None) -> Account:
    budget = record.job.spec.budget
    spent, currency = _spent(record)
    return Account(
        name=_name(record),
        spent=spent,
        currency=currency or (budget.currency if budget else "USD"),
        reserved=reserved if reserved is not None and _goes_on(record.folder) else None,
    )


def _spent(record: Record) -> tuple[Decimal, str | None]:
    """By its own record; the currency is None where nothing was ever held."""
    held = record.held() if _is_closed(record) else History(record).held  # which reads all events
    tariffs = {one.attempt: _tariff(record.folder, one.attempt) for one in held}
    currency = next((tariff.currency for tariff in tariffs.values()), None)
    return budgets.spent(held, tariffs), currency


def _is_closed(record: Record) -> bool:
    """Whether its launcher has written down the end of the last attempt, and with that all that was held."""
    status, last = record.status(), record.folder.last_attempt()
    ended = status is not None and status.phase in _OVER and status.attempt_count == last
    return ended or not last


def _tariff(folder: RunFolder, attempt: int) -> Tariff:
    return changed_tariff(folder, attempt) or read_resolved(folder.resolved(attempt)).tariff


def _reserved(team: TeamLimit, of: Iterable[Account], name: str, budget: Budget | None) -> Book:
    book = book_of(team.team, team.limit, team.currency, of)
    if budget is None:
        raise OverBudget(
            f"{team.team} may spend {plain(team.limit)} {team.currency}, of which {plain(book.free)} are free, and "
            f"{name} has no budget: set budget.limit, which is then reserved for it"
        )
    return book.reserve(name, budget.amount, budget.currency)


def _team(job: TrainingJob, settings: Settings) -> TeamLimit | None:
    if settings.budgets_file is None:
        return None
    return read_teams(settings.budgets_file).get(job.metadata.namespace)


def _name(record: Record) -> str:
    return record.folder.root.name


def _goes_on(folder: RunFolder) -> bool:
    return is_followed(folder) or driver_lives(folder)


def _write(folder: RunFolder, budget: Budget) -> None:
    replace_file(folder.reserved, json.dumps({"amount": budget.limit, "currency": budget.currency}), durable=True)


def _read(folder: RunFolder) -> Decimal | None:
    try:
        return Decimal(Budget(limit=json.loads(folder.reserved.read_text())["amount"]).limit)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder.reserved} holds no reservation ({error}): remove it if the run has ended") from None


def _granted(record: Record) -> Decimal | None:
    """What is reserved; of a run that was started before its team had a limit, or by a version that reserved nothing,
    its own limit. OverBudget where it has none: nobody knows what will be left."""
    reserved = _read(record.folder)
    if reserved is not None or not driver_lives(record.folder):
        return reserved
    if (budget := record.job.spec.budget) is None:
        raise OverBudget(
            f"{record.folder.root} goes on without a budget and could spend all that its team has: "
            f"`fathom budget {record.folder.root} --limit AMOUNT` gives it one"
        )
    return budget.amount


def _team_of(folder: RunFolder, unknown: str) -> str | None:
    """Of a run whose job cannot be read: as its attempts were started; None if none was, which has spent nothing.
    `unknown` where that cannot be read either: it might be of any team."""
    try:
        found = json.loads(folder.job.read_text())["job"]["metadata"].get("namespace", "default")
        return found if isinstance(found, str) else unknown
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    if not (last := folder.last_attempt()):
        return unknown if folder.held.exists() else None
    try:
        return read_resolved(folder.resolved(last)).job.namespace
    except FathomError:
        return unknown


@contextmanager
def _lock(home: Path, team: str) -> Iterator[None]:
    """Of a team in a home; Conflict if another process holds it for long."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / f".budget-{team}.lock"
    with locked(path, patience=PATIENCE_SECONDS) as mine:
        if not mine:
            raise Conflict(f"{path} is held by another launch for {PATIENCE_SECONDS:.0f} s: end it")
        yield
