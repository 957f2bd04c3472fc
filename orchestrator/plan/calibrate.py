"""Fits the planner's constants to one's own finished runs: least squares of log(forecast / measured), with the present
constants as priors. Called by `fathom calibrate`. Imports scipy only when it fits.

Each prior has a width in log space, and each run counts as known to within `NOISE`: one run moves little that it says
nothing about, and many runs determine all. Invariant: a constant stays in the range that its meaning allows, or the
fit is refused.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from orchestrator.errors import UsageError
from orchestrator.plan.cpu import CpuPrior, CpuRates, asked, forecast_cpu
from orchestrator.plan.efficiency import CPU, Efficiencies, own_rows
from orchestrator.plan.hardware import Accelerator
from orchestrator.plan.observed import Observed
from orchestrator.plan.step_time import step_time
from orchestrator.plan.workload import Cluster, Parallel, Workload

NOISE = 0.05
"""By how much a run's own figure is believed to be off, as a share: repeated runs, and what no model of this kind
sees."""
FARTHEST = 3.0
"""Forecast over measured, or its inverse, beyond which a fit explains nothing."""
GROUPS = 20
"""More runs than these are not left out of a fit one by one, which costs time as the square of their number, but in so
many groups, every 20th run in one."""
_MOST_WIDTHS = 8.0
_INSIDE = 0.1
"""Widths from a bound at which a search begins: on it, it would stay there."""
_NAMED = 5

GPU_WIDTHS: dict[str, float] = {
    "matrix_bf16": 0.3, "matrix_fp8": 0.3, "attention": 0.4, "memory": 0.1, "nvlink": 0.1, "network": 0.2,
    "activation_passes": 0.3,
}  # fmt: skip
"""In log space: 0.3 is a third up or a quarter down. The fitted ones come from one run on one stack; bandwidths were
measured by others."""
OVERHEAD = 0.05
"""Width of the prior of `overhead_seconds`, which is 0, as a share of the shortest step: as measured, but no longer
than `FARTHEST` times its forecast, or the overhead would explain anything."""

Values = Mapping[str, float]


@dataclass(frozen=True)
class Constant:
    """One that is fitted: where it starts, how far it may be off, and what it can be at most."""

    name: str
    prior: float
    width: float
    """Standard deviation of the prior: of the logarithm; in the constant's own unit if `prior` is 0."""
    most: float = math.inf

    def at(self, x: float) -> float:
        """The value `x` widths from the prior."""
        return self.prior * math.exp(self.width * x) if self.prior else self.width * x

    @property
    def range(self) -> tuple[float, float]:
        """Of x."""
        if not self.prior:
            return 0.0, _MOST_WIDTHS
        most = math.log(self.most / self.prior) / self.width if math.isfinite(self.most) else _MOST_WIDTHS
        return -_MOST_WIDTHS, max(min(most, _MOST_WIDTHS), 1e-9)


@dataclass(frozen=True)
class Run:
    """A measured run and its forecast by the constants."""

    name: str
    measured: float
    forecast: Callable[[Values], float]


@dataclass(frozen=True)
class Fitted:
    """One constant after the fit."""

    constant: Constant
    value: float
    spread: float
    """Standard deviation, as `Constant.width`."""


@dataclass(frozen=True)
class Error:
    """One run: seconds of a step."""

    name: str
    measured: float
    before: float
    """Forecast by the priors."""
    after: float
    left_out: float | None
    """Forecast by the fit to all other runs, or to those outside its group; None if there are none."""


@dataclass(frozen=True)
class Calibration:
    """A fit."""

    device: str
    constants: tuple[Fitted, ...]
    errors: tuple[Error, ...]

    @property
    def values(self) -> dict[str, float]:
        """By name."""
        return {one.constant.name: one.value for one in self.constants}


def calibrate(
    observed: Sequence[Observed],
    efficiencies: Efficiencies,
    devices: Mapping[str, Accelerator],
    cpu: Mapping[str, CpuPrior],
) -> Calibration:
    """Of all runs, which must be of one kind of device. UsageError says what is wrong, and with which run."""
    if not observed:
        raise UsageError("no runs: calibration needs at least 1, got 0")
    device = observed[0].device
    for one in observed:
        if one.device != device:
            raise UsageError(
                f"runs of one kind of device at a time: {observed[0].name} ran on {device}, {one.name} on {one.device}"
            )
    if device == "cpu":
        constants = [Constant(f"{CPU}{name}", prior.value, prior.width) for name, prior in cpu.items()]
        runs = [_cpu_run(one) for one in observed]
    else:
        if device not in devices:
            raise UsageError(f"{observed[0].name} ran on {device!r}; known: {', '.join(devices)} (and cpu)")
        runs = [_gpu_run(one, efficiencies, devices[device]) for one in observed]
        shortest = min(min(run.measured, FARTHEST * run.forecast({})) for run in runs)
        constants = _gpu_constants(efficiencies, shortest)
    return fit(device, constants, runs)


def file_text(calibration: Calibration, path: Path, today: datetime.date) -> str:
    """The efficiency file with these constants; what the file at `path` says of others stays. UsageError if there is a
    file that is none of this kind."""
    kept = own_rows(path) if path.exists() else []
    values, runs = calibration.values, calibration.errors
    names = ", ".join(error.name for error in runs[:_NAMED]) + (", ..." if len(runs) > _NAMED else "")
    rows = [row.model_dump() for row in kept if row.name not in values]
    for one in calibration.constants:
        origin = (
            f"CALIBRATED {today} to {len(runs)} runs on {calibration.device} ({names}); was {one.constant.prior:.4g}; "
            f"standard deviation {one.spread:.2g}{' of the logarithm' if one.constant.prior else ''}"
        )
        rows.append({"name": one.constant.name, "value": float(f"{one.value:.5g}"), "origin": origin})
    return yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=120)


def fit(device: str, constants: Sequence[Constant], runs: Sequence[Run]) -> Calibration:
    """The constants that explain the runs, and how well, each run left out in turn, or each of `GROUPS` groups."""
    values, spreads = _solve(constants, runs)
    prior = {one.name: one.prior for one in constants}
    others = [[run for index, run in enumerate(runs) if index % GROUPS != group] for group in range(GROUPS)]
    without = [_solve(constants, kept)[0] if kept else None for kept in others[: len(runs)]]
    errors = []
    for index, run in enumerate(runs):
        known = without[index % GROUPS]
        left_out = None if known is None else run.forecast(known)
        errors.append(Error(run.name, run.measured, run.forecast(prior), run.forecast(values), left_out))
    worst = max(errors, key=lambda error: abs(math.log(error.after / error.measured)))
    if not 1 / FARTHEST <= worst.after / worst.measured <= FARTHEST:
        raise UsageError(
            f"{worst.name}: measured {worst.measured:.4g} s for a step, forecast {worst.after:.4g} s even after the "
            f"fit: beyond a factor of {FARTHEST:g} the runs do not fit the model; correct one of them, or leave it out"
        )
    fitted = [Fitted(one, values[one.name], spreads[one.name]) for one in constants]
    return Calibration(device, tuple(fitted), tuple(errors))


def _solve(constants: Sequence[Constant], runs: Sequence[Run]) -> tuple[dict[str, float], dict[str, float]]:
    """-> values and standard deviations by name. Unknowns are widths from the prior."""
    try:
        import numpy as np
        from scipy.optimize import least_squares
    except ImportError as error:
        raise UsageError(
            f"calibration needs a package that is missing ({error}): run `pip install 'fathom-train[train]'`"
        ) from error

    def values(x: Sequence[float]) -> dict[str, float]:
        return {one.name: one.at(float(there)) for one, there in zip(constants, x, strict=True)}

    def wrong(x: Sequence[float]) -> list[float]:
        now = values(x)
        return [*(math.log(run.forecast(now) / run.measured) / NOISE for run in runs), *map(float, x)]

    low, high = zip(*(one.range for one in constants), strict=True)
    start = [min(max(0.0, a + _INSIDE), b - _INSIDE) for a, b in zip(low, high, strict=True)]
    found = least_squares(wrong, start, bounds=(low, high), x_scale=1.0)
    if not found.success:
        raise UsageError(f"no fit of {len(constants)} constants to {len(runs)} runs: {found.message}")
    of_runs = found.fun[: len(runs)]
    excess = max(1.0, float(np.mean(np.square(of_runs)))) if len(runs) else 1.0
    deviations = np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)) * excess)
    return values(found.x), {
        one.name: one.width * min(1.0, float(sd)) for one, sd in zip(constants, deviations, strict=True)
    }


def forecast_of(
    one: Observed, efficiencies: Efficiencies, devices: Mapping[str, Accelerator], rates: CpuRates | None
) -> float | None:
    """Seconds of a step of a run that was measured, as `Observed.measured`; None where nothing is known of its
    device."""
    if one.device == "cpu":
        return None if rates is None or one.precision != "fp32" else forecast_cpu(one, rates)
    return None if one.device not in devices else _gpu_run(one, efficiencies, devices[one.device]).forecast({})


def _cpu_run(one: Observed) -> Run:
    try:
        amounts = asked(one)
    except ValueError as error:
        raise UsageError(f"{one.name}: {error}") from error

    def forecast(values: Values) -> float:
        return sum(amount / values[f"{CPU}{name}"] for name, amount in amounts.items())

    return Run(one.name, one.measured, forecast)


def _gpu_constants(efficiencies: Efficiencies, shortest: float) -> list[Constant]:
    shares = [name for name in GPU_WIDTHS if name != "activation_passes"]
    found = [Constant(name, getattr(efficiencies, name), GPU_WIDTHS[name], 1.0) for name in shares]
    found.append(Constant("activation_passes", efficiencies.activation_passes, GPU_WIDTHS["activation_passes"]))
    overhead = efficiencies.overhead_seconds
    return [*found, Constant("overhead_seconds", overhead, 0.5 if overhead else OVERHEAD * shortest)]


def _gpu_run(one: Observed, efficiencies: Efficiencies, accelerator: Accelerator) -> Run:
    """Our own engine's run: no stages, no divided tensors."""
    of = one.layout
    try:
        workload = Workload(one.model, one.sequence_length, one.batch_tokens, one.precision, one.batch_tokens)
        cluster = Cluster(accelerator, of.world_size, one.gpus_per_node)
        parallel = Parallel(
            data=of.world_size,
            expert=of.expert_parallel,
            zero_stage=of.zero_stage,
            micro_batch=of.micro_batch,
            recompute=of.recompute,
        )
        step_time(workload, cluster, parallel, efficiencies)
    except ValueError as error:
        raise UsageError(f"{one.name}: {error}") from error

    def forecast(values: Values) -> float:
        return step_time(workload, cluster, parallel, replace(efficiencies, **values)).seconds

    return Run(one.name, one.measured, forecast)
