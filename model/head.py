"""The output head, and its cross-entropy in chunks: the logits of a batch never stand whole.

Shapes: B batch, S sequence, T = B*S tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits that stand at a time; on CPU they should stay in the cache."""
MIN_ROWS = 128
"""Tokens of a chunk at least: the products of fewer are slow."""


class Asked(NamedTuple):
    """What a head that was asked for certain tokens says."""

    loss: Tensor
    """Mean cross-entropy in nats (scalar FP32); the only one with a gradient."""
    each: Tensor
    """[B, S] FP32 cross-entropies."""
    right: Tensor
    """[B, S] whether the token with the highest logit is the target."""


class Head(nn.Linear):
    """A matrix from hidden states to logits, without bias."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__(hidden, vocabulary, bias=False)

    def forward(self, h_BSD: Tensor, targets_BS: Tensor | None = None) -> Tensor | Asked:  # type: ignore[override]
        """Logits [B, S, V]; with targets what they cost instead. One method for both: ZeRO-3 has the weight whole only
        while this runs."""
        if targets_BS is None:
            return F.linear(h_BSD, self.weight)
        h, wanted = h_BSD.reshape(-1, h_BSD.shape[-1]), targets_BS.reshape(-1)
        loss, each, right = _CrossEntropy.apply(h, self.weight, wanted, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
        return Asked(loss, each.view_as(targets_BS), right.view_as(targets_BS))


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `softmax(h w')` in FP32. The gradients are made in the forward pass, while a chunk's
    probabilities are there; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        h_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,
        learn: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, vocabulary = h_TD.shape[0], weight_VD.shape[0]
        rows = min(tokens, max(MIN_ROWS, CHUNK.get(h_TD.device.type, CHUNK["cuda"]) // vocabulary))
        each = h_TD.new_empty(tokens, dtype=torch.float32)
        right = torch.empty(tokens, dtype=torch.bool, device=h_TD.device)
        grad_h = torch.empty_like(h_TD) if learn else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if learn else None
        buffer = h_TD.new_empty(rows, vocabulary)
        for i in range(0, tokens, rows):
            part, wanted = h_TD[i : i + rows], targets_T[i : i + rows, None]
            logits = torch.mm(part, weight_VD.t(), out=buffer[: part.shape[0]]).float()
            asked, (best, place) = logits.gather(1, wanted), logits.max(dim=1, keepdim=True)
            right[i : i + rows] = (place == wanted).squeeze(1)
            powers = logits.sub_(best).exp_()
            total = powers.sum(1, keepdim=True)
            each[i : i + rows] = (total.log() + best - asked).squeeze(1)
            if grad_h is None or grad_weight is None:
                continue
            # of the mean: (probability - 1 where it is the target) / tokens
            slope = powers.div_(total.mul_(tokens)).scatter_add_(1, wanted, torch.full_like(asked, -1 / tokens))
            slope = slope.to(h_TD.dtype)
            torch.mm(slope, weight_VD, out=grad_h[i : i + rows])
            if slope.dtype == torch.float32:
                grad_weight.addmm_(slope.t(), part)
            else:
                grad_weight.add_(slope.t() @ part)
        ctx.gradients = grad_h, None if grad_weight is None else grad_weight.to(weight_VD.dtype)
        ctx.mark_non_differentiable(each, right)
        return each.mean(), each, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if ctx.gradients is None:
            raise RuntimeError("the head's loss was already differentiated; its gradients are kept for one time only")
        (grad_h, grad_weight), ctx.gradients = ctx.gradients, None
        return grad_h.mul_(grad), grad_weight.mul_(grad), None, None
