"""Seconds on NVLink and network for what a step sends, before anything is hidden behind computation. No torch.

Called by `orchestrator.plan.step_time`. Letters: t tensor, c context, D hidden size, S sequence. Neighbours lie in the
order tensor, context or experts, data, pipeline, so that a group of up to `gpus_per_node` neighbours shares a node.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.plan.dense import DenseModel
from orchestrator.plan.efficiency import Efficiencies
from orchestrator.plan.footprint import stages
from orchestrator.plan.memory import policy_of
from orchestrator.plan.work import (
    combine_bytes,
    context_bytes,
    dispatch_bytes,
    layer_count,
    moe_layer_count,
    reached,
    vocabulary_parameters,
)
from orchestrator.plan.workload import Cluster, Parallel, Workload

_WIDE = 2
"""Bytes of a number between layers."""


@dataclass(frozen=True)
class Links:
    """Bytes per second of one GPU in one direction, as programs reach them."""

    nvlink: float
    network: float
    gpus_per_node: int

    @classmethod
    def of(cls, cluster: Cluster, efficiencies: Efficiencies) -> Links:
        """Of a cluster."""
        device = cluster.accelerator
        return cls(
            device.nvlink_bytes_per_second * efficiencies.nvlink,
            device.network_bytes_per_second * efficiencies.network,
            cluster.local,
        )

    def group(self, members: int, distance: int, sent: float) -> float:
        """Seconds in which each of `members`, `distance` GPUs apart, sends `sent` bytes in a ring: within a node over
        NVLink; between nodes those of one node share the load, each with a network card of its own."""
        if members <= 1:
            return 0.0
        local = max(1, min(members, self.gpus_per_node // distance))
        if local == members:
            return sent / self.nvlink
        return max(sent / (local * self.network), sent / self.nvlink if local > 1 else 0.0)


@dataclass(frozen=True)
class Exchange:
    """Seconds of one GPU and step for tokens on their way to experts and back."""

    nvlink: float
    network: float

    @property
    def seconds(self) -> float:
        """Both at once: what has come is passed on within the node while more arrives (DeepSeek-V3, section 3.2.2)."""
        return max(self.nvlink, self.network)


def exchange(workload: Workload, parallel: Parallel, links: Links, passes: float) -> Exchange:
    """All MoE layers of a stage. `passes`: 2 for forward and backward, each with dispatch and combine; 3 where the
    forward pass is repeated."""
    c, p = workload.config, parallel
    if isinstance(c, DenseModel) or p.expert == 1:
        return Exchange(0.0, 0.0)
    nodes = max(1, p.expert // links.gpus_per_node)
    if p.dispatch == "node":
        away = reached(c, nodes) * (1 - 1 / nodes)
        copies = reached(c, p.expert) * (1 - 1 / min(p.expert, links.gpus_per_node))
        sent = dispatch_bytes(c, workload.precision, 1)
    else:
        copies = c.num_experts_per_tok * (1 - 1 / p.expert)
        away = c.num_experts_per_tok * (1 - 1 / nodes)
        sent = dispatch_bytes(c, "fp32" if workload.precision == "fp32" else "bf16", 1)
        copies -= away
    sent += combine_bytes(c, workload.precision, 1)
    tokens = workload.batch_tokens / (p.data * p.tensor) * moe_layer_count(c) / p.pipeline * passes
    return Exchange(tokens * copies * sent / links.nvlink, tokens * away * sent / links.network)


def tensor_seconds(workload: Workload, parallel: Parallel, links: Links, passes: float) -> float:
    """Sums over the GPUs of a tensor: after attention and after the feed-forward, in each pass; a scatter and a gather
    of (t-1)/t each."""
    p, c = parallel, workload.config
    tokens = workload.batch_tokens / p.data * layer_count(c) / p.pipeline
    sent = 2 * (p.tensor - 1) / p.tensor * tokens * c.hidden_size * _WIDE * 2 * passes
    return links.group(p.tensor, 1, sent)


def context_seconds(workload: Workload, parallel: Parallel, links: Links, passes: float) -> float:
    """Keys and values of the rest of the sequence: there in each pass, and their gradients back."""
    p, c = parallel, workload.config
    tokens = workload.batch_tokens / p.replicas * layer_count(c) / p.pipeline
    sent = (p.context - 1) / p.context * tokens * context_bytes(c) / p.tensor * (passes + 1)
    return links.group(p.context, p.tensor, sent)


def pipeline_seconds(workload: Workload, parallel: Parallel, links: Links) -> float:
    """Activations forward, gradients back, once for each piece of the model on a GPU."""
    p = parallel
    if p.pipeline == 1:
        return 0.0
    tokens = p.tokens(workload) * p.micro_batches(workload)
    return 2 * p.chunks * tokens * workload.config.hidden_size * _WIDE / links.network


@dataclass(frozen=True)
class Zero:
    """Seconds of one GPU and step."""

    reduce: float
    """Gradients."""
    gather: float
    """Weights."""


def zero_seconds(workload: Workload, parallel: Parallel, links: Links, passes: float) -> Zero:
    """Of the largest stage. Stage 0 sums gradients (a scatter and a gather of them); stages 1 and 2 scatter them and
    gather the new weights; stage 2 scatters after each micro-batch; stage 3 gathers weights for each pass, too."""
    p, policy = parallel, policy_of(workload.precision, on_cpu=False)
    common = experts = 0.0
    for stage in stages(workload, parallel):
        ends = (stage.first + stage.last) * vocabulary_parameters(workload.config)
        common = max(common, (stage.common + ends) / p.tensor)
        experts = max(experts, stage.experts / p.expert)

    def ring(size: int) -> float:
        each = links.group(p.data, p.tensor, (p.data - 1) / p.data * common * size)
        replicas = p.expert_replicas
        return each + links.group(replicas, p.expert, (replicas - 1) / replicas * experts * size)

    count = p.micro_batches(workload) if p.zero_stage >= 2 else 1
    reduce = ring(policy.gradients) * count * (2 if p.zero_stage == 0 else 1)
    gather = 0.0 if p.zero_stage == 0 else ring(policy.weights)
    return Zero(reduce, gather * count * passes if p.zero_stage == 3 else gather)
