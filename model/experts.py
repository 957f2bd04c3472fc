"""The routed experts' feed-forward as grouped matrix products: used by the plain model and inside AutoEP.

Shapes: N rows sorted by expert, D hidden, F inner size, E experts on this process.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.again import again
from model.config import ModelConfig
from model.local import Choice, routed
from model.precision import HIGH, Products


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Of two tensors of one shape."""
    return F.silu(gate) * up


def feed_forward(
    x_ND: Tensor,
    counts_E: Tensor,
    gate_EFD: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    products: Products,
    selective: bool = False,
) -> Tensor:
    """SwiGLU of each expert on its rows, [N, D]. Rows past `counts_E.sum()` must be zero.

    `grouped_mm` leaves rows after the last offset uninitialised, so the spare (zero) rows go to the last expert:
    they add nothing to any gradient, and need no look at the counts from the host.
    """
    ends = counts_E.cumsum(0, dtype=torch.int32)
    ends = torch.cat((ends[:-1], ends.new_full((1,), x_ND.shape[0])))

    gate, up = products.grouped(x_ND, gate_EFD, ends), products.grouped(x_ND, up_EFD, ends)
    return again(selective, swiglu, lambda inner: products.grouped(inner, down_EDF, ends), gate, up)


class Experts(nn.Module):
    """Stacked weights of all routed experts of a layer; names and shapes as in transformers."""

    products: Products = HIGH
    selective: bool = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, inner, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))

    def forward(self, x_ND: Tensor, counts_E: Tensor | None = None, choice: Choice | None = None) -> Tensor:
        """See `feed_forward`, or with a choice `model.local.routed` of tokens as they come."""
        gate, up = self.gate_up_proj.chunk(2, dim=1)
        if choice is not None:
            return routed(x_ND, choice, gate, up, self.down_proj)
        assert counts_E is not None
        return feed_forward(x_ND, counts_E, gate, up, self.down_proj, self.products, self.selective)
