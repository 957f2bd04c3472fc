"""One transformer layer: latent attention, then a dense or a mixture-of-experts feed-forward.

Shapes: B batch, S sequence, D hidden.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.again import again
from model.config import ModelConfig
from model.mla import LatentAttention
from model.moe import FeedForward, MoE
from model.router import Routing, recomputation


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), recomputation()


class Block(nn.Module):
    """Pre-norm layer that returns its output and its auxiliary balance loss."""

    selective: bool = False
    """Keep what norms read, not what they give; see `model.again`."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them."""

    def __init__(self, config: ModelConfig, *, moe: bool) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LatentAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = config.intermediate_size
        self.mlp: nn.Module = MoE(config) if moe else FeedForward(config.hidden_size, dense)

    @property
    def routing(self) -> Routing | None:
        """The router's state, whichever module owns it: ours, or DeepSpeed's after AutoEP's replacement."""
        router = getattr(self.mlp, "router", None) or getattr(self.mlp, "gate", None)
        routing = getattr(router, "routing", None)
        return routing if isinstance(routing, Routing) else None

    def forward(self, x_BSD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`mask`: see `LatentAttention`. -> output [B, S, D], balance loss (scalar FP32, without alpha)."""
        if self.recompute and self.training:
            return checkpoint(  # type: ignore[no-any-return]
                self._compute, x_BSD, cos, sin, mask, use_reentrant=False, context_fn=_contexts
            )
        return self._compute(x_BSD, cos, sin, mask)

    def _compute(self, x_BSD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        def attend(normed: Tensor) -> Tensor:
            return self.self_attn(normed, cos, sin, mask)  # type: ignore[no-any-return]

        x = x_BSD + again(self.selective, self.input_layernorm, attend, x_BSD)
        out, balance = again(self.selective, self.post_attention_layernorm, self._feed_forward, x)
        return x + out, balance

    def _feed_forward(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        routing = self.routing
        if routing is None:
            return self.mlp(x_BSD), x_BSD.new_zeros((), dtype=torch.float32)
        routing.sequence_length = x_BSD.shape[1]
        try:
            return self.mlp(x_BSD), routing.take_balance_loss(x_BSD)
        finally:
            routing.balance_loss = (
                None  # recomputation ends before the loss is taken, which would keep the layer's graph
            )
