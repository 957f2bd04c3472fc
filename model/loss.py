"""The training loss and what is measured along with it.

A window holds S + 1 + depth tokens: S positions, each with a target for the main head and for every depth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from model.head import Asked
from model.transformer import Output, targets

__all__ = ["Losses", "targets", "token_losses", "training_losses"]


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


def _asked(logits: tuple[Tensor, ...], window_BL: Tensor) -> tuple[Asked, ...]:
    """What the heads make of their targets, from whole logits."""
    found = []
    for k, z in enumerate(logits):
        wanted = targets(window_BL, k, z.shape[1])
        each = token_losses(z, wanted)
        found.append(Asked(each.mean(), each.detach(), z.detach().argmax(-1) == wanted))
    return tuple(found)


def training_losses(output: Output, window_BL: Tensor, *, ahead_weight: float, alpha: float) -> Losses:
    """L = L_main + lambda * mean over depths of L_k + alpha * balance (arXiv 2412.19437, eq. 17 and 25)."""
    asked = output.asked or _asked(output.logits, window_BL)
    per_head = [one.loss for one in asked]
    zero = per_head[0].new_zeros(())
    depths = len(per_head) - 1
    ahead = sum(per_head[1:], zero) / depths if depths else zero
    accuracy = zero
    if depths:
        accuracy = asked[1].right.float().mean()
    balance = alpha * output.balance_loss
    return Losses(per_head[0] + ahead_weight * ahead + balance, per_head[0], ahead, accuracy, balance)
