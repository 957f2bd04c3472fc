"""Fits efficiencies to what was measured: the packaged ones to DeepSeek-V3, a user's to the user's own runs. No torch.

`python -m orchestrator.plan.fit` prints what the packaged constants are fitted to; a test holds the data file to it.
Invariant: a fit that does not converge, or whose constants leave (0, 1], raises ValueError; nothing is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.plan.efficiency import Efficiencies, efficiencies
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.published import Run, architecture, runs
from orchestrator.plan.step_time import step_time
from orchestrator.plan.workload import Cluster, Parallel, Workload

FITTED = ("matrix_fp8", "attention", "matrix_bf16")
FP8_GAIN = 1.28
"""FP8 over BF16, whole steps of a dense model on the same stack (NVIDIA NeMo, 2025)."""
_ITERATIONS, _STEP, _CLOSE = 50, 1e-4, 1e-10


@dataclass(frozen=True)
class Observation:
    """Something measured, and how it is forecast."""

    name: str
    forecast: Callable[[Efficiencies], float]
    actual: float


def fit(names: Sequence[str], observations: Sequence[Observation], start: Efficiencies) -> Efficiencies:
    """The constants of these names that make all forecasts right; where there are more observations than names, least
    squares of the logarithms of forecast over actual. Gauss-Newton over logarithms."""
    if len(observations) < len(names):
        raise ValueError(f"{len(observations)} observations cannot fix {len(names)} constants ({', '.join(names)})")
    values = [math.log(getattr(start, name)) for name in names]
    for _ in range(_ITERATIONS):
        wrong = _errors(names, values, observations, start)
        slopes = []
        for index in range(len(names)):
            moved = [value + _STEP * (index == other) for other, value in enumerate(values)]
            shifted = _errors(names, moved, observations, start)
            slopes.append([(after - before) / _STEP for after, before in zip(shifted, wrong, strict=True)])
        change = _least_squares(slopes, wrong)
        values = [value - delta for value, delta in zip(values, change, strict=True)]
        if max(map(abs, change)) < _CLOSE:
            return _replaced(start, names, values)
    raise ValueError(f"no fit of {', '.join(names)} after {_ITERATIONS} iterations: {[o.name for o in observations]}")


def packaged() -> Efficiencies:
    """What the data file must hold, to its digits."""
    found = fit(FITTED, observations(), efficiencies())
    return replace(found, **{name: float(f"{getattr(found, name):.4g}") for name in FITTED})


def observations() -> list[Observation]:
    """Hours of DeepSeek-V3's pre-training and context extension, and what FP8 gains on a dense model."""
    of_runs = [_of_run(run) for run in runs() if run.use == "fitted"]
    return [*of_runs, Observation("FP8 over BF16, Llama 70B on 64 H100", _fp8_gain, FP8_GAIN)]


def gpu_hours(run: Run, constants: Efficiencies) -> float:
    """Forecast of a run whose layout was published."""
    seconds = 0.0
    for phase in run.phases:
        parallel = run.parallel(phase)
        assert parallel is not None, f"{run.name}: no layout"
        step = step_time(run.workload(phase), run.cluster, parallel, constants)
        seconds += phase.tokens / step.tokens_per_second_per_gpu
    return seconds / 3600


def _of_run(run: Run) -> Observation:
    assert run.gpu_hours is not None, f"{run.name}: no hours"
    return Observation(run.name, lambda constants: gpu_hours(run, constants), run.gpu_hours)


def _fp8_gain(constants: Efficiencies) -> float:
    """The run is NVIDIA's Llama-3-70B: tensors over 4 GPUs, 8 stages of 5 pieces, 128 sequences of 8192 tokens."""
    config, cluster = architecture("llama-3.1-70b"), Cluster(accelerator("H100"), 64, 8)
    parallel = Parallel(data=2, tensor=4, pipeline=8, chunks=5)
    bf16, fp8 = (
        step_time(Workload(config, 8192, 128 * 8192, precision, 10**12), cluster, parallel, constants).seconds
        for precision in ("bf16", "fp8")
    )
    return bf16 / fp8


def _replaced(start: Efficiencies, names: Sequence[str], values: Sequence[float]) -> Efficiencies:
    found = {name: math.exp(value) for name, value in zip(names, values, strict=True)}
    try:
        return replace(start, **found)
    except ValueError as error:
        raise ValueError(f"the runs do not fit the model: {error}") from error


def _errors(
    names: Sequence[str], values: Sequence[float], observations: Sequence[Observation], start: Efficiencies
) -> list[float]:
    constants = _replaced(start, names, values)
    return [math.log(seen.forecast(constants) / seen.actual) for seen in observations]


def _least_squares(slopes: list[list[float]], wrong: list[float]) -> list[float]:
    """x with (A^T A) x = A^T b, A's columns being `slopes`: by elimination; there are at most a handful."""
    size = len(slopes)
    rows = [
        [sum(map(float.__mul__, one, other)) for other in slopes] + [sum(map(float.__mul__, one, wrong))]
        for one in slopes
    ]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        if abs(rows[pivot][column]) < 1e-12:
            raise ValueError("the observations do not tell the constants apart: give runs that differ more")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(size):
            if row != column:
                factor = rows[row][column] / rows[column][column]
                rows[row] = [a - factor * b for a, b in zip(rows[row], rows[column], strict=True)]
    return [rows[index][size] / rows[index][index] for index in range(size)]


if __name__ == "__main__":
    for name in FITTED:
        print(f"{name}: {getattr(packaged(), name)}")
