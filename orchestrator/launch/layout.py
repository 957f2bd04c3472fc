"""Chooses how the workers share the model and the batch. Called by `orchestrator.launch.choose` only."""

from __future__ import annotations

import math
from typing import Literal

from model.config import ModelConfig
from model.recipe import Layout, Recipe
from orchestrator.launch.choices import Choices, refusal
from orchestrator.launch.limits import Asked, require_possible
from orchestrator.plan import defaults
from orchestrator.spec import TrainingJob

_MAX_MICRO_BATCH_TOKENS = 8192


def choose_layout(
    job: TrainingJob,
    config: ModelConfig,
    sequence: int,
    choose: Choices,
    *,
    precision: str,
    begun: Recipe | None = None,
) -> Layout:
    """Expert parallelism, micro-batch and accumulation; `begun`: a recipe whose batches must not change."""
    parallelism, compute = job.spec.parallelism, job.spec.compute
    world = compute.world_size
    require_possible(
        Asked(
            world_size=world,
            expert_parallel=parallelism.expert or 1,
            zero_stage=parallelism.zero_stage,
            pipeline=parallelism.pipeline or 1,
            precision=precision,
            accelerator=compute.accelerator,
        )
    )
    expert = _expert(job, config, choose)
    if begun is None:
        batch = _batch(job, sequence, choose)
        common = batch // sequence
    else:
        batch = begun.batch_tokens
        common = math.gcd(*begun.batches.sequences)  # what all batches of a ramp are multiples of
        _require_same_batch(job, common)
    sequences = batch // (world * sequence)
    micro_batch = choose(
        "spec.parallelism.microBatch", parallelism.micro_batch, lambda: _micro_batch(common // world, sequence)
    )
    return Layout(
        world_size=world,
        expert_parallel=expert,
        zero_stage=parallelism.zero_stage,
        micro_batch=micro_batch,
        accumulation=sequences // micro_batch,
        recompute=_recompute(job, choose),
    )


def _batch(job: TrainingJob, sequence: int, choose: Choices) -> int:
    """Tokens of a batch, which the workers can share."""
    training, micro, world = job.spec.training, job.spec.parallelism.micro_batch, job.spec.compute.world_size
    unit = world * sequence * (micro or 1)
    batch = choose(
        "spec.training.globalBatchTokens",
        training.global_batch_tokens,
        lambda: defaults.batch_tokens(job.spec.model.preset, training.tokens, unit),
    )
    if batch % unit:
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        raise refusal(
            "training.globalBatchTokens",
            f"{batch} is no multiple of {unit} ({world} workers x {sequence} tokens"
            f"{f' x microBatch {micro}' if micro else ''}): use {f'{below} or {above}' if below else above}",
        )
    if training.tokens < batch:
        raise refusal(
            "training.tokens",
            f"{training.tokens} is less than one batch of {batch}: raise it, or lower globalBatchTokens",
        )
    return batch


def _require_same_batch(job: TrainingJob, sequences: int) -> None:
    """The workers can share the batch that the run has begun with."""
    compute, micro = job.spec.compute, job.spec.parallelism.micro_batch
    world = compute.world_size
    if sequences % world:
        raise refusal(
            "compute.workers" if compute.accelerator == "cpu" else "compute.gpus",
            f"{world} workers cannot share the {sequences} sequences that every batch of the run is a multiple of: "
            f"use {_nearest(world, sequences)}",
        )
    each = sequences // world
    if micro is not None and each % micro:
        raise refusal(
            "parallelism.microBatch",
            f"{micro} does not divide the {each} sequences per worker ({sequences} of a batch, {world} workers): "
            f"use {_nearest(micro, each)}",
        )


def _nearest(number: int, whole: int) -> str:
    """The divisors of `whole` next to `number`."""
    below = next(size for size in range(min(number, whole), 0, -1) if whole % size == 0)
    above = next((size for size in range(number, whole + 1) if whole % size == 0), None)
    return f"{below} or {above}" if above else str(below)


def _expert(job: TrainingJob, config: ModelConfig, choose: Choices) -> int:
    """Workers that share one set of experts."""
    compute, experts = job.spec.compute, config.n_routed_experts
    world = compute.world_size
    per_node = world
    if compute.accelerator != "cpu":
        per_node = choose(
            "spec.compute.gpusPerNode",
            compute.gpus_per_node,
            lambda: defaults.gpus_per_node(world),
        )
        if wrong := defaults.fill_nodes(world, per_node):
            raise refusal("compute.gpus", wrong)

    def largest() -> tuple[int, str]:
        size = 1
        while 2 * size <= min(world, per_node) and world % (2 * size) == 0 and experts % (2 * size) == 0:
            size *= 2
        return size, f"largest power of two on one node that divides {world} workers and {experts} experts"

    size = choose("spec.parallelism.expert", job.spec.parallelism.expert, largest)
    if experts % size:
        raise refusal("parallelism.expert", f"{size} does not divide the model's {experts} routed experts")
    if world % size:
        raise refusal("parallelism.expert", f"{size} does not divide the {world} workers")
    return size


def _micro_batch(sequences: int, length: int) -> tuple[int, str]:
    """The largest divisor of a worker's sequences that keeps a forward pass small."""
    bound = max(1, _MAX_MICRO_BATCH_TOKENS // length)
    size = next(size for size in range(min(bound, sequences), 0, -1) if sequences % size == 0)
    return size, f"divides {sequences} sequences per worker, at most {_MAX_MICRO_BATCH_TOKENS} tokens a pass"


def _recompute(job: TrainingJob, choose: Choices) -> Literal["none", "full"]:
    given = job.spec.parallelism.recompute
    choose("spec.parallelism.recompute", given, lambda: ("none", "fastest; full saves memory"))
    return given or "none"
