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
        experts, shared = moe.experts, moe.shared_experts
        self.gate_up, self.down = Stacked(experts.gate_up_proj), Stacked(experts.down_proj)
        self.shared = None if shared is None else Swiglu(shared)

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
        tokens, visits = chosen_TK.shape
        gate, up = self.gate_up(chosen_TK, x_TD.repeat(1, visits), tokens * visits).chunk(2, -1)
        inner = F.silu(gate) * up * weights_TK.to(x_TD.dtype).view(-1, 1)
        return self.down(chosen_TK, inner, tokens)


class Stacked:
    """All experts' matrices [E, O, I], transposed and one below the other: a copy."""

    def __init__(self, matrices_EOI: Tensor) -> None:
        experts, _, inputs = matrices_EOI.shape
        self.table = matrices_EOI.detach().transpose(1, 2).flatten(0, 1).contiguous()
        self.rows_EI = torch.arange(experts * inputs, device=self.table.device).view(experts, inputs)

    def __call__(self, chosen_TK: Tensor, inputs: Tensor, sums: int) -> Tensor:
        """[sums, O]: the visits' products with their `inputs` ([T*K*I] elements), added up in `sums` equal parts."""
        rows = F.embedding(chosen_TK, self.rows_EI).view(-1)
        starts = torch.arange(0, rows.numel(), rows.numel() // sums, device=rows.device)
        return torch.embedding_bag(self.table, rows, starts, mode=0, per_sample_weights=inputs.view(-1))[0]


def feed_forward(mlp: nn.Module) -> FewExperts | Swiglu:
    """What to call in place of a layer's feed-forward."""
    if isinstance(mlp, MoE):
        return FewExperts(mlp)
    assert isinstance(mlp, FeedForward)
    return Swiglu(mlp)
