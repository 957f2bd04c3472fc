"""The small parts of a layer with few operations each: for a single token their number is what costs time.

Each computes as the module that it is made from, with that module's parameters as they are then.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.moe import FeedForward


class Norm:
    """An `nn.RMSNorm`, x / sqrt(mean(x^2) + eps) * weight, as x / hypot(|x|, sqrt(n eps)) * (sqrt(n) weight)."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        assert norm.weight is not None, "a norm with a weight"
        self.weight, size = norm.weight.detach(), norm.weight.numel()
        self.eps = float(norm.eps or torch.finfo(torch.float32).eps)
        self.exact = self.weight.dtype == torch.float32
        self.least = torch.tensor(math.sqrt(size * self.eps), device=self.weight.device)
        self.scaled: Tensor = self.weight * math.sqrt(size)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., n]."""
        if not self.exact:  # of fewer bits, which the library adds up in FP32
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.least) * self.scaled


class Swiglu:
    """A `FeedForward`; gate and up projection are one product, for which they are copied."""

    def __init__(self, dense: FeedForward) -> None:
        self.gate_up = torch.cat((dense.gate_proj.weight, dense.up_proj.weight)).detach()
        self.down = dense.down_proj.weight

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gate, up = F.linear(x, self.gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down)
