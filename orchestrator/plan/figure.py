"""A plan's memory and time by part, as a picture shows them. Pure; imports no torch and draws nothing.

Called by `orchestrator.cli.plan`; `tracking.plan_picture` draws it. Invariants: the parts of a bar add up to its peak,
the seconds that count to the step's, and each part of the plan is there once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.plan.forecast import Memory, Plan, Step

PARTS = {
    "attention_projections": "matrix products: attention's projections",
    "routed_experts": "matrix products: routed experts",
    "shared_experts": "matrix products: shared experts",
    "dense": "matrix products: dense layers",
    "router": "matrix products: router",
    "head": "matrix products: output head",
    "prediction": "matrix products: entry of prediction modules",
    "attention": "attention itself",
    "activations": "norms, activations: memory traffic",
    "recomputation": "recomputation",
    "exchange_nvlink": "experts' all-to-all over NVLink",
    "exchange_network": "experts' all-to-all over the network",
    "tensor": "tensor parallelism",
    "context": "context parallelism",
    "stages": "activations between stages",
    "zero_reduce": "ZeRO: gradients",
    "zero_gather": "ZeRO: weights",
    "bubble": "pipeline bubble",
    "optimizer": "optimizer",
    "overhead": "overhead",
}
"""Parts of a step, by the planner's names."""
MEMORY = {
    "master": "master weights (FP32)",
    "moments": "moments of AdamW",
    "buckets": "communication buffers",
    "gathered": "gathered weights (ZeRO-3)",
    "exchange": "experts' all-to-all",
    "logits": "logits and output head",
    "update": "update (after the backward pass)",
}
_UPDATE = "update"
_STAYS = ("weights", "master", "gradients", "moments")


@dataclass(frozen=True)
class Bar:
    """One GPU under one policy of recomputation, in bytes."""

    policy: str
    chosen: bool
    fits: bool
    peak: int
    parts: dict[str, int]
    """Without those of nothing, and without those that are gone when memory is at its highest."""


@dataclass(frozen=True)
class Row:
    """Seconds of one part of a step."""

    part: str
    counts: float
    """That nothing else hides."""
    hidden: float
    """That pass behind other parts."""


@dataclass(frozen=True)
class Figure:
    """What is drawn; a half that the plan does not have is empty."""

    bars: tuple[Bar, ...]
    usable: int
    device: int
    """Bytes, as sold."""
    rows: tuple[Row, ...]
    """Those that count most come first, what is only hidden last."""
    seconds: float
    """Of the step."""


def figure_of(plan: Plan) -> Figure:
    """All that can be drawn; ValueError where the plan has neither memory nor time by part, as on CPUs."""
    if plan.memory is None and plan.step is None:
        raise ValueError("this plan has no memory and no time by part")
    memory, step = plan.memory, plan.step
    return Figure(
        bars=_bars(memory, plan.layout.recompute if plan.layout else "") if memory else (),
        usable=memory.usable if memory else 0,
        device=memory.device if memory else 0,
        rows=_rows(step) if step else (),
        seconds=step.seconds if step else 0.0,
    )


def memory_label(part: str) -> str:
    """As the tables call it."""
    return MEMORY.get(part, part.replace("_", " "))


def time_label(part: str) -> str:
    """As the tables call it; time and memory both know `activations`."""
    return PARTS.get(part, part.replace("_", " "))


def at_the_peak(parts: dict[str, int], peak: int) -> dict[str, int]:
    """Parts that are there together when memory is at its highest: either the update or what the backward pass holds.

    ValueError if neither adds up to `peak`.
    """
    backward = {name: size for name, size in parts.items() if name != _UPDATE}
    update = {name: size for name, size in parts.items() if name in (*_STAYS, _UPDATE, "fragmentation")}
    for found in (backward, update):
        if sum(found.values()) == peak:
            return {name: size for name, size in found.items() if size}
    raise ValueError(f"parts of memory add up to {sum(backward.values())} or {sum(update.values())} bytes, not {peak}")


def _bars(memory: Memory, chosen: str) -> tuple[Bar, ...]:
    found = []
    for policy, parts in memory.by_part_of_recompute.items():
        peak = memory.by_recompute[policy]
        found.append(Bar(policy, policy == chosen, peak <= memory.usable, peak, at_the_peak(parts, peak)))
    return tuple(found)


def _rows(step: Step) -> tuple[Row, ...]:
    names = dict.fromkeys([*step.parts, *step.overlapped])
    rows = [Row(name, _finite(step.parts.get(name, 0.0)), _finite(step.overlapped.get(name, 0.0))) for name in names]
    return tuple(sorted(rows, key=lambda row: (-row.counts, -row.hidden)))


def _finite(seconds: float) -> float:
    """What is no number cannot be drawn, and is never part of a plan."""
    if not math.isfinite(seconds):
        raise ValueError(f"seconds of a step must be finite, got {seconds}")
    return seconds
