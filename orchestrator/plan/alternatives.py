"""Cheaper ways to train the same tokens: other devices, precisions, price classes. Pure; imports no torch.

Called by `orchestrator.plan.estimate`. An alternative has as many GPUs and one of the plan's best layouts, with
whatever recomputation is best there: a search of its own might still find a faster one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from model.recipe import PrecisionName
from orchestrator.plan.basis import Basis
from orchestrator.plan.forecast import Alternative
from orchestrator.plan.outcome import Outcome, layout_of, outcome
from orchestrator.plan.pick import chosen, tried
from orchestrator.plan.request import Request, Wish
from orchestrator.plan.search import Candidate
from orchestrator.plan.workload import Parallel

_SHOWN, _TRIED = 6, 24


def alternatives(made: Outcome, candidates: Sequence[Candidate], basis: Basis) -> list[Alternative]:
    """Those that cost less, cheapest first; `candidates`: the plan's, best first."""
    among = [one.parallel for one in candidates if one.needs == () or made.candidate.needs][:_TRIED]
    found = []
    best: dict[tuple[str, str], Candidate | None] = {}
    for request in _others(made.request, basis):
        price = basis.prices.price(request.accelerator, request.price_class)
        if price.currency != made.price.currency:
            continue
        what = request.accelerator, request.precision
        if what not in best:  # whatever an hour costs
            best[what] = _candidate(request, made, among, basis)
        if (candidate := best[what]) is None:
            continue
        other = outcome(request, candidate, price, basis)
        if other.cost < made.cost:
            found.append(_alternative(made, other))
    return sorted(found, key=lambda one: one.cost)[:_SHOWN]


def _others(request: Request, basis: Basis) -> Iterator[Request]:
    """The same run with another device, precision or price class; whatever layout is best there."""
    for device in basis.devices.values():
        names: list[PrecisionName] = ["bf16"] if device.fp8_flops is None else ["bf16", "fp8"]
        for precision in names:
            for price_class in basis.prices.classes(device.name):
                other = replace(request, device=device, precision=precision, price_class=price_class, wish=Wish())
                if _key(other) != _key(request):
                    yield other


def _key(request: Request) -> tuple[str, str, str]:
    return request.accelerator, request.precision, request.price_class


def _candidate(request: Request, made: Outcome, among: Sequence[Parallel], basis: Basis) -> Candidate | None:
    """None where it does not fit, or needs what the plan itself does not need."""
    candidate = chosen(tried(request, basis.efficiencies, among), request.engine)
    if candidate is None or (candidate.needs and not made.candidate.needs):
        return None
    return candidate


def _alternative(made: Outcome, other: Outcome) -> Alternative:
    ours, theirs = _key(made.request), _key(other.request)
    change = [new for old, new in zip(ours, theirs, strict=True) if old != new]
    return Alternative(
        change=", ".join(change),
        accelerator=other.request.accelerator,
        precision=other.request.precision,
        price_class=other.request.price_class,
        layout=layout_of(other),
        hours=other.hours,
        gpu_hours=other.gpu_hours,
        cost=other.cost,
        saves=made.cost - other.cost,
        saves_hours=made.hours - other.hours,
        reason=_reason(made, other),
    )


def _reason(made: Outcome, other: Outcome) -> str:
    price = other.price
    parts = [f"{price.amount} {price.currency} per {price.unit} ({price.source}, {price.date})"]
    if (made.request.precision, other.request.precision) == ("bf16", "fp8"):
        parts.append("8-bit products change the numbers: compare losses before a long run")
    if other.request.price_class != made.request.price_class:
        parts.append("a price class may bring interruptions that the failure model does not know")
    return "; ".join(parts)
