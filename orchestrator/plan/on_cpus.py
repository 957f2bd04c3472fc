"""The forecast of a job on processor cores, by rates that `fathom calibrate` has measured there. Imports no torch.

Called by `orchestrator.plan.estimate`. Where nobody has calibrated, there is no forecast, and the plan says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.config import ModelConfig
from model.recipe import Layout, PrecisionName
from orchestrator.errors import UsageError
from orchestrator.plan import defaults
from orchestrator.plan.cpu import CpuRates, forecast_cpu
from orchestrator.plan.forecast import Width
from orchestrator.plan.prices import Price
from orchestrator.plan.request import Request
from orchestrator.plan.width import cost_of, spread

NO_RATES = (
    "no forecast of time and money on CPUs: their speed depends on the machine and on what else runs there; "
    "`fathom calibrate` measures it from finished runs, FATHOM_EFFICIENCIES names the file that it writes"
)
NOT_COVERED = "no forecast of time and money: CPUs are calibrated for fp32 with one core for each worker, not for {}"
COUNTED = (
    "steps of training only, each worker with a core of its own: evaluations, checkpoints and the start come on top"
)
WIDTHS = (
    Width(
        affects="hours",
        low=1 / 1.1,
        high=1.1,
        reason="shapes that the rates were not fitted to were forecast within 10 % (docs/calibration.md)",
    ),
    Width(
        affects="hours",
        low=1 / 1.12,
        high=1.12,
        reason="on a machine that others use too the same steps took up to 11 % less some hours later",
    ),
)


@dataclass(frozen=True)
class _Run:
    """As `orchestrator.plan.cpu` takes it."""

    model: ModelConfig
    layout: Layout
    sequence_length: int
    precision: PrecisionName
    device: str = "cpu"


def layout_on_cpus(request: Request) -> Layout:
    """As the launcher chooses it; UsageError where the workers cannot share batch or experts."""
    world, wish = request.gpus, request.wish
    sequences, unit = request.batch_tokens // request.sequence_length, world * (wish.micro_batch or 1)
    if sequences % unit:
        below = max(1, sequences // unit) * unit * request.sequence_length
        raise UsageError(
            f"a batch of {sequences} sequences is no multiple of the {unit} that {world} workers take at a time: use "
            f"{below} tokens in place of {request.batch_tokens}"
        )
    if wish.expert is not None and world % wish.expert:
        raise UsageError(
            f"parallelism.expert ({wish.expert}) must divide the {world} workers: {math.gcd(world, wish.expert)} does"
        )
    each = sequences // world
    micro_batch = wish.micro_batch or defaults.micro_batch_on_cpus(each, request.sequence_length)[0]
    return Layout.model_validate(
        {
            "world_size": world,
            "expert_parallel": wish.expert or defaults.experts_on_cpus(world, request.config.n_routed_experts)[0],
            "zero_stage": 1 if wish.zero_stage is None else wish.zero_stage,
            "micro_batch": micro_batch,
            "accumulation": each // micro_batch,
            "recompute": wish.recompute or "none",
        }
    )


def forecast_on_cpus(request: Request, price: Price, rates: CpuRates | None) -> dict[str, object]:
    """Parts of the plan."""
    if rates is None:
        return {"notes": (NO_RATES,)}
    if request.precision != "fp32" or request.cpus != 1:
        return {"notes": (NOT_COVERED.format(f"{request.precision} with {request.cpus}"),)}
    run = _Run(request.config, layout_on_cpus(request), request.sequence_length, request.precision)
    core_hours = request.tokens / request.batch_tokens * forecast_cpu(run, rates) / 3600
    device_hours = spread(core_hours, WIDTHS)
    return {
        "hours": spread(core_hours / request.gpus, WIDTHS),
        "gpu_hours": device_hours,
        "cost": cost_of(device_hours, price),
        "width": WIDTHS,
        "notes": (COUNTED,),
    }
