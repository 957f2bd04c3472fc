"""`/v1/jobs/{namespace}/{name}/cost` and `/v1/costs`: where the money went, and what teams may still spend."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from orchestrator.api.answers import problems
from orchestrator.api.archives import run_folder
from orchestrator.api.auth import SeenJob, needs
from orchestrator.api.desk import AtDesk, Caller, Desk
from orchestrator.api.money import Costs, JobCost, Ledgers, Sums, TeamAmount, TeamBudget, exact, job_cost, listed
from orchestrator.api.rights import seen_by
from orchestrator.controller.history import ledger_of
from orchestrator.controller.record import Record
from orchestrator.controller.teams import accounts
from orchestrator.cost.book import book_of
from orchestrator.cost.teams import TeamLimit, read_teams
from orchestrator.errors import FathomError, NotFound, Unavailable, UsageError
from orchestrator.store.access import Role
from orchestrator.store.base import Query as Wanted

router = APIRouter(prefix="/v1", tags=["money"])
_PAGE = 500


@router.get(
    "/jobs/{namespace}/{name}/cost",
    operation_id="readCost",
    summary="Where the money of a job went",
    response_model=JobCost,
    dependencies=[needs(Role.READER)],
    responses=problems("not-found"),
)
def read_cost(stored: SeenJob, desk: AtDesk) -> JSONResponse:
    """From its ledger, exact, as it is now."""
    try:
        ledger = ledger_of(Record.open(run_folder(desk, stored).root))
    except NotFound:  # it has not begun
        ledger = None
    except UsageError as error:  # a file on our side
        raise Unavailable(str(error)) from error
    return JSONResponse(job_cost(stored, ledger).model_dump(mode="json", by_alias=True))


@router.get(
    "/costs",
    operation_id="listCosts",
    summary="What jobs and teams have cost",
    response_model=Costs,
    dependencies=[needs(Role.READER)],
    responses=problems("not-found"),
)
def list_costs(
    request: Request,
    desk: AtDesk,
    caller: Caller,
    namespace: Annotated[str | None, Query(max_length=63, description="Of this team only.")] = None,
) -> JSONResponse:
    """Of jobs that the service has: one that was forgotten is in no sum, but what it has cost counts for the team's
    budget."""
    team = seen_by(caller, namespace)
    ledgers: Ledgers = request.app.state.ledgers
    jobs, total, teams = [], Sums(), dict[str, Sums]()
    for amount, of in listed(_documents(desk, team), ledgers):
        jobs.append(amount)
        total.add(amount.currency, of)
        teams.setdefault(amount.namespace, Sums()).add(amount.currency, of)
    limits = _limits(desk)
    names = sorted({*teams, *(name for name in limits if team in (None, name))})
    answer = Costs(
        jobs=jobs,
        teams=[_team(name, teams.get(name, Sums()), limits.get(name), desk.settings.home) for name in names],
        totals=total.amounts(),
    )
    return JSONResponse(answer.model_dump(mode="json", by_alias=True))


def _documents(desk: Desk, team: str | None) -> Iterator[dict[str, Any]]:
    cursor = ""
    while True:
        page = desk.store.documents(Wanted(team, limit=_PAGE, after=cursor))
        yield from page.documents
        if not (cursor := page.next):
            return


def _limits(desk: Desk) -> dict[str, TeamLimit]:
    if desk.settings.budgets_file is None:
        return {}
    try:
        return read_teams(desk.settings.budgets_file)
    except UsageError as error:  # a file of the operator's
        raise Unavailable(str(error)) from error


def _team(name: str, sums: Sums, limit: TeamLimit | None, home: Path) -> TeamAmount:
    budget, trouble = None, None
    if limit is not None:
        try:
            budget = _budget(limit, home)
        except FathomError as error:
            trouble = str(error)
    return TeamAmount(team=name, jobs=sums.jobs, amounts=sums.amounts(), budget=budget, trouble=trouble)


def _budget(limit: TeamLimit, home: Path) -> TeamBudget:
    book = book_of(limit.team, limit.limit, limit.currency, accounts(home, limit.team))
    spent = sum((job.spent for job in book.jobs.values()), Decimal(0))
    return TeamBudget(
        currency=book.currency,
        limit=exact(book.limit),
        spent=exact(spent),
        reserved=exact(book.committed - spent),
        left=exact(book.free),
    )
