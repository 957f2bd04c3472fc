"""The names of everything a run reports, and how the step metrics are made from what the ranks measured.

| name | meaning |
|---|---|
| train/loss | next-token cross-entropy, nats per token |
| train/mtp_loss | mean cross-entropy of the multi-token prediction depths, nats per token |
| train/mtp_accuracy | share of positions where the first depth's best token is right (second-token accuracy) |
| train/aux_loss | auxiliary balance loss, weighted by alpha |
| train/grad_norm | global gradient norm before clipping |
| train/learning_rate | of this step |
| train/tokens_per_second | over all processes |
| train/gflops_per_second | over all processes: causal FLOPs of forward and backward, multi-token prediction included |
| train/mfu | the same over the dense BF16 peak of the devices; only where a peak is known |
| train/step_seconds | wall time of the step |
| train/cpu_seconds | CPU time of all processes: passes of this step, and the update of the one before |
| eval/loss, eval/bits_per_byte, eval/mtp_accuracy | on held-out documents |
| eval/bits_per_byte/SOURCE | the same for each source, where there are several |
| eval/TASK/acc, acc_norm, perplexity | tasks of `training.evaluation.tasks` |
| moe/cv, moe/max_violation, moe/dead_share | balance of the experts, mean over layers (`model.balance`) |
| memory/peak_bytes | largest peak of any process: device memory on a GPU, resident memory on a CPU |
"""

from __future__ import annotations

import resource

import torch
import torch.distributed as dist
from torch import Tensor

from model.flops import flops_per_token
from model.loss import Losses
from model.recipe import Recipe


class NotFinite(ArithmeticError):
    """Loss or gradient is NaN or infinite; the state must not be saved."""


def peak_memory(device: torch.device) -> float:
    """Bytes; see memory/peak_bytes."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def gather_losses(
    micro: list[Losses], checksum: int, cpu_seconds: float, device: torch.device
) -> tuple[dict[str, float], int]:
    """Means over micro-batches and ranks of the step's losses, the sum of the ranks' `cpu_seconds`, and that of the
    checksums of their samples; every rank gets the same numbers."""
    own = torch.stack([torch.stack([part.detach().double() for part in losses]) for losses in micro]).mean(0)
    # a checksum is a sum of 32-bit numbers, which a double holds exactly
    own = torch.cat((own, own.new_tensor([cpu_seconds, peak_memory(device), checksum])))
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    ranks: Tensor = torch.stack(parts)
    _, loss, ahead, accuracy, balance, _, _, _ = ranks.mean(0).tolist()
    return {
        "train/loss": loss,
        "train/mtp_loss": ahead,
        "train/mtp_accuracy": accuracy,
        "train/aux_loss": balance,
        "train/cpu_seconds": ranks[:, -3].sum().item(),
        "memory/peak_bytes": ranks[:, -2].max().item(),
    }, round(ranks[:, -1].sum().item())


def speed(recipe: Recipe, tokens: int, seconds: float) -> dict[str, float]:
    """Throughput of one optimizer step of `tokens` that took `seconds`."""
    tokens_per_second = tokens / seconds
    mtp = recipe.model.num_nextn_predict_layers > 0
    flops = flops_per_token(recipe.model, recipe.sequence_length, causal=True, mtp=mtp) * tokens_per_second
    metrics = {
        "train/tokens_per_second": tokens_per_second,
        "train/gflops_per_second": flops / 1e9,
        "train/step_seconds": seconds,
    }
    if recipe.peak_flops:
        metrics["train/mfu"] = flops / (recipe.peak_flops * recipe.layout.world_size)
    return metrics
