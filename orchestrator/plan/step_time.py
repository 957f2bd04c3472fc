"""How long one optimizer step takes, by part: computation, what is sent, what of it is hidden. No torch.

Called by `orchestrator.plan.search` and by whoever knows a layout. A model, not a measurement: shares of peaks come
from `orchestrator.plan.efficiency`, docs/planner.md holds it against published runs. Invariant: FLOPs are
`model.flops`'.

What is hidden (all else adds up): under DualPipe the exchange of experts behind the computation of other micro-batches,
on multiprocessors that the computation then lacks; activations between stages behind computation, in any schedule;
under ZeRO-3, gradients behind the backward passes and weights behind all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.plan.activations import kept
from orchestrator.plan.communication import (
    Links,
    Zero,
    context_seconds,
    exchange,
    pipeline_seconds,
    tensor_seconds,
    zero_seconds,
)
from orchestrator.plan.efficiency import Efficiencies
from orchestrator.plan.footprint import stages
from orchestrator.plan.memory import Policy, policy_of
from orchestrator.plan.work import (
    HIGH,
    expert_parameters,
    flops_by_kind,
    layer_count,
    layer_runs,
    model_flops,
    up_projection_flops,
    vocabulary_parameters,
)
from orchestrator.plan.workload import Cluster, Parallel, Recompute, Workload, check


@dataclass(frozen=True)
class StepTime:
    """One optimizer step."""

    parts: dict[str, float]
    """Seconds by part; they add up to the step."""
    overlapped: dict[str, float]
    """Seconds of communication by part that are hidden behind computation, and so in no part."""
    tokens: int
    gpus: int
    model_flops: float
    """Per token, forward and backward, causal, without prediction modules: what published utilisation is counted by."""
    model_flops_with_mtp: float
    peak_flops: float
    """Dense BF16 peak of one GPU."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(self.parts.values())

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Throughput."""
        return self.tokens / self.seconds / self.gpus

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: causal, without prediction modules and recomputation, of the dense BF16 peak
        whatever the precision."""
        return self.model_flops * self.tokens_per_second_per_gpu / self.peak_flops

    @property
    def mfu_with_mtp(self) -> float:
        """The same with prediction modules counted, as a run's own `train/mfu`."""
        return self.model_flops_with_mtp * self.tokens_per_second_per_gpu / self.peak_flops


def step_time(workload: Workload, cluster: Cluster, parallel: Parallel, efficiencies: Efficiencies) -> StepTime:
    """The forecast; ValueError if the three do not fit together or the device lacks the arithmetic."""
    check(workload, cluster, parallel)
    p, links = parallel, Links.of(cluster, efficiencies)
    computed = _computation(workload, cluster, parallel, efficiencies)
    compute = sum(computed.values())
    passes = 3.0 if p.recompute == "full" else 2.0
    busy, hidden = _sent(workload, parallel, links, passes, compute)
    zero, hidden_zero = _zero(zero_seconds(workload, parallel, links), parallel, compute)
    parts = computed | busy | zero
    parts["bubble"] = _bubble(workload, parallel, compute + sum(busy.values()))
    parts["optimizer"] = _optimizer(workload, cluster, parallel, efficiencies)
    parts["overhead"] = efficiencies.overhead_seconds
    return StepTime(
        parts=parts,
        overlapped=hidden | hidden_zero,
        tokens=workload.batch_tokens,
        gpus=cluster.gpus,
        model_flops=model_flops(workload.config, workload.sequence_length),
        model_flops_with_mtp=model_flops(workload.config, workload.sequence_length, mtp=True),
        peak_flops=cluster.accelerator.bf16_flops,
    )


def _computation(workload: Workload, cluster: Cluster, p: Parallel, e: Efficiencies) -> dict[str, float]:
    """Matrix products by kind, attention, all that moves activations only, recomputation: of the fullest stage."""
    device, config = cluster.accelerator, workload.config
    uneven = p.fullest(layer_count(config)) * p.pipeline / layer_count(config)
    share = workload.batch_tokens / cluster.gpus * uneven
    cores = 1 - e.communication_cores if p.schedule == "dualpipe" and p.expert > 1 else 1.0
    low = e.matrix_rate(device, workload.precision) * cores
    high = e.matrix_rate(device, "fp32" if workload.precision == "fp32" else "bf16") * cores
    core = e.attention_rate(device, workload.precision) * cores
    rates = {"attention": core} | dict.fromkeys(HIGH, high)
    flops = flops_by_kind(config, workload.sequence_length)
    seconds = {kind: share * number / rates.get(kind, low) for kind, number in flops.items()}
    if "routed_experts" in seconds:
        bandwidth = device.memory_bytes_per_second * e.memory
        seconds["routed_experts"] = max(seconds["routed_experts"], _expert_bytes(workload, p) / bandwidth)
    moved = share * e.activation_passes / (device.memory_bytes_per_second * e.memory)
    policy = policy_of(workload.precision, on_cpu=False)
    seconds["activations"] = moved * _kept(workload, p, policy, "none")
    if p.recompute == "full":
        head = sum(seconds[kind] for kind in ("head", "prediction") if kind in seconds)
        seconds["recomputation"] = (sum(seconds.values()) - seconds["activations"] - head) / 3
        seconds["recomputation"] += seconds["activations"] / 2
    elif p.recompute == "selective":
        again = _kept(workload, p, policy, "none") - _kept(workload, p, policy, "selective")
        seconds["recomputation"] = share * up_projection_flops(config) / low + moved * again / 2
    return seconds


def _expert_bytes(workload: Workload, p: Parallel) -> float:
    """That a step must at least move for the experts of one GPU, however few tokens come: for each micro-batch weights
    are read in both passes, gradients read and written."""
    policy = policy_of(workload.precision, on_cpu=False)
    held = expert_parameters(workload.config) / (p.pipeline * p.expert)
    return p.micro_batches(workload) * held * 2 * (policy.weights + policy.gradients)


def _kept(workload: Workload, p: Parallel, policy: Policy, recompute: Recompute) -> float:
    """Bytes of one token in all layers."""
    rows = p.tokens(workload)
    return sum(
        run.count * kept(workload.config, policy, recompute, bool(run.experts), rows, p.expert, p.plain)
        for run in layer_runs(workload.config)
    )


def _sent(
    workload: Workload, p: Parallel, links: Links, passes: float, compute: float
) -> tuple[dict[str, float], dict[str, float]]:
    """What each micro-batch waits for, and what is hidden."""
    experts = exchange(workload, p, links, passes)
    between = pipeline_seconds(workload, p, links)
    hidden_experts = min(experts.seconds, compute) if p.schedule == "dualpipe" else 0.0
    hidden_between = min(between, compute - hidden_experts)  # both need the network
    exposed = experts.seconds - hidden_experts
    slower = "network" if experts.network >= experts.nvlink else "nvlink"
    busy = {
        "exchange_nvlink": exposed if slower == "nvlink" else 0.0,
        "exchange_network": exposed if slower == "network" else 0.0,
        "tensor": tensor_seconds(workload, p, links, passes),
        "context": context_seconds(workload, p, links, passes),
        "stages": between - hidden_between,
    }
    hidden = {
        "exchange_nvlink": experts.nvlink - busy["exchange_nvlink"],
        "exchange_network": experts.network - busy["exchange_network"],
        "stages": hidden_between,
    }
    return busy, hidden


def _zero(zero: Zero, p: Parallel, compute: float) -> tuple[dict[str, float], dict[str, float]]:
    """ZeRO-3's gradients go while the backward pass (two thirds) runs, its weights all the time; else all waits, since
    DeepSpeed's `overlap_comm` is off under ZeRO-1 and 2, as is its default, and stages wait for the last micro-batch.
    """
    if p.zero_stage < 3:
        return {"zero_reduce": zero.reduce, "zero_gather": zero.gather}, {"zero_reduce": 0.0, "zero_gather": 0.0}
    reduce = min(zero.reduce, compute * 2 / 3)
    gather = min(zero.gather, compute - reduce)
    busy = {"zero_reduce": zero.reduce - reduce, "zero_gather": zero.gather - gather}
    return busy, {"zero_reduce": reduce, "zero_gather": gather}


def _bubble(workload: Workload, p: Parallel, busy: float) -> float:
    """Seconds that a stage waits for others. With F, B, W the forward pass, the backward pass and the weights' part of
    it, B = 2 F = 2 W: 1F1B (p-1)(F+B) divided by pieces; DualPipe (p/2-1)(F&B+B-3W), F&B taken as F+B."""
    unit = busy / p.micro_batches(workload) / 3
    if p.schedule == "dualpipe":
        return (p.pipeline / 2 - 1) * (3 + 2 - 3) * unit
    return (p.pipeline - 1) * 3 * unit / p.chunks


def _optimizer(workload: Workload, cluster: Cluster, p: Parallel, e: Efficiencies) -> float:
    """AdamW reads gradients and reads and writes master weights and moments, then writes weights."""
    policy = policy_of(workload.precision, on_cpu=False)
    largest = 0.0
    for stage in stages(workload, p):
        ends = (stage.first + stage.last) * vocabulary_parameters(workload.config)
        common, experts = (stage.common + ends) / p.tensor, stage.experts / p.expert
        divided = common / p.data + experts / p.expert_replicas
        largest = max(largest, divided if p.zero_stage else common + experts)
    moved = policy.gradients + 2 * policy.master + 2 * policy.moments + policy.weights
    return largest * moved / (cluster.accelerator.memory_bytes_per_second * e.memory)
