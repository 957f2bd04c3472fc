"""Forecasts a run: `estimate(request) -> Plan`. Imports no torch.

Called by `fathom plan` and at the start of each run. Invariant: every figure follows from the request and the basis;
the conventions behind it stand in the plan itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from model.flops import count, flops_per_token
from orchestrator.errors import UsageError
from orchestrator.plan.alternatives import alternatives
from orchestrator.plan.basis import Basis
from orchestrator.plan.forecast import Architecture, Asked, Layout, Plan, PriceTag, Width
from orchestrator.plan.on_cpus import forecast_on_cpus
from orchestrator.plan.outcome import Outcome, layout_of, outcome
from orchestrator.plan.pick import chosen, does_not_fit, layouts, why_not_today
from orchestrator.plan.prices import Price
from orchestrator.plan.request import Request
from orchestrator.plan.search import needs
from orchestrator.plan.sections import energy_of, goodput_of, hours_widths, memory_of, offered, step_of
from orchestrator.plan.width import cost_of, price_width, spread
from orchestrator.plan.workload import Parallel
from orchestrator.settings import Settings


def estimate(request: Request, basis: Basis | None = None) -> Plan:
    """The forecast; UsageError where no layout fits into the GPUs' memory, with the nearest that does."""
    basis = Basis.load(Settings.load()) if basis is None else basis
    price = basis.prices.price(request.accelerator, request.price_class)
    if request.device is None:
        return _plan(request, price, **forecast_on_cpus(request, price, basis.cpu))
    candidates = layouts(request, basis.efficiencies)
    candidate = chosen(candidates, request.engine)
    if candidate is None:
        raise UsageError(does_not_fit(request, candidates, basis.efficiencies, basis.devices))
    made = outcome(request, candidate, price, basis)
    widths = [*hours_widths(made, basis), *_present(price_width(price))]
    device_hours = spread(made.gpu_hours, widths)
    today, other = offered(candidates, made, basis)
    return _plan(
        request,
        price,
        memory=memory_of(made),
        layout=layout_of(made),
        step=step_of(candidate),
        hours=spread(made.hours, widths),
        gpu_hours=device_hours,
        cost=cost_of(device_hours, price),
        width=tuple(widths),
        energy=energy_of(made, device_hours, basis),
        goodput=goodput_of(made, basis),
        layouts=today,
        other_layouts=other,
        alternatives=tuple(alternatives(made, candidates, basis)),
        notes=tuple(_notes(made, today)),
    )


def _plan(request: Request, price: Price, **parts: object) -> Plan:
    given = {name: parts.get(name) for name in Plan.model_fields if name in parts}
    return Plan.model_validate(
        {
            "request": _asked(request),
            "assumed": request.assumed,
            "architecture": _architecture(request),
            "price": _tag(price),
        }
        | given
    )


def _present(width: Width | None) -> Iterator[Width]:
    if width is not None:
        yield width


def _asked(request: Request) -> Asked:
    return Asked(
        model=request.name,
        accelerator=request.accelerator,
        gpus=request.gpus,
        gpus_per_node=request.gpus_per_node,
        tokens=request.tokens,
        sequence_length=request.sequence_length,
        batch_tokens=request.batch_tokens,
        steps=request.workload.steps,
        precision=request.precision,
        price_class=request.price_class,
    )


def _architecture(request: Request) -> Architecture:
    config, length = request.config, request.sequence_length
    counts, flops = count(config), flops_per_token(config, length)
    return Architecture(
        parameters=counts.total,
        active_parameters=counts.active,
        mtp_parameters=counts.mtp,
        flops_per_token=flops,
        flops_per_token_with_mtp=flops_per_token(config, length, mtp=True) if counts.mtp else None,
        total_flops=flops * request.tokens,
    )


def _tag(price: Price) -> PriceTag:
    return PriceTag(
        amount=price.amount,
        currency=price.currency,
        unit=price.unit,
        price_class=price.price_class,
        source=price.source,
        date=price.date,
    )


def _why_none_runs(request: Request) -> str:
    if lacks := needs(request.config, Parallel(request.gpus)):
        return f"our engine runs no layout of this model today: it lacks {', '.join(lacks)}"
    if why := why_not_today(request):
        return f"no layout that our engine runs today divides this batch: {why}"
    return "of the layouts that our engine runs today none fits into the memory of these GPUs"


def _notes(made: Outcome, today: Sequence[Layout]) -> Iterator[str]:
    if made.candidate.needs:
        yield f"this layout cannot run yet: our engine lacks {', '.join(made.candidate.needs)}"
    if not today:
        yield _why_none_runs(made.request)
    yield "pre-training only: data, staff, research and ablations before the run are in no figure here"
