"""Chooses how the workers share the model and the batch. Called by `orchestrator.launch.choose` only.

On GPUs the planner's search chooses; on CPUs, of whose speed it knows nothing, rules do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace

from model.config import ModelConfig
from model.recipe import Layout, PrecisionName, Recipe
from orchestrator.errors import UsageError
from orchestrator.launch.choices import Choices, refusal
from orchestrator.launch.limits import Asked, require_possible
from orchestrator.plan import defaults
from orchestrator.plan.efficiency import Efficiencies, efficiencies
from orchestrator.plan.hardware import Accelerator, accelerators
from orchestrator.plan.pick import chosen, does_not_fit, layouts
from orchestrator.plan.request import Request, Wish, wish_of
from orchestrator.plan.search import Candidate
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob


def choose_layout(
    job: TrainingJob,
    config: ModelConfig,
    sequence: int,
    choose: Choices,
    *,
    settings: Settings,
    precision: PrecisionName,
    begun: Recipe | None = None,
) -> Layout:
    """Expert parallelism, micro-batch and accumulation; `begun`: a recipe whose batches must not change.

    On GPUs by the hardware and efficiencies of `settings`; UsageError if those files are bad.
    """
    parallelism, compute = job.spec.parallelism, job.spec.compute
    world = compute.world_size
    require_possible(
        Asked(
            world_size=world,
            expert_parallel=parallelism.expert or 1,
            zero_stage=1 if parallelism.zero_stage is None else parallelism.zero_stage,
            pipeline=parallelism.pipeline or 1,
            precision=precision,
            accelerator=compute.accelerator,
        )
    )
    per_node = _machines(job, choose)
    _require_experts(job, config)
    if begun is None:
        batch = _batch(job, sequence, choose)
        common = batch // sequence
    else:
        batch = begun.batch_tokens
        common = math.gcd(*begun.batches.sequences)  # what all batches of a ramp are multiples of
        _require_same_batch(job, common)
    task = _Task(
        job, config, precision, sequence, common, per_node, None if begun is None else _kept(job, begun, precision)
    )
    layout = _on_cpus(task, choose) if compute.accelerator == "cpu" else _on_gpus(task, settings, choose)
    return layout.model_copy(update={"accumulation": batch // (world * sequence * layout.micro_batch)})


@dataclass(frozen=True)
class _Task:
    """What is to be laid out."""

    job: TrainingJob
    config: ModelConfig
    precision: PrecisionName
    sequence: int
    """Tokens."""
    common: int
    """Sequences that every batch is a multiple of."""
    per_node: int
    begun: Wish | None
    """The layout of the attempt before, where this one can go on with it."""


def _on_cpus(task: _Task, choose: Choices) -> Layout:
    """By rules: most machines are not calibrated."""
    parallelism, world, experts = (
        task.job.spec.parallelism,
        task.job.spec.compute.world_size,
        task.config.n_routed_experts,
    )
    expert = choose("spec.parallelism.expert", parallelism.expert, lambda: defaults.experts_on_cpus(world, experts))
    zero_stage = choose("spec.parallelism.zeroStage", parallelism.zero_stage, lambda: (1, "the usual on CPUs"))
    micro_batch = choose(
        "spec.parallelism.microBatch",
        parallelism.micro_batch,
        lambda: defaults.micro_batch_on_cpus(task.common // world, task.sequence),
    )
    recompute = choose("spec.parallelism.recompute", parallelism.recompute, lambda: ("none", "fastest"))
    return _layout(world, expert, zero_stage, micro_batch, recompute)


def _on_gpus(task: _Task, settings: Settings, choose: Choices) -> Layout:
    """The fastest layout that fits and that the engine runs, by `plan.search` on the data of `fathom plan`."""
    parallelism, devices = task.job.spec.parallelism, accelerators(settings.hardware_file)
    request = _request(task, devices[task.job.spec.compute.accelerator])
    constants = efficiencies(settings.efficiencies_file)
    candidate, reason = chosen(_going_on(task, request, constants), "today"), "as in the attempt before"
    if candidate is None:
        candidate, reason = _searched(request, constants, devices)
    found = candidate.parallel
    return _layout(
        request.gpus,
        choose("spec.parallelism.expert", parallelism.expert, lambda: (found.expert, reason)),
        choose("spec.parallelism.zeroStage", parallelism.zero_stage, lambda: (found.zero_stage, reason)),
        choose("spec.parallelism.microBatch", parallelism.micro_batch, lambda: (found.micro_batch, reason)),
        choose("spec.parallelism.recompute", parallelism.recompute, lambda: (found.recompute, reason)),
    )


def _searched(request: Request, constants: Efficiencies, devices: Mapping[str, Accelerator]) -> tuple[Candidate, str]:
    """The fastest layout, and why it is taken."""
    try:
        candidates = layouts(request, constants, today=True)
    except UsageError as error:
        raise refusal("parallelism", str(error)) from None
    best = chosen(candidates, "today")
    if best is None:
        raise refusal("compute.gpus", does_not_fit(request, candidates, constants, devices, today=True))
    return best, (
        f"fastest of {sum(one.fits for one in candidates)} layouts that fit: {best.step.seconds:.3g} s a step and "
        f"{best.memory.peak / 1e9:.1f} of {request.cluster.accelerator.memory_bytes / 1e9:.0f} GB by the plan"
    )


def _kept(job: TrainingJob, begun: Recipe, precision: PrecisionName) -> Wish | None:
    """The layout of the attempt before, if the job asks for nothing else: another expert size or ZeRO stage, chosen
    because a data file has changed meanwhile, could be one that its checkpoints cannot be read on."""
    of, now = begun.layout, wish_of(job.spec.parallelism)
    before = Wish(of.expert_parallel, of.zero_stage, of.micro_batch, of.recompute)
    agrees = all(wanted in (None, had) for wanted, had in zip(astuple(now), astuple(before), strict=True))
    same = of.world_size == job.spec.compute.world_size and begun.precision == precision
    return before if agrees and same else None


def _going_on(task: _Task, request: Request, constants: Efficiencies) -> list[Candidate]:
    """The layout of the attempt before; none if there was none, or it does not run."""
    if task.begun is None:
        return []
    try:
        return layouts(replace(request, wish=task.begun), constants, today=True)
    except UsageError:
        return []


def _request(task: _Task, device: Accelerator) -> Request:
    """What the planner is asked."""
    spec, batch = task.job.spec, task.common * task.sequence
    return Request(
        name=spec.model.preset or "the model",
        config=task.config,
        device=device,
        gpus=spec.compute.world_size,
        gpus_per_node=task.per_node,
        tokens=max(spec.training.tokens, batch),
        sequence_length=task.sequence,
        batch_tokens=batch,
        precision=task.precision,
        price_class=spec.compute.price_class,
        wish=wish_of(spec.parallelism),
        assumed=(),
    )


def _machines(job: TrainingJob, choose: Choices) -> int:
    """GPUs of one machine; on CPUs all workers share one."""
    compute, world = job.spec.compute, job.spec.compute.world_size
    if compute.accelerator == "cpu":
        return world
    per_node = choose("spec.compute.gpusPerNode", compute.gpus_per_node, lambda: defaults.gpus_per_node(world))
    if wrong := defaults.fill_nodes(world, per_node):
        raise refusal("compute.gpus", wrong)
    return per_node


def _layout(world: int, expert: int, zero_stage: int, micro_batch: int, recompute: str) -> Layout:
    return Layout.model_validate(
        {
            "world_size": world,
            "expert_parallel": expert,
            "zero_stage": zero_stage,
            "micro_batch": micro_batch,
            "accumulation": 1,
            "recompute": recompute,
        }
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


def _require_experts(job: TrainingJob, config: ModelConfig) -> None:
    """Experts and workers can be shared as the job says; of those that it leaves open any choice can."""
    size, world, experts = job.spec.parallelism.expert, job.spec.compute.world_size, config.n_routed_experts
    if size is not None and experts % size:
        raise refusal("parallelism.expert", f"{size} does not divide the model's {experts} routed experts")
    if size is not None and world % size:
        raise refusal("parallelism.expert", f"{size} does not divide the {world} workers")
