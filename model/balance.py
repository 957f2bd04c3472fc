"""Keeping experts equally busy without a loss: the bias update, and how balance is measured.

Shapes: M MoE layers, E routed experts.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from model.router import Routing


@torch.no_grad()
def collect_loads(routings: list[Routing]) -> Tensor:
    """Tokens per expert since the last call, summed over all processes, [M, E] int64; starts counting anew.

    One reduction for all layers. Every process routes its own tokens, so the group is the whole world.
    """
    for r in routings:
        assert r.load is not None, "no forward pass with gradients since the last call"
    loads = torch.stack([r.load for r in routings if r.load is not None])
    if dist.is_initialized():
        dist.all_reduce(loads)
    for r in routings:
        r.load = None
    return loads


@torch.no_grad()
def update_biases(biases: list[Tensor], loads_ME: Tensor, speed: float) -> None:
    """Move each selection bias by `speed` towards balance: up if its expert got less than the mean, down if more.

    Auxiliary-loss-free balancing (arXiv 2412.19437, section 2.1.2). Called once per optimizer step.
    """
    if speed == 0:
        return
    for bias, load in zip(biases, loads_ME.double(), strict=True):
        bias.add_((speed * torch.sign(load.mean() - load)).to(bias.dtype))


def balance_metrics(loads_ME: Tensor) -> dict[str, float]:
    """Means over layers: coefficient of variation, maximal violation (max/mean - 1, as in arXiv 2408.15664),
    share of experts without any token."""
    load = loads_ME.double()
    mean = load.mean(1)
    return {
        "moe/cv": (load.std(1, correction=0) / mean).mean().item(),
        "moe/max_violation": (load.amax(1) / mean - 1).mean().item(),
        "moe/dead_share": (load == 0).double().mean().item(),
    }
