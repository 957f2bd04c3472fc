"""A model that remembers: each pass gets only the tokens that it has not seen yet.

Shapes: B rows, T new tokens per row, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.block import Block
from model.generate.attention import CachedAttention
from model.generate.cache import Angles, LatentCache, Places
from model.generate.experts import feed_forward
from model.mtp import NextToken
from model.transformer import CausalLM


class CachedLayer:
    """A `Block` over one layer of a cache."""

    def __init__(self, block: Block) -> None:
        self.attention, self.mlp = CachedAttention(block.self_attn), feed_forward(block.mlp)
        self.before, self.after = block.input_layernorm, block.post_attention_layernorm

    def __call__(self, x_BTD: Tensor, kept_BSW: Tensor, places: Places) -> Tensor:
        """-> [B, T, D]; the cache gets the new tokens."""
        x = x_BTD + self.attention(self.before(x_BTD), kept_BSW, places)
        return x + self.mlp(self.after(x))


class Decoder:
    """A model's layers with their caches, and its first prediction module with its own. Under inference mode only.

    Parameters are those at the time of making.
    """

    def __init__(
        self, model: CausalLM, batch: int, places: int, *, ahead: bool = False, vocabulary: int | None = None
    ) -> None:
        """For `batch` rows of at most `places` tokens; `ahead`: with the prediction module; `vocabulary`: logits of so
        many tokens only (None: of all)."""
        body, config = model.model, model.config
        self.model, weight = model, model.lm_head.weight
        self.layers = [CachedLayer(block) for block in model.blocks().values()][: config.num_hidden_layers]
        self.cache = LatentCache(config, config.num_hidden_layers, batch, places, weight.dtype, weight.device)
        self.head = weight[:vocabulary]
        self.angles = Angles(config, places, weight.device)
        self.module: NextToken | None = None
        if ahead:
            assert isinstance(body.mtp[0], NextToken)
            self.module, self.module_layer = body.mtp[0], CachedLayer(body.mtp[0].block)
            self.module_cache = LatentCache(config, 1, batch, places, weight.dtype, weight.device)

    def read(self, tokens_BT: Tensor, first_B: Sequence[int]) -> Tensor:
        """What the output head reads after each token, [B, T, D]; row b's tokens stand at place `first_B[b]` and after.

        All places before must have been read, by whatever passes.
        """
        places = self.angles.at(first_B, tokens_BT.shape[1])
        h = self.model.model.embed_tokens(tokens_BT)
        for layer, kept in zip(self.layers, self.cache.kept_LBSW, strict=True):
            h = layer(h, kept, places)
        return self.model.model.norm(h)  # type: ignore[no-any-return]

    def read_ahead(self, h_BTD: Tensor, next_BT: Tensor, first_B: Sequence[int]) -> Tensor:
        """What the head reads for the token after the next, [B, T, D]: from `read`'s results and the tokens that follow
        each place, as in training."""
        module = self.module
        assert module is not None, "made without its prediction module"
        places = self.angles.at(first_B, next_BT.shape[1])
        embedded = self.model.model.embed_tokens(next_BT)
        joined = torch.cat((module.enorm(embedded), module.hnorm(h_BTD)), dim=-1)
        h = self.module_layer(module.eh_proj(joined), self.module_cache.kept_LBSW[0], places)
        return module.norm(h)  # type: ignore[no-any-return]

    def logits(self, h: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return F.linear(h, self.head)

    @property
    def bytes_per_token(self) -> int:
        """What the caches hold for one token of one row."""
        return self.cache.bytes_per_token + (self.module_cache.bytes_per_token if self.module is not None else 0)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self.cache.keep(rows)
        if self.module is not None:
            self.module_cache.keep(rows)
