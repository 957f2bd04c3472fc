"""What submitting will cost, as `fathom apply` shows it before it asks, and what `--max-cost` allows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from orchestrator.cli.job_rows import devices
from orchestrator.cli.output import Column, Row, table
from orchestrator.errors import OverBudget, UsageError

if TYPE_CHECKING:
    from orchestrator.client import PlannedJob
    from orchestrator.client.differences import Preview

_COLUMNS = (
    Column("JOB"),
    Column("DEVICES", right=True),
    Column("TIME", right=True),
    Column("COST", right=True),
    Column("FROM", right=True),
    Column("TO", right=True),
    Column("PER HOUR", right=True),
    Column("LIMIT", right=True),
)


def price_table(offers: Sequence[PlannedJob], *, colour: bool = False) -> str:
    """A line for each job, one for all of them, and where the prices come from."""
    rows = [_row(one) for one in offers]
    forecasts = [one.forecast.cost for one in offers if one.forecast is not None]
    known = [cost for cost in forecasts if cost is not None]
    if len(offers) > 1 and len(known) == len(offers) and len({cost.currency for cost in known}) == 1:
        sums = [sum((getattr(cost, end) for cost in known), Decimal(0)) for end in ("expected", "low", "high")]
        words = [_money(total, known[0].currency) for total in sums]
        rows.append({"JOB": "together", **dict(zip(("COST", "FROM", "TO"), words, strict=True))})
    sources = dict.fromkeys(one.price.source for one in offers if one.price and one.price.source)
    remarks = [f"{key_of(one)}: {message}" for one in offers for message in one.messages]
    remarks += [
        f"{key_of(one)}: {plan.notes[0]}" for one in offers if (plan := one.forecast) and not plan.cost and plan.notes
    ]
    remarks += [f"{key_of(one)}: the service has no machines for it" for one in offers if not one.fits]
    remarks += [f"price: {source}" for source in sources]
    return table(_COLUMNS, rows, colour=colour) + "".join(f"· {line}\n" for line in remarks)


def key_of(offer: PlannedJob) -> str:
    """team/name."""
    return f"{offer.job.metadata.namespace}/{offer.job.metadata.name}"


def _row(offer: PlannedJob) -> Row:
    from orchestrator.cli.planned import time

    plan, spec = offer.forecast, offer.job.spec
    cells = {"JOB": key_of(offer), "DEVICES": devices(spec.compute), "COST": "unknown"}
    if plan is not None and plan.hours is not None:
        cells["TIME"] = time(plan.hours.expected)
    if plan is not None and (cost := plan.cost) is not None:
        ends = {"COST": cost.expected, "FROM": cost.low, "TO": cost.high}
        cells |= {heading: _money(amount, cost.currency) for heading, amount in ends.items()}
    if offer.price is not None:
        cells["PER HOUR"] = _money(Decimal(offer.price.per_hour), offer.price.currency)
    if spec.budget is not None:
        cells["LIMIT"] = _money(spec.budget.amount, spec.budget.currency)
    return cells


def _money(amount: Decimal, currency: str) -> str:
    from orchestrator.cli.planned import big_money

    return big_money(amount, currency)


# ------------------------------------------------------------------ --max-cost


def parse_amount(text: str) -> Decimal:
    """The number after --max-cost."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise UsageError(f"--max-cost is {text!r}: write an amount in the currency of the prices, e.g. 12.50")
    return amount


def require_within(maximum: Decimal, offers: Sequence[PlannedJob], changes: Sequence[Preview]) -> None:
    """OverBudget, with both numbers, if all together may cost more: by the high end of each forecast, by the job's own
    limit where there is none, and by the new limit of a job that is there already."""
    ceilings = [_ceiling(one, maximum) for one in offers]
    ceilings += [ceiling for one in changes if (ceiling := _raised(one)) is not None]
    total = sum((amount for amount, _, _ in ceilings), Decimal(0))
    if total <= maximum:
        return
    currencies = {currency for _, currency, _ in ceilings}
    if len(currencies) > 1:
        raise UsageError(f"--max-cost is one amount, but the jobs are paid in {' and '.join(sorted(currencies))}")
    parts = "; ".join(words for _, _, words in ceilings)
    raise OverBudget(
        f"up to {_money(total, currencies.pop())} exceeds --max-cost {maximum} ({parts}): nothing was done"
    )


def _ceiling(offer: PlannedJob, maximum: Decimal) -> tuple[Decimal, str, str]:
    """At most what it will cost, the currency, and where that comes from."""
    plan, budget, key = offer.forecast, offer.job.spec.budget, key_of(offer)
    if plan is not None and plan.cost is not None:
        high, currency = plan.cost.high, plan.cost.currency
        return high, currency, f"{key}: high end of the forecast {_money(high, currency)}"
    if budget is None:
        raise OverBudget(
            f"{key} has no forecast, so nothing holds it to --max-cost {maximum}: give it a limit of its own, "
            f"--set budget.limit={maximum}"
        )
    return budget.amount, budget.currency, f"{key}: no forecast, budget.limit {budget.limit} {budget.currency}"


def _raised(preview: Preview) -> tuple[Decimal, str, str] | None:
    budget = preview.wanted.spec.budget
    if budget is None or all(one.path != "budget.limit" for one in preview.changes):
        return None
    key = f"{preview.wanted.metadata.namespace}/{preview.wanted.metadata.name}"
    return budget.amount, budget.currency, f"{key}: new budget.limit {budget.limit} {budget.currency}"
