"""Bytes on each GPU under a layout with tensors, stages and sequences divided: exact for the states, no torch.

Called by `orchestrator.plan.search`. Invariant: where a layout divides only data and experts, all parts are those of
`orchestrator.plan.memory`, which were measured against the engine. Stages, divided tensors, exchange buffers and
fragmentation were never measured here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache

from orchestrator.plan.activations import entry, kept
from orchestrator.plan.dense import DenseModel
from orchestrator.plan.memory import BUCKET, FLOAT, GROUP, INDEX, Kernels, Policy, logits_bytes, norm_bytes, policy_of
from orchestrator.plan.work import Architecture, Layers, layer_count, layer_runs, parameters, vocabulary_parameters
from orchestrator.plan.workload import Parallel, Workload

FRAGMENTATION = 0.15
"""Share of what is not states that the caching allocator holds besides: what GMLake (arXiv 2401.08156, eight models on
A100s) saved on average by removing fragmentation; up to 0.33 there."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on one GPU of the stage that has most."""

    weights: int
    master: int
    gradients: int
    moments: int
    activations: int
    """Of all micro-batches that are under way at once."""
    logits: int
    buckets: int
    gathered: int
    exchange: int
    """Tokens on their way to and from experts."""
    update: int
    fragmentation: int

    @property
    def states(self) -> int:
        """What stays from step to step, and the gradients."""
        return self.weights + self.master + self.gradients + self.moments

    @property
    def peak(self) -> int:
        """The larger of the backward pass and the update, as `TrainingMemory.peak`, and fragmentation."""
        backward = self.activations + self.logits + self.buckets + self.gathered + self.exchange
        return self.states + max(backward, self.update) + self.fragmentation

    def by_part(self) -> dict[str, int]:
        """Name -> bytes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Stage:
    """Parameters of one stage, and where it lies."""

    layers: tuple[Layers, ...]
    first: bool
    last: bool
    index: int
    common: int
    """Of its layers, without experts."""
    experts: int
    """All routed ones of its layers."""


@lru_cache(maxsize=4096)  # a plan asks again for those that it has searched, and for each device with cheaper hours
def footprint(workload: Workload, parallel: Parallel) -> Footprint:
    """Of the worst stage; call after `workload.check`."""
    found = [_stage(workload, parallel, stage) for stage in stages(workload, parallel)]
    return max(found, key=lambda memory: memory.peak)


def stages(workload: Workload, parallel: Parallel) -> tuple[Stage, ...]:
    """The layers in order, as many to each stage as possible; the last stages may have fewer. Stages between the first
    and the last that are alike are given once, the earliest."""
    return _stages(workload.config, parallel.pipeline)


@cache
def _stages(config: Architecture, pipeline: int) -> tuple[Stage, ...]:
    each = -(-layer_count(config) // pipeline)
    found: list[Stage] = []
    for index in range(pipeline):
        part = _between(layer_runs(config), index * each, (index + 1) * each)
        first, last = index == 0, index == pipeline - 1
        if not last and len(found) > 1 and found[-1].layers == part:
            continue
        common, experts = (sum(run.count * getattr(run, name) for run in part) for name in ("common", "experts"))
        found.append(Stage(part, first, last, index, common, experts))
    return tuple(found)


def _between(runs: tuple[Layers, ...], start: int, stop: int) -> tuple[Layers, ...]:
    """The layers from number `start` to before `stop`."""
    found, begins = [], 0
    for run in runs:
        number = min(stop, begins + run.count) - max(start, begins)
        if number > 0:
            found.append(replace(run, count=number))
        begins += run.count
    return tuple(found)


def _stage(workload: Workload, parallel: Parallel, stage: Stage) -> Footprint:
    p, policy = parallel, policy_of(workload.precision, on_cpu=False)
    ends = (stage.first + stage.last) * vocabulary_parameters(workload.config)
    common = -(-(stage.common + ends + stage.last * workload.config.hidden_size) // p.tensor)
    experts = stage.experts // p.expert
    local = (common + experts) * p.copies
    share = -(-common // p.data) + -(-experts // p.expert_replicas) if p.zero_stage else local
    mixed = p.zero_stage > 0 or policy.weights < FLOAT
    activations = _activations(workload, p, policy, stage)
    logits = _logits(workload, p, policy) if stage.last else 0
    buckets = min(BUCKET, parameters(workload.config)) * policy.gradients if p.zero_stage else 0
    gathered = _gathered(p, stage, ends) * policy.weights if p.zero_stage == 3 else 0
    exchange = _exchange(workload, p, policy) if stage.experts else 0
    update = _update(workload, p, policy, stage, common, experts)
    return Footprint(
        weights=(share if p.zero_stage == 3 else local) * policy.weights,
        master=share * policy.master * mixed,
        gradients=(share if p.zero_stage >= 2 else local) * policy.gradients,
        moments=share * policy.moments,
        activations=activations,
        logits=logits,
        buckets=buckets,
        gathered=gathered,
        exchange=exchange,
        update=update,
        fragmentation=round(FRAGMENTATION * max(activations + logits + buckets + gathered + exchange, update)),
    )


def _activations(workload: Workload, p: Parallel, policy: Policy, stage: Stage) -> int:
    """1F1B holds as many micro-batches as there are stages from this one on; interleaved in v pieces, two of a piece
    for each later stage and those of all earlier pieces (arXiv 2104.04473, section 2.2); DualPipe one more than there
    are stages (DeepSeek-V3, table 2)."""
    config, tokens = workload.config, p.tokens(workload)
    whole = sum(run.count * _kept(workload, p, policy, bool(run.experts)) for run in stage.layers)
    count = p.micro_batches(workload)
    before, v = p.pipeline - stage.index, p.chunks
    under_way = min(float(count), before if v == 1 else (2 * before - 1 + (v - 1) * p.pipeline) / v)
    if p.schedule == "dualpipe":
        under_way = min(count, p.pipeline + 1)
    again = max((_recomputed(workload, p, policy, bool(run.experts)) for run in stage.layers), default=0.0)
    once: float = stage.last * (norm_bytes(config.hidden_size, policy.activations, Kernels.fused) + INDEX)
    once += stage.last * entry(config, policy)
    return round(tokens * (under_way * (whole + once) + again))


def _kept(workload: Workload, p: Parallel, policy: Policy, moe: bool) -> float:
    return kept(workload.config, policy, p.recompute, moe, p.tokens(workload), p.expert, p.plain)


def _recomputed(workload: Workload, p: Parallel, policy: Policy, moe: bool) -> float:
    """Of the one layer whose backward pass runs, what was left out."""
    if p.recompute == "none":
        return 0.0
    whole = kept(workload.config, policy, "none", moe, p.tokens(workload), p.expert, p.plain)
    return whole if p.recompute == "full" else whole - _kept(workload, p, policy, moe)


def _logits(workload: Workload, p: Parallel, policy: Policy) -> int:
    """As `memory.head_bytes`, the vocabulary divided among the GPUs of a tensor."""
    c, heads = workload.config, 1 + layer_count(workload.config) - workload.config.num_hidden_layers
    return _heads(c.vocab_size, c.hidden_size, heads, policy, p.tokens(workload) * p.tensor) // p.tensor


@cache
def _heads(vocabulary: int, width: int, heads: int, policy: Policy, tokens: int) -> int:
    return logits_bytes(vocabulary, width, heads, policy, tokens, Kernels.fused)


def _gathered(p: Parallel, stage: Stage, ends: int) -> int:
    """Elements: the largest layer, and embedding and head."""
    largest = max((run.common - run.entry) // p.tensor + run.experts // p.expert for run in stage.layers)
    return largest + ends // p.tensor


def _exchange(workload: Workload, p: Parallel, policy: Policy) -> int:
    """Rows to be sent and rows received, each token once for each of its experts, at one layer."""
    c = workload.config
    if isinstance(c, DenseModel) or p.expert == 1:
        return 0
    return 2 * p.tokens(workload) * c.num_experts_per_tok * c.hidden_size * policy.activations


def _update(workload: Workload, p: Parallel, policy: Policy, stage: Stage, common: int, experts: int) -> int:
    """As `memory.training_memory`: gradients of the largest group in FP32, and an intermediate of that size."""
    if not p.zero_stage:
        tensor = max((run.experts // p.expert * 2 // 3 for run in stage.layers), default=0)
        copies = (common + experts) * FLOAT if policy.gradients < FLOAT else 0
        return 16 * max(tensor, vocabulary_parameters(workload.config) // p.tensor) + copies
    group = min(experts, GROUP) // p.expert_replicas
    bucket = min(BUCKET, parameters(workload.config)) * policy.gradients if p.zero_stage == 3 else 0
    return max(common // p.data, group) * FLOAT * 2 + bucket
