"""Latent attention over the cache, in two orders of the same products.

Expanded: keys and values of every head are made from the latents, as in training. Absorbed (arXiv 2405.04434, section
2.1.2): the up-projection of keys is applied to the query and that of values to the result, so that all heads read the
latents themselves. The first costs less for many new tokens, the second for few; both read and fill one cache.
Shapes: B rows, T new tokens, S places, H heads, N query part without position, V value, C latent, R rotary, W = C + R.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.generate.cache import Places
from model.generate.layers import Norm
from model.mla import LatentAttention


def expanding_is_cheaper(config: ModelConfig, tokens: int, places: int) -> bool:
    """Multiplications per head of both orders, for `tokens` new tokens that see `places` places."""
    c = config
    up = c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)
    expanded = places * up + tokens * places * (c.qk_head_dim + c.v_head_dim)
    absorbed = tokens * up + tokens * places * (2 * c.kv_lora_rank + c.qk_rope_head_dim)
    return expanded < absorbed


class CachedAttention:
    """Computes as a `LatentAttention` does, with its parameters as they are when this is made."""

    def __init__(self, attention: LatentAttention) -> None:
        c = self.config = attention.config
        self.scale, heads = attention.scale, c.num_attention_heads
        self.query: tuple[Norm, Tensor] | None
        compressed = attention.kv_a_proj_with_mqa.weight
        if c.q_lora_rank is None:
            self.down, self.query = torch.cat((attention.q_proj.weight, compressed)), None
            self.q_rank = heads * c.qk_head_dim
        else:
            self.down = torch.cat((attention.q_a_proj.weight, compressed))  # one product for both
            self.query = Norm(attention.q_a_layernorm), attention.q_b_proj.weight
            self.q_rank = c.q_lora_rank
        self.kv_norm, self.kv_up = Norm(attention.kv_a_layernorm), attention.kv_b_proj.weight
        up = self.kv_up.view(heads, c.qk_nope_head_dim + c.v_head_dim, c.kv_lora_rank)
        self.key_up_HNC, value_up_HVC = torch.split(up, [c.qk_nope_head_dim, c.v_head_dim], dim=1)
        self.value_up_HCV = value_up_HVC.transpose(1, 2)
        self.out = attention.o_proj.weight
        self.nothing = self.out.new_zeros(1)

    def __call__(self, x_BTD: Tensor, kept_BSW: Tensor, places: Places, expand: bool | None = None) -> Tensor:
        """Writes the new tokens into `kept_BSW`, which holds this layer's part of the cache; -> [B, T, D].

        `expand` chooses the order of products; None: by their number.
        """
        c, (batch, tokens, _) = self.config, x_BTD.shape
        q, latent, k_rope = torch.split(
            F.linear(x_BTD, self.down), [self.q_rank, c.kv_lora_rank, c.qk_rope_head_dim], -1
        )
        if self.query is not None:
            norm, up = self.query
            q = F.linear(norm(q), up)
        q_nope, q_rope = torch.split(
            q.view(batch, tokens, -1, c.qk_head_dim), [c.qk_nope_head_dim, c.qk_rope_head_dim], -1
        )
        turned = _turn(torch.cat((q_rope, k_rope.unsqueeze(2)), dim=2), places.turn_1TR)
        q_rope, k_rope = turned[:, :, :-1], turned[:, :, -1]
        places.write(kept_BSW, torch.cat((self.kv_norm(latent), k_rope), dim=-1))
        kept = kept_BSW[:, : places.end]
        if expand is None:
            expand = expanding_is_cheaper(c, tokens, places.end)
        attend = self._expanded if expand else self._absorbed
        return F.linear(attend(q_nope, q_rope, kept, places), self.out)

    def _expanded(self, q_nope_BTHN: Tensor, q_rope_BTHR: Tensor, kept_BSW: Tensor, places: Places) -> Tensor:
        """-> [B, T, H*V]."""
        c, (batch, size, _), hidden = self.config, kept_BSW.shape, places.hidden_BTS
        latent, k_rope = torch.split(kept_BSW, [c.kv_lora_rank, c.qk_rope_head_dim], -1)
        kv = F.linear(latent, self.kv_up).view(batch, size, c.num_attention_heads, -1).transpose(1, 2)
        k_nope, v = torch.split(kv, [c.qk_nope_head_dim, c.v_head_dim], -1)
        k = torch.cat((k_nope, k_rope.unsqueeze(1).expand(-1, c.num_attention_heads, -1, -1)), -1)
        q = torch.cat((q_nope_BTHN, q_rope_BTHR), -1).transpose(1, 2)
        seen = None if hidden is None else ~hidden.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self.scale)
        return out.transpose(1, 2).flatten(2)

    def _absorbed(self, q_nope_BTHN: Tensor, q_rope_BTHR: Tensor, kept_BSW: Tensor, places: Places) -> Tensor:
        """-> [B, T, H*V]."""
        batch, tokens, heads, _ = q_nope_BTHN.shape
        by_head = q_nope_BTHN.flatten(0, 1).transpose(0, 1)
        q_latent = torch.bmm(by_head, self.key_up_HNC).transpose(0, 1).view(batch, tokens, heads, -1)
        q = torch.cat((q_latent, q_rope_BTHR), -1).view(batch, tokens * heads, -1)
        bias = places.bias(heads, q.dtype)
        start, share = (self.nothing, 0) if bias is None else (bias, 1)
        scores = torch.baddbmm(start, q, kept_BSW.transpose(1, 2), beta=share, alpha=self.scale)
        weights = scores.softmax(-1)  # in FP32 inside, whatever the type
        latent = torch.bmm(weights, kept_BSW[..., : self.config.kv_lora_rank]).view(batch * tokens, heads, -1)
        out = torch.bmm(latent.transpose(0, 1), self.value_up_HCV)
        return out.transpose(0, 1).reshape(batch, tokens, -1)


def _turn(x_BTHR: Tensor, turn_1TR: Tensor) -> Tensor:
    """Rotate the interleaved pairs as `model.rope.rotate` does, in FP32: a pair is a complex number. The result stays
    interleaved, in queries and keys alike."""
    pairs = torch.view_as_complex(x_BTHR.float().view(*x_BTHR.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn_1TR).flatten(-2).to(x_BTHR.dtype)
