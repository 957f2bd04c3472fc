"""Holds the planner against published runs: `python -m orchestrator.plan.validate` prints docs/planner.md's tables.

Invariant: a row marked predicted had no part in any constant; the error is printed as it comes. Imports no torch.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from model.flops import flops_per_token
from model.presets import preset
from orchestrator.plan.efficiency import Efficiencies, efficiencies, origins
from orchestrator.plan.fit import FITTED
from orchestrator.plan.footprint import footprint
from orchestrator.plan.published import Phase, Run, runs
from orchestrator.plan.search import search
from orchestrator.plan.sections import prediction_error
from orchestrator.plan.step_time import step_time
from orchestrator.plan.workload import Cluster, Parallel, Workload

_DAY = 86_400


@dataclass(frozen=True)
class Outcome:
    """One published run and its forecast."""

    run: Run
    parallels: tuple[Parallel, ...]
    """By phase."""
    throughput: float
    """Forecast tokens per second and GPU, over all phases."""
    mfu: float | None
    """Forecast; of runs with one sequence length only."""
    peak: int
    """Forecast bytes per GPU, the most of all phases."""
    searched: bool
    """Whether the layout is the best one found, because none was published."""

    @property
    def error(self) -> float:
        """Of the throughput, relative: above 0 the forecast is too fast."""
        return self.throughput / self.run.throughput - 1


def outcome(run: Run, constants: Efficiencies) -> Outcome:
    """The forecast of a published run."""
    seconds, parallels, peak, mfu = 0.0, [], 0, 0.0
    for phase in run.phases:
        workload = run.workload(phase)
        parallel = run.parallel(phase) or _best(workload, run.cluster, constants)
        step = step_time(workload, run.cluster, parallel, constants)
        seconds += phase.tokens / step.tokens_per_second_per_gpu
        peak, mfu = max(peak, footprint(workload, parallel).peak), step.mfu
        parallels.append(parallel)
    alone = len(run.phases) == 1
    return Outcome(run, tuple(parallels), run.tokens / seconds, mfu if alone else None, peak, run.tensor is None)


@cache
def outcomes() -> tuple[Outcome, ...]:
    """Of all published runs, with the packaged constants."""
    return tuple(outcome(run, efficiencies()) for run in runs())


def report() -> str:
    """All tables, as Markdown."""
    return "\n\n".join([_constants(), _runs(), _follows(), _searched()]) + "\n"


def layout_name(p: Parallel) -> str:
    """Short: sizes above 1 only."""
    sizes = [
        ("DP", p.data),
        ("TP", p.tensor),
        ("PP", p.pipeline),
        ("VP", p.chunks),
        ("CP", p.context),
        ("EP", p.expert),
    ]
    words = [f"{name}{size}" for name, size in sizes if size > 1 or name == "DP"]
    words.append(f"ZeRO-{p.zero_stage}")
    if p.schedule == "dualpipe":
        words.append("DualPipe")
    return " ".join(words)


def _best(workload: Workload, cluster: Cluster, constants: Efficiencies) -> Parallel:
    return search(workload, cluster, constants)[0].parallel


# ------------------------------------------------------------------ tables


def _constants() -> str:
    values, lines = efficiencies(), ["| constant | value | origin |", "|---|---|---|"]
    for name, origin in origins().items():
        mark = " (fitted)" if name in FITTED else ""
        lines.append(f"| `{name}`{mark} | {getattr(values, name):.4g} | {origin} |")
    return "\n".join(lines)


def _runs() -> str:
    lines = [
        "| run | GPUs | precision | layout | published tokens/s/GPU | forecast | error | forecast MFU | memory, GB | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in outcomes():
        run, mfu = found.run, "" if found.mfu is None else f"{found.mfu:.1%}"
        kind = "FITTED" if run.use == "fitted" else "predicted"
        layout = layout_name(found.parallels[0]) + (" (found)" if found.searched else "")
        whole = " (hours)" if run.gpu_hours else ""
        lines.append(
            f"| {run.name} | {run.gpus} {run.accelerator} | {run.precision} | {layout} | {run.throughput:.0f}{whole} | "
            f"{found.throughput:.0f} | {found.error:+.1%} | {mfu} | {found.peak / 1e9:.0f} | {kind} |"
        )
    return "\n".join([*lines, "", _errors([found for found in outcomes() if found.run.use == "predicted"])])


def _errors(predicted: Sequence[Outcome]) -> str:
    """How far the rows lie from their forecasts, and how many of them in the width that a plan gives its hours."""
    errors, width = [abs(found.error) for found in predicted], prediction_error(efficiencies())
    inside = [found for found in predicted if width.low <= 1 + found.error <= width.high]
    known = [found for found in predicted if not found.searched]
    text = (
        f"Of {len(errors)} predicted rows the median absolute error is {statistics.median(errors):.0%}, the largest "
        f"{max(errors):.0%}. The width that a plan gives its hours for this, x {width.low:.2f} to {width.high:.2f}, "
        f"holds {sum(found in inside for found in known)} of the {len(known)} rows whose layout was published, and "
        f"{len(inside)} of all {len(errors)}."
    )
    return textwrap.fill(text, 120)


def _follows() -> str:
    """Figures of DeepSeek's that follow from the fitted run."""
    run = next(run for run in runs() if run.use == "fitted")
    phase: Phase = run.phases[0]
    workload, parallel = run.workload(phase), run.parallel(phase)
    assert parallel is not None
    step = step_time(workload, run.cluster, parallel, efficiencies())
    speed, config = step.tokens_per_second_per_gpu, preset("v3-671b")
    whole = flops_per_token(config, phase.sequence_length, causal=False) * speed
    daily = speed * run.gpus * _DAY
    rows = [
        ("seconds per step", 19.926, step.seconds, 3),
        ("tokens per day, billions", 272.80, daily / 1e9, 2),
        ("thousand H800 hours per trillion tokens", 180, 1e9 / speed / 3600, 1),
        ("days for 14.8T tokens", 54.2, phase.tokens / daily, 1),
        ("TFLOP/s, causal", 385, step.model_flops * speed / 1e12, 1),
        ("MFU, causal, %", 38.94, 100 * step.mfu, 2),
        ("TFLOP/s, all scores", 432, whole / 1e12, 1),
        ("MFU, all scores, %", 43.73, 100 * whole / step.peak_flops, 2),
    ]
    lines = ["| DeepSeek-V3 | published | follows | difference |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {known} | {ours:.{digits}f} | {ours / known - 1:+.1%} |" for name, known, ours, digits in rows
    ]
    return "\n".join(lines)


def _searched() -> str:
    """What the search makes of DeepSeek-V3's own workload."""
    run = next(run for run in runs() if run.use == "fitted")
    workload = run.workload(run.phases[0])
    found = search(workload, run.cluster, efficiencies())
    own = run.parallel(run.phases[0])
    lines = ["| place | layout | recomputation | tokens/s/GPU | memory, GB |", "|---|---|---|---|---|"]
    for place, candidate in enumerate(found[:6], start=1):
        p = candidate.parallel
        name = layout_name(p) + (" (DeepSeek's own)" if p == own else "")
        speed, peak = candidate.step.tokens_per_second_per_gpu, candidate.memory.peak / 1e9
        lines.append(f"| {place} | {name} | {p.recompute} | {speed:.0f} | {peak:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(), end="")
