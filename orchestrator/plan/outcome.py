"""What one layout comes to: hours and money, with machines that fail. Pure; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from orchestrator.errors import UsageError
from orchestrator.plan.basis import Basis
from orchestrator.plan.forecast import Layout
from orchestrator.plan.goodput import Goodput, goodput
from orchestrator.plan.prices import Price
from orchestrator.plan.request import Request
from orchestrator.plan.search import Candidate
from orchestrator.plan.width import amount


@dataclass(frozen=True)
class Outcome:
    """One way to train all tokens."""

    request: Request
    candidate: Candidate
    price: Price
    goodput: Goodput
    hours: float
    """Wall clock, expected, what is lost to failures included."""

    @property
    def gpu_hours(self) -> float:
        """Paid for."""
        return self.hours * self.request.gpus

    @property
    def cost(self) -> Decimal:
        """Expected."""
        return amount(self.gpu_hours, self.price.amount)


def outcome(request: Request, candidate: Candidate, price: Price, basis: Basis) -> Outcome:
    """Steps times their time, over the goodput as far as the efficiencies do not hold it already (`Basis`)."""
    found = goodput(request.gpus, request.gpus_per_node, basis.failures, basis.recovery, request.checkpoint_seconds)
    if not found.fraction > 1e-6:
        raise UsageError(
            f"{request.gpus} GPUs fail every {found.mtbf_hours:.3g} hours, sooner than a checkpoint and a restart "
            "take: nothing would ever be finished; use fewer GPUs, or save more often"
        )
    steady = request.workload.steps * candidate.step.seconds / 3600
    return Outcome(request, candidate, price, found, steady * basis.lost_already / found.fraction)


def layout_of(made: Outcome) -> Layout:
    """For people and programs."""
    parallel, step = made.candidate.parallel, made.candidate.step
    return Layout(
        data=parallel.data,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        expert=parallel.expert,
        context=parallel.context,
        chunks=parallel.chunks,
        zero_stage=parallel.zero_stage,
        micro_batch=parallel.micro_batch,
        recompute=parallel.recompute,
        dispatch=parallel.dispatch if parallel.expert > 1 else None,
        schedule=parallel.schedule if parallel.pipeline > 1 else None,
        fits=made.candidate.fits,
        needs=made.candidate.needs,
        memory_peak=made.candidate.memory.peak,
        step_seconds=step.seconds,
        tokens_per_second_per_gpu=step.tokens_per_second_per_gpu,
        mfu=step.mfu,
        gpu_hours=made.gpu_hours,
        cost=made.cost,
    )
