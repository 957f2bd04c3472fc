"""Seconds on NVLink and network for what a step sends, before anything is hidden behind computation. No torch.

Called by `orchestrator.plan.step_time`. Letters: t tensor, c context, D hidden size, S sequence. Neighbours lie in the
order tensor, context or experts, data, pipeline, so that a group of up to `gpus_per_node` neighbours shares a node.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.plan.dense import DenseModel
from orchestrator.plan.efficiency import Efficiencies
from orchestrator.plan.footprint import stages
from orchestrator.plan.memory import BUCKET, policy_of
from orchestrator.plan.work import (
    combine_bytes,
    context_bytes,
    dispatch_bytes,
    layer_count,
    moe_layers,
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
    nvlink_hop: float
    """Seconds of a step of a ring, however little is sent."""
    network_hop: float
    gpus_per_node: int

    @classmethod
    def of(cls, cluster: Cluster, efficiencies: Efficiencies) -> Links:
        """Of a cluster."""
        device = cluster.accelerator
        return cls(
            device.nvlink_bytes_per_second * efficiencies.nvlink,
            device.network_bytes_per_second * efficiencies.network,
            efficiencies.nvlink_hop_seconds,
            efficiencies.network_hop_seconds,
            cluster.local,
        )

    def group(self, members: int, distance: int, sent: float, rings: float) -> float:
        """Seconds in which each of `members`, `distance` GPUs apart, sends `sent` bytes in `rings` calls: within a node
        over NVLink; between nodes those of one node share the load, each with a network card of its own. A ring has
        members - 1 steps, of which nodes - 1 go between nodes (as NCCL counts them)."""
        if members <= 1:
            return 0.0
        local = max(1, min(members, self.gpus_per_node // distance))
        if local == members:
            return sent / self.nvlink + rings * (members - 1) * self.nvlink_hop
        between = -(-members // local) - 1
        waits = between * self.network_hop + (members - 1 - between) * self.nvlink_hop
        return max(sent / (local * self.network), sent / self.nvlink if local > 1 else 0.0) + rings * waits


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
    """All MoE layers of the GPU that has most. `passes`: 2 for forward and backward, each with dispatch and combine; 3
    where the forward pass is repeated."""
    c, p = workload.config, parallel
    if isinstance(c, DenseModel) or p.expert == 1:
        return Exchange(0.0, 0.0)
    nodes = -(-p.expert // links.gpus_per_node)
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
    tokens = workload.batch_tokens / (p.data * p.tensor) * moe_layers(c, p.pipeline, p.chunks) * passes
    return Exchange(tokens * copies * sent / links.nvlink, tokens * away * sent / links.network)


def tensor_seconds(workload: Workload, parallel: Parallel, links: Links, passes: float) -> float:
    """Sums over the GPUs of a tensor: after attention and after the feed-forward, in each pass; a scatter and a gather
    of (t-1)/t each."""
    p, c = parallel, workload.config
    tokens = workload.batch_tokens / p.data * p.fullest(layer_count(c))
    sent = 2 * (p.tensor - 1) / p.tensor * tokens * c.hidden_size * _WIDE * 2 * passes
    return links.group(p.tensor, 1, sent, 4 * passes * _layer_visits(workload, p))


def context_seconds(workload: Workload, parallel: Parallel, links: Links, passes: float) -> float:
    """Keys and values of the rest of the sequence: there in each pass, and their gradients back."""
    p, c = parallel, workload.config
    tokens = workload.batch_tokens / p.replicas * p.fullest(layer_count(c))
    sent = (p.context - 1) / p.context * tokens * context_bytes(c) / p.tensor * (passes + 1)
    return links.group(p.context, p.tensor, sent, (passes + 1) * _layer_visits(workload, p))


def _layer_visits(workload: Workload, p: Parallel) -> float:
    """How often a GPU comes to a layer in one pass of all micro-batches."""
    return p.fullest(layer_count(workload.config)) * p.micro_batches(workload)


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


def zero_seconds(workload: Workload, parallel: Parallel, links: Links) -> Zero:
    """Of the largest stage. Stage 0 sums gradients (a scatter and a gather of them); stages 1 and 2 scatter them and
    gather the new weights; stage 2 scatters after each micro-batch; stage 3 gathers weights twice for each, too,
    layer by layer (recomputation uses those of the backward pass); all else goes in buckets. DualPipe's pairs of GPUs
    hold two stages each, so that twice as many sum twice as much."""
    p, policy = parallel, policy_of(workload.precision, on_cpu=False)
    common = experts = 0.0
    for stage in stages(workload, parallel):
        ends = (stage.first + stage.last) * vocabulary_parameters(workload.config)
        common = max(common, (stage.common + ends) / p.tensor)
        experts = max(experts, stage.experts / p.expert)

    common, experts = common * p.copies, experts * p.copies

    def ring(size: int, calls: float) -> float:
        members, replicas = p.data * p.copies, p.expert_replicas * p.copies
        each = links.group(members, p.tensor, (members - 1) / members * common * size, calls)
        return each + links.group(replicas, p.expert, (replicas - 1) / replicas * experts * size, calls)

    count = p.micro_batches(workload) if p.zero_stage >= 2 else 1
    buckets = -(-(common + experts) // BUCKET)
    reduce = ring(policy.gradients, buckets) * count * (2 if p.zero_stage == 0 else 1)
    if p.zero_stage == 3:
        return Zero(reduce, ring(policy.weights, layer_count(workload.config)) * count * 2)
    return Zero(reduce, ring(policy.weights, buckets) if p.zero_stage else 0.0)
