"""A plan beside published runs, by the same formulas. Pure; imports no torch. Called by `orchestrator.cli.plan`."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from orchestrator.errors import UsageError
from orchestrator.plan.forecast import Money, Out, Plan
from orchestrator.plan.known import KnownRun, known_run
from orchestrator.plan.prices import PriceBook


class Column(Out):
    """One run of the comparison: the plan's first, then the known ones."""

    name: str
    title: str
    parameters: int
    active_parameters: int
    tokens: int | None
    accelerator: str
    gpus: int | None
    gpu_hours: float
    """Of the first stage: pre-training, where the stages were published apart."""
    total_gpu_hours: float
    """Of all stages, and of the run that it started from."""
    gpu_hours_per_trillion_tokens: float | None
    flops: float | None
    """Causal, without multi-token prediction."""
    mfu: float | None
    cost_at_same_price: Money
    """`gpu_hours` at the plan's price of a GPU-hour, whatever the GPU."""
    cost_at_own_price: Money | None
    """`gpu_hours` at the list price of the run's own GPU; None: not in the price list."""
    total_cost_at_same_price: Money
    excludes: str
    source: str


def against(plan: Plan, names: Sequence[str], prices: PriceBook) -> tuple[Column, ...]:
    """The plan and the known runs of these names, side by side; UsageError for a name that nobody knows."""
    runs = [known_run(name) for name in dict.fromkeys(names)]
    if plan.gpu_hours is None:
        raise UsageError("a plan without GPU-hours cannot be compared with published runs: name an accelerator")
    return (_own(plan, plan.gpu_hours.expected), *(_column(run, plan, prices) for run in runs))


def _own(plan: Plan, hours: float) -> Column:
    asked, built, step = plan.request, plan.architecture, plan.step
    cost = _cost(hours, plan.price.amount)
    return Column(
        name="plan",
        title="this plan",
        parameters=built.parameters,
        active_parameters=built.active_parameters,
        tokens=asked.tokens,
        accelerator=asked.accelerator,
        gpus=asked.gpus,
        gpu_hours=hours,
        total_gpu_hours=hours,
        gpu_hours_per_trillion_tokens=hours / asked.tokens * 1e12,
        flops=built.total_flops,
        mfu=step.mfu if step is not None else None,
        cost_at_same_price=cost,
        cost_at_own_price=cost,
        total_cost_at_same_price=cost,
        excludes="data, staff, research and ablations, context extension, post-training",
        source="fathom plan",
    )


def _column(run: KnownRun, plan: Plan, prices: PriceBook) -> Column:
    before = known_run(run.on_top_of).total_gpu_hours if run.on_top_of is not None else 0
    total, active = run.parameters
    classes = prices.classes(run.accelerator)
    own = prices.price(run.accelerator, "on-demand") if "on-demand" in classes else None
    comparable = own is not None and own.currency == plan.price.currency
    return Column(
        name=run.name,
        title=run.title,
        parameters=total,
        active_parameters=active,
        tokens=run.tokens,
        accelerator=run.accelerator,
        gpus=run.gpus,
        gpu_hours=run.gpu_hours,
        total_gpu_hours=run.total_gpu_hours + before,
        gpu_hours_per_trillion_tokens=None if run.tokens is None else run.gpu_hours / run.tokens * 1e12,
        flops=run.flops,
        mfu=run.mfu,
        cost_at_same_price=_cost(run.gpu_hours, plan.price.amount),
        cost_at_own_price=_cost(run.gpu_hours, own.amount) if own is not None and comparable else None,
        total_cost_at_same_price=_cost(run.total_gpu_hours + before, plan.price.amount),
        excludes=run.excludes,
        source=f"{run.source} ({run.date})",
    )


def _cost(hours: float, price: Decimal) -> Decimal:
    return Decimal(repr(hours)) * price
