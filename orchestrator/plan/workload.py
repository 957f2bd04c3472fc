"""What is to be trained, on what, and how it is laid out: the planner's inputs. Imports no torch.

Called by everything in `orchestrator.plan`. Invariant: a value that exists makes sense by itself, and what passed
`check` makes sense together; every ValueError names both numbers that do not fit and what would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from model.config import ModelConfig
from model.recipe import PrecisionName
from orchestrator.plan.dense import DenseModel
from orchestrator.plan.hardware import Accelerator

Recompute = Literal["none", "selective", "full"]
Schedule = Literal["1f1b", "dualpipe"]
Dispatch = Literal["expert", "node"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
_COUNTS = ("data", "tensor", "pipeline", "expert", "micro_batch", "context", "chunks")
"""Of a layout."""
MOST_GPUS = 1_000_000
MOST_TOKENS = 10**18
MOST_SEQUENCE = 100_000_000


@cache
def _first(config: ModelConfig | DenseModel) -> ModelConfig | DenseModel:
    """Of all that are equal. A search looks up what it knows of a configuration some 100,000 times, and two that are
    not one and the same are compared field by field each time."""
    return config


@dataclass(frozen=True)
class Workload:
    """A training run: architecture, data and arithmetic."""

    config: ModelConfig | DenseModel
    sequence_length: int
    batch_tokens: int
    """Of one optimizer step, on all GPUs together."""
    precision: PrecisionName
    tokens: int
    """Of the whole run."""

    def __post_init__(self) -> None:
        _whole("sequence_length", self.sequence_length, MOST_SEQUENCE)
        _whole("batch_tokens", self.batch_tokens, MOST_TOKENS)
        _whole("tokens", self.tokens, MOST_TOKENS)
        if self.precision not in ("fp32", "bf16", "fp8"):
            raise ValueError(f"precision must be fp32, bf16 or fp8, got {self.precision!r}")
        if self.batch_tokens % self.sequence_length:
            below = max(1, self.batch_tokens // self.sequence_length) * self.sequence_length
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be a multiple of sequence_length ({self.sequence_length}), "
                f"e.g. {below}"
            )
        object.__setattr__(self, "config", _first(self.config))

    @property
    def sequences(self) -> int:
        """Of one optimizer step."""
        return self.batch_tokens // self.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return math.ceil(self.tokens / self.batch_tokens)


@dataclass(frozen=True)
class Cluster:
    """Equal GPUs in equal nodes; within a node NVLink, between nodes the network."""

    accelerator: Accelerator
    gpus: int
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        _whole("gpus", self.gpus, MOST_GPUS)
        _whole("gpus_per_node", self.gpus_per_node, MOST_GPUS)
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            whole = self.gpus // self.gpus_per_node * self.gpus_per_node
            raise ValueError(
                f"gpus ({self.gpus}) must be whole nodes of gpus_per_node ({self.gpus_per_node}): "
                f"{whole} or {whole + self.gpus_per_node}"
            )

    @property
    def local(self) -> int:
        """GPUs of a node that is in use."""
        return min(self.gpus, self.gpus_per_node)


@dataclass(frozen=True)
class Parallel:
    """A layout. Neighbouring GPUs share a tensor, then a sequence or experts; stages are farthest apart."""

    data: int
    """Groups that each hold (a part of) the whole model; data * tensor * pipeline are all GPUs."""
    tensor: int = 1
    """GPUs that divide each matrix, and the sequence between matrices (sequence parallelism)."""
    pipeline: int = 1
    """Stages."""
    expert: int = 1
    """GPUs that divide the routed experts, out of the data * tensor of one stage."""
    zero_stage: int = 1
    micro_batch: int = 1
    """Sequences of one forward pass."""
    recompute: Recompute = "none"
    """selective: norms, up-projections of latent attention and SwiGLU (DeepSeek-V3, section 3.2.3; what that leaves:
    `orchestrator.plan.activations`); full: layers."""
    context: int = 1
    """Out of `data`, the groups that share each sequence (context parallelism)."""
    schedule: Schedule = "1f1b"
    """dualpipe: two directions, with exchange of experts behind another micro-batch (DeepSeek-V3, section 3.2.1)."""
    chunks: int = 1
    """Pieces of the model in each stage: interleaved 1F1B."""
    dispatch: Dispatch = "expert"
    """expert: a token is sent once to each of its experts, in 16 bits; node: once to each node that has some, from
    where NVLink takes it on, and in 8 bits under FP8 (DeepSeek-V3, section 3.2.2; DeepEP)."""

    @property
    def plain(self) -> bool:
        """Whether only data and experts are divided, as today's engine does."""
        divided = self.tensor, self.pipeline, self.context, self.chunks
        return divided == (1, 1, 1, 1) and self.dispatch == "expert"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _whole(name, getattr(self, name), MOST_GPUS)
        if isinstance(self.zero_stage, bool) or self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3, got {self.zero_stage!r}")
        if self.recompute not in RECOMPUTE:
            raise ValueError(f"recompute must be one of {', '.join(RECOMPUTE)}, got {self.recompute!r}")
        if self.schedule not in ("1f1b", "dualpipe"):
            raise ValueError(f"schedule must be 1f1b or dualpipe, got {self.schedule!r}")
        if self.dispatch not in ("expert", "node"):
            raise ValueError(f"dispatch must be expert or node, got {self.dispatch!r}")
        self._divides()

    def _divides(self) -> None:
        stage = self.data * self.tensor
        if stage % self.expert:
            raise ValueError(
                f"expert ({self.expert}) must divide data x tensor ({self.data} x {self.tensor} = {stage}): "
                f"{math.gcd(stage, self.expert)} does"
            )
        if self.data % self.context:
            raise ValueError(
                f"context ({self.context}) must divide data ({self.data}): {math.gcd(self.data, self.context)} does"
            )
        if self.pipeline == 1 and (self.chunks > 1 or self.schedule != "1f1b"):
            raise ValueError(f"chunks ({self.chunks}) and schedule {self.schedule} need pipeline above 1, got 1")
        if self.schedule == "dualpipe" and (self.pipeline % 2 or self.chunks > 1):
            raise ValueError(
                f"dualpipe needs an even pipeline and 1 chunk, got {self.pipeline} and {self.chunks}: "
                f"use {self.pipeline + self.pipeline % 2} and 1"
            )
        if self.pipeline > 1 and self.zero_stage > 1:
            raise ValueError(f"zero_stage ({self.zero_stage}) with pipeline ({self.pipeline}): use zero_stage 0 or 1")

    @property
    def gpus(self) -> int:
        """All."""
        return self.data * self.tensor * self.pipeline

    @property
    def replicas(self) -> int:
        """Sequences (times `micro_batch`) that are worked on at once in one stage."""
        return self.data // self.context

    @property
    def expert_replicas(self) -> int:
        """GPUs of a stage that hold the same experts."""
        return self.data * self.tensor // self.expert

    @property
    def copies(self) -> int:
        """Stages of which each GPU holds the weights: DualPipe's pair of GPUs holds both its stages twice."""
        return 2 if self.schedule == "dualpipe" else 1

    def fullest(self, layers: int) -> int:
        """Of so many layers, those of the GPU that has most: pieces are as long as each other, the last may be
        shorter."""
        return self.chunks * -(-layers // (self.pipeline * self.chunks))

    def micro_batches(self, workload: Workload) -> int:
        """Forward passes of each GPU in a step; call after `check`."""
        return workload.sequences // (self.replicas * self.micro_batch)

    def tokens(self, workload: Workload) -> int:
        """Of one micro-batch in one GPU's hands between matrices: the sequence divided by context and tensor."""
        return self.micro_batch * workload.sequence_length // (self.context * self.tensor)


def check(workload: Workload, cluster: Cluster, parallel: Parallel) -> None:
    """ValueError if the three do not fit together."""
    c, p = workload.config, parallel
    if p.gpus != cluster.gpus:
        raise ValueError(
            f"data x tensor x pipeline ({p.data} x {p.tensor} x {p.pipeline} = {p.gpus}) must be gpus ({cluster.gpus})"
        )
    if cluster.local % p.tensor:
        raise ValueError(f"tensor ({p.tensor}) must divide the GPUs of a node ({cluster.local})")
    if p.pipeline * p.chunks > c.num_hidden_layers + 2:  # embedding and head may stand alone, as in Llama 3
        raise ValueError(
            f"pipeline x chunks ({p.pipeline} x {p.chunks} = {p.pipeline * p.chunks}) exceeds num_hidden_layers "
            f"({c.num_hidden_layers}) and the two ends"
        )
    heads = c.num_key_value_heads if isinstance(c, DenseModel) else c.num_attention_heads
    if heads % p.tensor:
        raise ValueError(f"tensor ({p.tensor}) must divide the heads ({heads}): {math.gcd(heads, p.tensor)} does")
    experts = 1 if isinstance(c, DenseModel) else c.n_routed_experts
    if experts % p.expert:
        raise ValueError(
            f"expert ({p.expert}) must divide n_routed_experts ({experts}): {math.gcd(experts, p.expert)} does"
        )
    if workload.sequence_length % (p.context * p.tensor):
        raise ValueError(
            f"context x tensor ({p.context} x {p.tensor}) must divide sequence_length ({workload.sequence_length})"
        )
    _check_batch(workload, parallel)


def _check_batch(workload: Workload, parallel: Parallel) -> None:
    p, sequences = parallel, workload.sequences
    unit = p.replicas * p.micro_batch
    if sequences % unit:
        below, above = sequences // unit * unit, (sequences // unit + 1) * unit
        raise ValueError(
            f"a batch of {sequences} sequences ({workload.batch_tokens} tokens) must be a multiple of the "
            f"{p.replicas} x {p.micro_batch} = {unit} that all GPUs take at once: use "
            + _or_fewer(workload, [count for count in (below, above) if count])
        )
    count = p.micro_batches(workload)
    if p.chunks > 1 and count % p.pipeline:
        raise ValueError(f"with chunks ({p.chunks}), pipeline ({p.pipeline}) must divide the {count} micro-batches")
    if p.schedule == "dualpipe" and count < p.pipeline:
        raise ValueError(f"dualpipe needs as many micro-batches as stages ({p.pipeline}), got {count}")


def _or_fewer(workload: Workload, counts: list[int]) -> str:
    """Numbers of sequences for which there are tokens enough."""
    sizes = [count * workload.sequence_length for count in counts]
    possible = [f"{size // workload.sequence_length} ({size} tokens)" for size in sizes if size <= workload.tokens]
    return " or ".join(possible) or f"fewer GPUs: {sizes[0]} tokens are more than all {workload.tokens}"


def _whole(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most}, got {value!r}")
