"""Multi-head latent attention (DeepSeek-V2/V3): keys and values are compressed into one latent per token.

Shapes: B batch, S sequence, D hidden, H heads. Parameter names and shapes are those of transformers'
DeepseekV3, so weights and gradients can be compared one by one.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.again import again
from model.attend import Attend, Heads
from model.config import ModelConfig
from model.precision import Linear
from model.rope import rotate, softmax_scale

LATENT_EPS = 1e-6
"""Epsilon of the norms on the latents: fixed in the released code, whatever `rms_norm_eps` says."""


class LatentAttention(nn.Module):
    """Causal self-attention over whole sequences."""

    selective: bool = False
    """Keep latents, not the queries, keys and values that are made of them; see `model.again`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, heads = config, config.num_attention_heads
        self.config, self.scale = config, softmax_scale(config)
        self.heads = Heads(heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, self.scale)
        if c.q_lora_rank is None:
            self.q_proj = Linear(c.hidden_size, heads * c.qk_head_dim)
        else:
            self.q_a_proj = Linear(c.hidden_size, c.q_lora_rank)
            self.q_a_layernorm = nn.RMSNorm(c.q_lora_rank, LATENT_EPS)
            self.q_b_proj = Linear(c.q_lora_rank, heads * c.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim)
        self.kv_a_layernorm = nn.RMSNorm(c.kv_lora_rank, LATENT_EPS)
        self.kv_b_proj = Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim))
        self.o_proj = Linear(heads * c.v_head_dim, c.hidden_size)

    def forward(self, x_BSD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        """`cos`, `sin`: [S, R/2] from `model.rope.rotation`; `mask`: [B, 1, S, S] which keys a query sees, where that
        is less than all before it. Returns [B, S, D]."""
        queries = self.q_proj(x_BSD) if self.config.q_lora_rank is None else self.q_a_proj(x_BSD)
        compressed = self.kv_a_proj_with_mqa(x_BSD)
        k_rope = compressed[..., self.config.kv_lora_rank :]
        if x_BSD.device.type == "cpu" and queries.dtype in (torch.float32, torch.bfloat16):

            def attend(made: tuple[Tensor, ...]) -> Tensor:
                return Attend.apply(*made, k_rope, cos, sin, mask, self.heads, self.selective)  # type: ignore[no-any-return,no-untyped-call]

            out = again(self.selective, self._projected, attend, queries, compressed)
        else:

            def place(queries: Tensor, compressed: Tensor) -> tuple[Tensor, ...]:
                return self._placed(*self._projected(queries, compressed), k_rope, cos, sin)

            out = again(self.selective, place, partial(self._attend, mask=mask), queries, compressed)
        return self.o_proj(out)  # type: ignore[no-any-return]

    def _projected(self, queries: Tensor, compressed: Tensor) -> tuple[Tensor, Tensor]:
        """By head: queries [B, S, H*(N+R)] from what the first projection gave; keys and values [B, S, H*(N+V)]."""
        if self.config.q_lora_rank is not None:
            queries = self.q_b_proj(self.q_a_layernorm(queries))
        latent = compressed[..., : self.config.kv_lora_rank]
        return queries, self.kv_b_proj(self.kv_a_layernorm(latent))

    def _placed(
        self, queries: Tensor, keys_values: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, ...]:
        """Queries and keys, turned, [B, H, S, N+R], and values [B, H, S, V]."""
        c = self.config
        by_head = (*queries.shape[:2], c.num_attention_heads, -1)
        q = queries.view(by_head).transpose(1, 2)
        kv = keys_values.view(by_head).transpose(1, 2)

        q_nope, q_rope = torch.split(q, [c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
        k_nope, v = torch.split(kv, [c.qk_nope_head_dim, c.v_head_dim], dim=-1)
        q_rope = rotate(q_rope, cos, sin)
        k_rope = rotate(k_rope.unsqueeze(1), cos, sin).expand_as(q_rope)
        return torch.cat((q_nope, q_rope), dim=-1), torch.cat((k_nope, k_rope), dim=-1), v

    def _attend(self, made: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        """By torch's kernel, [B, S, H*V]."""
        q, k, v = made
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale)
        return out.transpose(1, 2).flatten(2)
