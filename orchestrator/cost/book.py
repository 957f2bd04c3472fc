"""What a team may spend: money is reserved before a job starts. Pure.

Invariant: what is committed (reserved, or spent where that is more) never exceeds the limit by a reservation that was
granted; a job's own limit sees to it that it spends no more than it has reserved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_DOWN, Decimal
from types import MappingProxyType

from orchestrator.errors import OverBudget

_NONE: Mapping[str, Reservation] = MappingProxyType({})


@dataclass(frozen=True)
class Reservation:
    """Of one job."""

    amount: Decimal
    spent: Decimal = Decimal(0)
    open: bool = True
    """Whether the job may go on; what a closed one has not spent is free again."""

    @property
    def committed(self) -> Decimal:
        """What is not free for others."""
        return max(self.amount, self.spent) if self.open else self.spent


@dataclass(frozen=True)
class Book:
    """Of one team, in one currency."""

    team: str
    limit: Decimal
    currency: str
    jobs: Mapping[str, Reservation] = field(default_factory=lambda: _NONE)

    @property
    def committed(self) -> Decimal:
        """Reserved or spent, all jobs together."""
        return sum((job.committed for job in self.jobs.values()), Decimal(0))

    @property
    def free(self) -> Decimal:
        """What another job may reserve."""
        return max(Decimal(0), self.limit - self.committed)

    def reserve(self, job: str, amount: Decimal, currency: str) -> Book:
        """Before the job starts, or when its limit is changed: `amount` in all, with what it has spent already.

        OverBudget if the team's limit does not allow it, or if more is spent than that.
        """
        before = self.jobs.get(job, Reservation(Decimal(0)))
        if currency != self.currency:
            raise OverBudget(f"{job} asks for {currency}, the budget of {self.team} is in {self.currency}")
        _require_amount(amount, job)
        if amount < before.spent:
            raise OverBudget(f"{job} asks for {plain(amount)} {currency}, but has spent {plain(before.spent)} already")
        free = self.limit - (self.committed - before.committed)
        if amount > free:
            raise OverBudget(
                f"{job} asks for {plain(amount)} {currency}, but {self.team} has {plain(max(free, Decimal(0)))} of its "
                f"{plain(self.limit)} left: ask for no more, wait until another job ends, or raise the team's limit"
            )
        return self._with(job, replace(before, amount=amount, open=True))

    def pay(self, job: str, spent: Decimal) -> Book:
        """What the job has spent in all by now; a smaller figure than before is late news and changes nothing."""
        _require_amount(spent, job)
        before = self.jobs.get(job, Reservation(Decimal(0), open=False))
        return self._with(job, replace(before, spent=max(before.spent, spent)))

    def release(self, job: str) -> Book:
        """The job is over."""
        return self._with(job, replace(self.jobs[job], open=False)) if job in self.jobs else self

    def _with(self, job: str, reservation: Reservation) -> Book:
        return replace(self, jobs=MappingProxyType({**self.jobs, job: reservation}))


@dataclass(frozen=True)
class Account:
    """What a job has of its team's money, by whoever keeps its record: a run's folder, or a store of jobs."""

    name: str
    spent: Decimal
    currency: str
    reserved: Decimal | None = None
    """While it may go on; None: it has ended, or has not begun."""


def book_of(team: str, limit: Decimal, currency: str, accounts: Iterable[Account]) -> Book:
    """The book as the accounts of all the team's jobs say; OverBudget where one is in another currency.

    Reservations are taken as they were granted, even if the limit has been lowered since.
    """
    jobs: dict[str, Reservation] = {}
    for one in accounts:
        if one.name in jobs:
            raise ValueError(f"{one.name} has two accounts")
        if one.currency != currency and (one.spent or one.reserved):
            raise OverBudget(
                f"{one.name} is paid in {one.currency}, the budget of {team} is in {currency}, and they do not add up: "
                "give it another namespace"
            )
        jobs[one.name] = Reservation(one.reserved or Decimal(0), one.spent, open=one.reserved is not None)
    return Book(team, limit, currency, MappingProxyType(jobs))


def plain(amount: Decimal) -> str:
    """For messages: six decimals at most, rounded down, none that say nothing."""
    text = f"{amount.quantize(Decimal(1).scaleb(-6), ROUND_DOWN):f}"
    return text.rstrip("0").rstrip(".")


def _require_amount(amount: Decimal, job: str) -> None:
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"an amount of {job} must be a number and not negative, got {amount}")
