"""The parts of a plan that need some arithmetic of their own: memory, time, goodput, energy. Pure; imports no torch.

Called by `orchestrator.plan.estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

from model.flops import count
from orchestrator.plan.basis import FITTED_GPUS, Basis
from orchestrator.plan.dense import DenseModel
from orchestrator.plan.efficiency import Efficiencies
from orchestrator.plan.failures import Failures, failure_models
from orchestrator.plan.fit import gpu_hours
from orchestrator.plan.footprint import footprint
from orchestrator.plan.forecast import Energy, GoodputPart, Layout, Memory, Range, Step, Width
from orchestrator.plan.goodput import goodput
from orchestrator.plan.outcome import Outcome, layout_of, outcome
from orchestrator.plan.pick import runs_today, usable
from orchestrator.plan.published import architecture, runs
from orchestrator.plan.search import Candidate
from orchestrator.plan.width import amount
from orchestrator.plan.work import Architecture
from orchestrator.plan.workload import RECOMPUTE

MFU = (
    "model FLOPs (causal attention, without multi-token prediction and recomputation) over the dense BF16 peak, "
    "whatever the precision"
)
"""The convention of every MFU here."""
SMALL = 10_000_000_000
"""Parameters that each token uses: docs/planner.md trusts no forecast of smaller mixtures of experts."""
_SHOWN = 5


def memory_of(made: Outcome) -> Memory:
    """Of the chosen layout, and its peak under the other policies of recomputation."""
    candidate = made.candidate
    device = made.request.cluster.accelerator
    under = {
        policy: footprint(made.request.workload, replace(candidate.parallel, recompute=policy)) for policy in RECOMPUTE
    }
    return Memory(
        by_part=candidate.memory.by_part(),
        peak=candidate.memory.peak,
        usable=usable(device),
        device=device.memory_bytes,
        spare=usable(device) - candidate.memory.peak,
        fits=candidate.fits,
        by_recompute={policy: memory.peak for policy, memory in under.items()},
        by_part_of_recompute={policy: memory.by_part() for policy, memory in under.items()},
    )


def step_of(candidate: Candidate) -> Step:
    """Seconds by part; those of nothing are left out."""
    step = candidate.step
    return Step(
        seconds=step.seconds,
        parts={name: seconds for name, seconds in step.parts.items() if seconds > 0},
        overlapped={name: seconds for name, seconds in step.overlapped.items() if seconds > 0},
        tokens_per_second_per_gpu=step.tokens_per_second_per_gpu,
        teraflops_per_gpu=step.mfu * step.peak_flops / 1e12,
        mfu=step.mfu,
        mfu_convention=MFU,
    )


def offered(
    candidates: Sequence[Candidate], made: Outcome, basis: Basis
) -> tuple[tuple[Layout, ...], tuple[Layout, ...]]:
    """The fastest that fit: those that the engine runs today; and of those that it does not, where they are faster, the
    best for each set of things that it lacks."""
    fitting = [one for one in candidates if one.fits]
    today = [one for one in fitting if runs_today(one)]
    fastest = min((one.step.seconds for one in today), default=math.inf)
    other: dict[tuple[str, ...], Candidate] = {}
    for one in fitting:
        if one.needs and one.step.seconds < fastest:
            other.setdefault(one.needs, one)

    def shown(some: Iterable[Candidate]) -> tuple[Layout, ...]:
        return tuple(layout_of(outcome(made.request, one, made.price, basis)) for one in list(some)[:_SHOWN])

    return shown(today), shown(other.values())


def goodput_of(made: Outcome, basis: Basis) -> GoodputPart:
    """Shares of the paid time, and what they cost."""
    found, recovery, failures = made.goodput, basis.recovery, basis.failures
    return GoodputPart(
        fraction=found.fraction,
        checkpoint_minutes=_finite(found.interval_seconds / 60),
        mtbf_hours=_finite(found.mtbf_hours),
        lost=found.lost,
        lost_cost={name: amount(share * made.gpu_hours, made.price.amount) for name, share in found.lost.items()},
        convention=_convention(basis),
        source=f"{failures.name}: {failures.source} ({failures.date})",
        assumptions=(
            f"a checkpoint stops training for {recovery.save_seconds:g} s, and counts {recovery.upload_seconds:g} s "
            "later",
            f"a failure is noticed after {recovery.detect_seconds:g} s (a hang: {recovery.hang_seconds:g} s), new "
            f"processes take {recovery.restart_seconds:g} s, another machine {recovery.replace_seconds:g} s more",
        ),
    )


def _convention(basis: Basis) -> str:
    if not basis.fitted_to_whole_runs:
        return "expected hours are the steps' time over this goodput: the efficiencies come from times of steps"
    return (
        f"expected hours are the steps' time x {basis.lost_already:.4f} / this goodput: the efficiencies are fitted to "
        f"published GPU-hours of a run on {FITTED_GPUS} GPUs, taken to hold that run's failures already (by this model "
        f"{1 - basis.lost_already:.2%} of its time); what is lost is not counted twice"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def energy_of(made: Outcome, device_hours: Range, basis: Basis) -> Energy:
    """GPUs only: hosts, network and storage are not in it."""
    power, device = basis.power, made.request.cluster.accelerator
    kilowatts = device.tdp_watts / 1000
    return Energy(
        kilowatt_hours=Range(
            low=device_hours.low * kilowatts * power.least_share * power.least_pue,
            expected=device_hours.expected * kilowatts * power.share * power.pue,
            high=device_hours.high * kilowatts * power.most_share * power.most_pue,
        ),
        watts_per_gpu=device.tdp_watts * power.share,
        power_usage_effectiveness=power.pue,
        reason=(
            f"{power.share:g} of {device.tdp_watts:g} W printed (Olmo 3, H100: {power.least_share:g} to 0.93), "
            f"PUE {power.pue:g} ({power.least_pue:g} to {power.most_pue:g}); GPUs only, without hosts and network"
        ),
    )


@cache
def prediction_error(constants: Efficiencies) -> Width:
    """The typical error of the planner: published runs that no constant was fitted to, with their published layouts."""
    known = [run for run in runs() if run.use == "predicted" and run.tensor is not None]
    errors = [math.log(gpu_hours(run, constants) * run.throughput * 3600 / run.tokens) for run in known]
    typical = math.exp(math.sqrt(math.fsum(error**2 for error in errors) / len(errors)))
    least, most = math.exp(-max(errors)), math.exp(-min(errors))
    inside = sum(1 / typical <= math.exp(error) <= typical for error in errors)
    reason = (
        f"the planner's typical error (root mean square) on {len(known)} published runs that it was not fitted to: "
        f"{inside} of them lie within it, all took {least:.2f} to {most:.2f} times the hours that it forecasts"
    )
    return Width(affects="hours", low=1 / typical, high=typical, reason=reason)


def is_small(config: Architecture) -> bool:
    """Whether a mixture of experts is of a size at which the forecast is known to be too fast."""
    return not isinstance(config, DenseModel) and count(config).active < SMALL


@cache
def small_model_error(constants: Efficiencies) -> Width:
    """How much longer the published runs of small mixtures of experts took: this model has no term for it."""
    known = [run for run in runs() if run.use == "predicted" and is_small(architecture(run.model))]
    longer = max(run.tokens / run.throughput / 3600 / gpu_hours(run, constants) for run in known)
    names = ", ".join(run.name for run in known)
    reason = (
        f"mixtures of experts with less than {SMALL / 1e9:.0f} B parameters used by each token are slower than this "
        f"model says: {names} took {longer:.2f} times as long; calibrate with runs of your own (`fathom calibrate`)"
    )
    return Width(affects="hours", low=1.0, high=max(1.0, longer), reason=reason)


def hours_widths(made: Outcome, basis: Basis) -> list[Width]:
    """Why the hours may come out otherwise."""
    found = [prediction_error(basis.efficiencies)]
    if basis.fitted_to_whole_runs and is_small(made.request.config):
        found.append(small_model_error(basis.efficiencies))
    if basis.fitted_to_whole_runs:
        reason = (
            "whether the published GPU-hours that the efficiencies are fitted to hold that run's failures is not said: "
            "high, if they do not"
        )
        found.append(Width(affects="hours", low=1.0, high=1 / basis.lost_already, reason=reason))
    fractions = [_fraction(made, basis, failures) for failures in _comparable()]
    least, most = min(fractions), max(fractions)
    mine = made.goodput.fraction
    found.append(
        Width(
            affects="hours",
            low=min(1.0, mine / most),
            high=max(1.0, mine / least),
            reason=f"published failure rates differ: goodput {least:.1%} to {most:.1%} by those of other clusters",
        )
    )
    return found


def _comparable() -> list[Failures]:
    """Models of clusters, not of fault tests."""
    return [one for one in failure_models().values() if not any(cause.every_seconds for cause in one.causes)]


def _fraction(made: Outcome, basis: Basis, failures: Failures) -> float:
    request = made.request
    interval = request.checkpoint_seconds
    return max(0.01, goodput(request.gpus, request.gpus_per_node, failures, basis.recovery, interval).fraction)
