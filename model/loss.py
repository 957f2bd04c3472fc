"""The training loss and what is measured along with it.

A window holds S + 1 + depth tokens: S positions, each with a target for the main head and for every depth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from model.transformer import Output


class Losses(NamedTuple):
    """Scalars of one micro-batch, FP32, means over its tokens."""

    total: Tensor
    next_token: Tensor
    """Cross-entropy of the main head in nats."""
    ahead: Tensor
    """Mean cross-entropy of the multi-token prediction depths in nats (0 without any)."""
    ahead_accuracy: Tensor
    """Share of positions where the first depth's best token is right: the second-token accuracy."""
    balance: Tensor
    """Auxiliary balance loss, weighted by alpha."""


def token_losses(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    """Cross-entropy of each token in nats, [B, S], computed in FP32."""
    flat = F.cross_entropy(logits_BSV.float().flatten(0, 1), targets_BS.flatten(), reduction="none")
    return flat.view_as(targets_BS)


def targets(window_BL: Tensor, head: int, length: int) -> Tensor:
    """Targets [B, S] of a head: position i is asked for token i + 1 + head."""
    return window_BL[:, head + 1 : head + 1 + length]


def training_losses(output: Output, window_BL: Tensor, *, ahead_weight: float, alpha: float) -> Losses:
    """L = L_main + lambda * mean over depths of L_k + alpha * balance (arXiv 2412.19437, eq. 17 and 25)."""
    length = output.logits[0].shape[1]
    per_head = [token_losses(z, targets(window_BL, k, length)).mean() for k, z in enumerate(output.logits)]
    zero = per_head[0].new_zeros(())
    depths = len(per_head) - 1
    ahead = sum(per_head[1:], zero) / depths if depths else zero
    accuracy = zero
    if depths:
        best = output.logits[1].detach().argmax(-1)
        accuracy = (best == targets(window_BL, 1, length)).float().mean()
    balance = alpha * output.balance_loss
    return Losses(per_head[0] + ahead_weight * ahead + balance, per_head[0], ahead, accuracy, balance)
