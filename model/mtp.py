"""Multi-token prediction: module k predicts the token k+1 places ahead, keeping the causal chain.

Shapes: B batch, S sequence, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.block import Block
from model.config import ModelConfig


class NextToken(nn.Module):
    """One prediction depth (arXiv 2412.19437, section 2.2); embedding and output head are the main model's.

    `eh_proj` takes the embedding half first, as in the released weights (the paper writes the other order).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = nn.RMSNorm(hidden, eps)
        self.hnorm = nn.RMSNorm(hidden, eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.block = Block(config, moe=True)
        self.norm = nn.RMSNorm(hidden, eps)

    def forward(
        self, h_BSD: Tensor, embedded_BSD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`h_BSD`: what the head reads at the depth before, so after its norm; `embedded_BSD`: the embedding of the
        token k places ahead of each position. -> hidden states [B, S, D] after `norm`, balance loss."""
        joined = torch.cat((self.enorm(embedded_BSD), self.hnorm(h_BSD)), dim=-1)
        h, loss = self.block(self.eh_proj(joined), cos, sin, mask)
        return self.norm(h), loss
