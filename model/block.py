"""One transformer layer: latent attention, then a dense or a mixture-of-experts feed-forward.

Shapes: B batch, S sequence, D hidden.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from model.mla import LatentAttention
from model.moe import FeedForward, MoE
from model.router import Routing, recomputation


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), recomputation()


class Block(nn.Module):
    """Pre-norm layer that returns its output and its auxiliary balance loss."""

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
        x = x_BSD + self.self_attn(self.input_layernorm(x_BSD), cos, sin, mask)
        routing = self.routing
        if routing is None:
            x = x + self.mlp(self.post_attention_layernorm(x))
            return x, x.new_zeros((), dtype=cos.dtype)
        routing.sequence_length = x.shape[1]
        try:
            x = x + self.mlp(self.post_attention_layernorm(x))
            return x, routing.take_balance_loss(x)
        finally:
            routing.balance_loss = (
                None  # recomputation ends before the loss is taken, which would keep the layer's graph
            )
