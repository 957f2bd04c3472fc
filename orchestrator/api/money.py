"""What jobs and teams have cost, as the API says it. Pure, but for the files of finished runs.

A job by itself is counted anew from its events, to the last digit. In lists, a job that has ended is as its ledger
says; one that goes on as its status says, which the controller writes from the same ledger, rounded to 6 decimals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from model.config import Frozen
from orchestrator.cost.groups import sums
from orchestrator.cost.ledger import Ledger
from orchestrator.cost.meter import Rate
from orchestrator.cost.records import FLOPS_CONVENTION, Totals
from orchestrator.launch.base import RunFolder
from orchestrator.schema import Part
from orchestrator.status import Phase
from orchestrator.store.base import StoredJob

NONE = Decimal(0)
Exact = str
"""An amount as a decimal string, exact."""


class GroupSum(Part):
    """Rows of the ledger that have something in common."""

    name: str
    seconds: Exact
    """Wall seconds, unpaid waiting included."""
    device_seconds: Exact
    cost: Exact


class JobCost(Part):
    """Where the money of a job went: the numbers of `fathom cost RUN -o json`."""

    namespace: str
    name: str
    uid: str
    currency: str
    spent: Exact
    """All attempts together."""
    wasted: Exact
    """The part that trained nothing: recovering, lost work, idling."""
    limit: Exact | None
    """Of the job's budget."""
    left: Exact | None
    """What the budget has left; not below 0."""
    totals: Totals
    by: dict[str, list[GroupSum]]
    """By class, attempt, cause (of what was wasted), team, job and price."""
    rates: list[Rate]
    """All prices that were paid, with their sources."""
    flops_convention: str = FLOPS_CONVENTION


class Amount(Part):
    """Money in one currency: others do not add up with it."""

    currency: str
    spent: Exact
    wasted: Exact
    burn_per_hour: Exact
    """What an hour costs now."""


class JobAmount(Amount):
    """Of one job."""

    namespace: str
    name: str
    uid: str
    phase: Phase
    limit: Exact | None
    """Of its budget."""


class TeamBudget(Part):
    """What a team may spend (FATHOM_BUDGETS), with all runs in the home of the service."""

    currency: str
    limit: Exact
    spent: Exact
    """As budgets count: rounded against the job, by the 12th decimal."""
    reserved: Exact
    """Granted to jobs that go on, and not spent yet."""
    left: Exact
    """What another job may reserve."""


class TeamAmount(Part):
    """Of one team."""

    team: str
    jobs: int = Field(ge=0)
    amounts: list[Amount]
    budget: TeamBudget | None
    """Absent where the team has no limit, or where it cannot be counted."""
    trouble: str | None
    """Why the budget cannot be counted."""


class Costs(Part):
    """All that the token may see."""

    jobs: list[JobAmount]
    """Newest first."""
    teams: list[TeamAmount]
    totals: list[Amount]


def job_cost(stored: StoredJob, ledger: Ledger | None) -> JobCost:
    """Nothing for a job without attempts."""
    budget = stored.wish.job.spec.budget
    summed = sums([ledger] if ledger else [])
    totals = ledger.totals if ledger else Totals.of((), 0, 0, None)
    limit = (ledger.limit if ledger else None) or (budget.amount if budget else None)
    return JobCost(
        namespace=stored.namespace,
        name=stored.name,
        uid=stored.uid,
        currency=ledger.rate.currency if ledger else budget.currency if budget else "USD",
        spent=exact(totals.cost),
        wasted=exact(totals.wasted),
        limit=None if limit is None else exact(limit),
        left=None if limit is None else exact(max(NONE, limit - totals.cost)),
        totals=totals,
        by={name: [GroupSum.model_validate(group) for group in groups] for name, groups in summed.items()},
        rates=list(ledger.rates or (ledger.rate,)) if ledger else [],
    )


def exact(amount: Decimal) -> str:
    """Without an exponent."""
    return format(amount, "f")


# Lists


@dataclass
class Sum:
    """Of one currency."""

    spent: Decimal = NONE
    wasted: Decimal = NONE
    burn: Decimal = NONE

    def add(self, other: Sum) -> None:
        """One more."""
        self.spent += other.spent
        self.wasted += other.wasted
        self.burn += other.burn

    def amount(self, currency: str) -> dict[str, str]:
        """As fields of `Amount`."""
        return {
            "currency": currency,
            "spent": exact(self.spent),
            "wasted": exact(self.wasted),
            "burn_per_hour": exact(self.burn),
        }


@dataclass
class Sums:
    """By currency."""

    by: dict[str, Sum] = field(default_factory=dict)
    jobs: int = 0

    def add(self, currency: str, of: Sum) -> None:
        """One more job."""
        self.jobs += 1
        self.by.setdefault(currency, Sum()).add(of)

    def amounts(self) -> list[Amount]:
        """In the order of their codes; a currency in which nothing was ever spent says nothing."""
        told = {currency: one for currency, one in sorted(self.by.items()) if one.spent or one.burn}
        return [Amount(**one.amount(currency)) for currency, one in told.items()]


class _Totals(Frozen, extra="ignore"):
    cost: Decimal
    wasted: Decimal


class _Rate(Frozen, extra="ignore"):
    currency: str


class _Written(Frozen, extra="ignore"):
    """What a list needs of a ledger's file."""

    totals: _Totals
    rate: _Rate


class Ledgers:
    """Sums of finished runs, by their files; each is read again only if it was changed."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._known: dict[str, tuple[tuple[int, int], tuple[str, Sum]]] = {}

    def finished(self, folder: str) -> tuple[str, Sum] | None:
        """Currency and sum; None where there is no ledger that can be read."""
        path = RunFolder(self._home / folder).ledger
        try:
            found = path.stat()
            state = found.st_mtime_ns, found.st_size
            if folder in self._known and self._known[folder][0] == state:
                return self._known[folder][1]
            ledger = _Written.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None
        total = ledger.rate.currency, Sum(ledger.totals.cost, ledger.totals.wasted)
        self._known[folder] = state, total
        return total

    def keep(self, folders: Iterable[str]) -> None:
        """Forget all others."""
        wanted = set(folders)
        self._known = {folder: known for folder, known in self._known.items() if folder in wanted}


def listed(documents: Iterable[Mapping[str, Any]], ledgers: Ledgers) -> Iterator[tuple[JobAmount, Sum]]:
    """From jobs as they lie in the store."""
    for document in documents:
        metadata, status, spec = document["metadata"], document["status"], document["spec"]
        budget, cost = spec.get("budget") or {}, status.get("cost")
        phase = Phase(status.get("phase", Phase.PENDING))
        currency, of = budget.get("currency", "USD"), Sum()
        if cost is not None:
            currency = cost["currency"]
            of = Sum(Decimal(cost["spent"]), Decimal(cost["wasted"]), Decimal(cost["burnPerHour"]))
        if phase.terminal and (found := ledgers.finished(metadata["folder"])) is not None:
            currency, of = found
        yield (
            JobAmount(
                namespace=metadata["namespace"],
                name=metadata["name"],
                uid=metadata["uid"],
                phase=phase,
                limit=budget.get("limit"),
                **of.amount(currency),
            ),
            of,
        )
