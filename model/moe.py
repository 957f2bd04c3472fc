"""DeepSeekMoE for one process: routed experts without token dropping, plus shared experts.

In distributed training DeepSpeed AutoEP replaces this module (not its mathematics, see
`model.engine.autoep`) and does the placement and the exchange of tokens.
Shapes: B batch, S sequence, T = B*S tokens, D hidden, K experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.again import again
from model.config import ModelConfig
from model.experts import Experts, swiglu
from model.local import Choice, applies
from model.precision import Linear
from model.router import Router

ALIGN = 8
"""Rows of one expert are padded to a multiple of this: CUDA's grouped products need it, AutoEP does the same."""


class FeedForward(nn.Module):
    """Dense SwiGLU."""

    selective: bool = False

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, inner)
        self.up_proj = Linear(hidden, inner)
        self.down_proj = Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gate: Tensor = self.gate_proj(x)
        out: Tensor = again(self.selective, swiglu, self.down_proj, gate, self.up_proj(x))
        return out


class MoE(nn.Module):
    """Routed and shared experts, all on this process."""

    shared_experts: FeedForward | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = FeedForward(config.hidden_size, shared) if shared else None

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        x = x_BSD.reshape(-1, x_BSD.shape[-1])
        weights, chosen, counts = self.gate(x)
        if applies(x, self.experts.products):
            routed: Tensor = self.experts(x, choice=Choice(weights, chosen, counts)).view_as(x_BSD)
        else:
            rows, place, order, padded = _gather_by_expert(x, chosen, counts)
            computed = self.experts(rows, padded)[place]
            slots = torch.zeros_like(computed).index_copy(0, order, computed).view(*chosen.shape, -1)
            routed = (slots * weights.unsqueeze(-1)).sum(1).to(x.dtype).view_as(x_BSD)
        if self.shared_experts is not None:
            routed = routed + self.shared_experts(x_BSD)
        return routed


def _gather_by_expert(x_TD: Tensor, chosen_TK: Tensor, counts_E: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Copy each token once per chosen expert, sorted by expert, each expert's part padded to `ALIGN` rows.

    -> rows [N, D], the row of each sorted slot [T*K], the slot (t*K + k) of each sorted position [T*K],
    padded rows per expert [E].
    """
    slots = chosen_TK.flatten()
    order = slots.argsort(stable=True)
    padded = (counts_E.clamp_min(1) + ALIGN - 1) // ALIGN * ALIGN
    shift = (padded.cumsum(0) - padded) - (counts_E.cumsum(0) - counts_E)
    place = torch.arange(slots.numel(), device=x_TD.device) + shift[slots[order]]
    size = slots.numel() + counts_E.numel() * ALIGN
    rows = x_TD.new_zeros(size, x_TD.shape[1]).index_copy(0, place, x_TD[order // chosen_TK.shape[1]])
    return rows, place, order, padded
