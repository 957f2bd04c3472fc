"""`/v1/plans`: what a job will take and cost, before it is submitted."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from orchestrator.api.answers import problems
from orchestrator.api.auth import needs
from orchestrator.api.capacity import in_words, never, slowly
from orchestrator.api.desk import AtDesk, Caller, Desk, Json
from orchestrator.api.documents import PlanDocument, PlanRequest
from orchestrator.api.rights import Principal, require_role
from orchestrator.api.signed import VALID, Planned, digest, sign
from orchestrator.controller.admission import check, units
from orchestrator.controller.aside import urls
from orchestrator.errors import Forbidden, InvalidJob, OverBudget, Problem, Unavailable, UsageError
from orchestrator.launch.architecture import require_store
from orchestrator.launch.choices import Choice
from orchestrator.plan.basis import Basis
from orchestrator.plan.estimate import estimate
from orchestrator.plan.prices import Price
from orchestrator.plan.request import request_of
from orchestrator.settings import Settings
from orchestrator.spec import Budget, TrainingJob
from orchestrator.store.access import Role
from orchestrator.store.document import timestamp

router = APIRouter(prefix="/v1", tags=["plans"], dependencies=[needs(Role.READER)])


@router.post(
    "/plans",
    operation_id="createPlan",
    summary="Plan a job",
    response_model=PlanDocument,
    responses=problems("invalid-job", "invalid-json", "too-large", "unsupported-media"),
)
def create_plan(body: PlanRequest, desk: AtDesk, caller: Caller) -> JSONResponse:
    """Forecast, price and choices of a job, which need not be possible yet: `messages` say what stands against it.
    Nothing is kept; the id is signed, and counts for 15 minutes."""
    job, basis = body.job.job(caller), load_basis(desk.settings)
    require_role(caller, Role.READER, job.metadata.namespace)  # the answer tells of its money
    _require_local(job, caller)
    _require_no_request(job, desk)
    price = price_of(job, basis)
    with desk.far.read(job, caller.name):
        forecast, messages = _forecast(job, basis, desk.settings)
        choices, refusals = _choices(job, desk)
    capacity = desk.capacity()
    unfit = never(job, capacity)
    moment = datetime.now(UTC) + VALID
    planned = planned_now(job, price, desk, until=int(moment.timestamp()))
    document = {
        "id": sign(planned, desk.settings.signing_key()),
        "expiresAt": timestamp(moment.replace(microsecond=0)),
        "job": body.job.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True),
        "plan": forecast,
        "choices": [choice.model_dump(mode="json") for choice in choices],
        "price": {
            "perHour": _plain(price.amount * units(job)),
            "currency": price.currency,
            "source": f"{price.source} ({price.date})",
        },
        "fits": not unfit and not messages,
        "messages": [text for text in (*messages, *refusals, unfit, slowly(job, capacity)) if text],
    }
    return JSONResponse(document)


def _require_local(job: TrainingJob, caller: Principal) -> None:
    """Forbidden to a reader: to have the service ask other machines."""
    if (far := urls(job)) and (why := caller.why_not(Role.RUNNER, job.metadata.namespace)):
        raise Forbidden(f"planning would read {far[0]}, but {why}: name local files, or none")


def _require_no_request(job: TrainingJob, desk: Desk) -> None:
    """InvalidJob where this process would read, with a cluster's network and files around it, what the job names."""
    elsewhere = desk.launcher is not None and desk.launcher.capacity() is None
    if elsewhere and job.spec.model.init_from is not None:
        require_store(job.spec.model.init_from)


def load_basis(settings: Settings) -> Basis:
    """Prices and the rest; Unavailable if a file of the operator's is bad, which no caller can mend."""
    try:
        return Basis.load(settings)
    except UsageError as error:
        raise Unavailable(str(error)) from error


def price_of(job: TrainingJob, basis: Basis) -> Price:
    """Of one device-hour, today; InvalidJob if there is none."""
    compute = job.spec.compute
    try:
        return basis.prices.price(compute.accelerator, compute.price_class)
    except UsageError as error:
        raise InvalidJob([Problem("spec.compute.priceClass", str(error))]) from None


def require_currency(budget: Budget, price: Price) -> None:
    """InvalidJob for a budget in other money than the job is paid in."""
    if budget.currency != price.currency:
        message = f"is {budget.currency}, but the job is paid in {price.currency} ({price.source})"
        raise InvalidJob([Problem("spec.budget.currency", message)])


def planned_now(job: TrainingJob, price: Price, desk: Desk, *, until: int) -> Planned:
    """What a plan would be made for now."""
    return Planned(
        job=digest(job),
        price=f"{_plain(price.amount)} {price.currency} per {price.unit}",
        machines=in_words(desk.capacity().total),
        until=until,
    )


def _forecast(job: TrainingJob, basis: Basis, settings: Settings) -> tuple[Json | None, list[str]]:
    """InvalidJob for what no machine could run; a layout that does not fit into these GPUs is a message."""
    request = request_of(job, hardware=settings.hardware_file)
    try:
        plan = estimate(request, basis)
    except UsageError as error:
        return None, [str(error)]
    return plan.model_dump(mode="json"), []


def _choices(job: TrainingJob, desk: Desk) -> tuple[tuple[Choice, ...], list[str]]:
    """What is chosen, or why the job would be refused now."""
    try:
        return check(job, desk.settings, desk.launcher).chosen, []
    except (InvalidJob, OverBudget) as error:
        return (), [f"would be refused now: {line}" for line in str(error).splitlines()]


def _plain(amount: Decimal) -> str:
    """Without an exponent, at most six decimals."""
    text = f"{amount:.6f}".rstrip("0").rstrip(".")
    return text or "0"
