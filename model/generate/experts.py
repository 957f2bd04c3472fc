"""The feed-forward of a layer for few tokens: only the chosen experts' matrices are read.

The path of training sorts tokens by expert and pads each expert's part, which pays for many tokens. For few, the sum
over the inputs of a product is taken as that of a bag of embeddings: the rows of the transposed matrices, weighted by
the inputs, straight from where all experts lie.
Shapes: T tokens, D hidden, E experts, K experts per token, F inner size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.generate.layers import Swiglu
from model.moe import FeedForward, MoE
from model.router import affinities, choose, gate_weights

FEW = 4
"""The path for few tokens is taken up to so many visits per expert, on average."""


class FewExperts:
    """Computes as a `MoE` does, with its parameters as they are when this is made; the routed experts' are copied."""

    def __init__(self, moe: MoE) -> None:
        self.moe, self.config = moe, moe.gate.routing.config
        c, experts, shared = self.config, moe.experts, moe.shared_experts
        self.gate_up = _stacked(experts.gate_up_proj)
        self.down = _stacked(experts.down_proj)
        self.shared = None if shared is None else Swiglu(shared)
        device = self.gate_up.device
        self.hidden, self.inner = (torch.arange(n, device=device) for n in (c.hidden_size, c.moe_intermediate_size))

    def __call__(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        c, x = self.config, x_BTD.flatten(0, 1)
        if x.shape[0] * c.num_experts_per_tok > FEW * c.n_routed_experts:
            return self.moe(x_BTD)  # type: ignore[no-any-return]
        gate = self.moe.gate
        scores = affinities(x, gate.weight, c.scoring_func)
        chosen = choose(scores, gate.e_score_correction_bias, c)
        out = self._routed(x, chosen, gate_weights(scores, chosen, c))
        if self.shared is not None:
            out = out + self.shared(x)
        return out.view_as(x_BTD)

    def _routed(self, x_TD: Tensor, chosen_TK: Tensor, weights_TK: Tensor) -> Tensor:
        visits = chosen_TK.shape[1]
        rows = torch.add(self.hidden, chosen_TK.unsqueeze(-1), alpha=self.hidden.numel()).flatten(0, 1)
        inputs = x_TD.unsqueeze(1).expand(-1, visits, -1).flatten(0, 1)
        gate, up = _bags(rows, self.gate_up, inputs).chunk(2, -1)
        inner = F.silu(gate) * up * weights_TK.to(x_TD.dtype).view(-1, 1)
        rows = torch.add(self.inner, chosen_TK.unsqueeze(-1), alpha=self.inner.numel()).flatten(1)
        return _bags(rows, self.down, inner.view(rows.shape))


def _stacked(matrices_EOI: Tensor) -> Tensor:
    """[E*I, O]: each expert's matrix transposed."""
    return matrices_EOI.detach().transpose(1, 2).flatten(0, 1).contiguous()


def _bags(rows_NM: Tensor, table: Tensor, weights_NM: Tensor) -> Tensor:
    """[N, O] the weighted sum of M rows of a table, for each bag."""
    starts = torch.arange(0, rows_NM.numel(), rows_NM.shape[1], device=rows_NM.device)
    return torch.embedding_bag(table, rows_NM.view(-1), starts, mode=0, per_sample_weights=weights_NM.reshape(-1))[0]


def feed_forward(mlp: nn.Module) -> FewExperts | Swiglu:
    """What to call in place of a layer's feed-forward."""
    if isinstance(mlp, MoE):
        return FewExperts(mlp)
    assert isinstance(mlp, FeedForward)
    return Swiglu(mlp)
