"""The optimizer of the paper: AdamW with decay on matrices only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from model.recipe import Optimizer


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices (decayed), and norms and biases, which are the tensors of one dimension (not decayed)."""
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    plain = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
    return [
        {"name": "matrices", "params": decayed, "weight_decay": weight_decay},
        {"name": "vectors", "params": plain, "weight_decay": 0.0},
    ]


def build_optimizer(groups: list[dict[str, Any]], settings: Optimizer, learning_rate: float) -> torch.optim.AdamW:
    """AdamW; built by torch, not by DeepSpeed, whose fused kernels need a compiler at first use."""
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.eps)
