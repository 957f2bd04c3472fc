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
from model.generate.layers import Norm
from model.mtp import NextToken
from model.transformer import CausalLM


class CachedLayer:
    """A `Block` over one layer of a cache."""

    def __init__(self, block: Block) -> None:
        self.attention, self.mlp = CachedAttention(block.self_attn), feed_forward(block.mlp)
        self.before, self.after = Norm(block.input_layernorm), Norm(block.post_attention_layernorm)

    def __call__(self, x_BTD: Tensor, kept_BSW: Tensor, places: Places) -> Tensor:
        """-> [B, T, D]; the cache gets the new tokens."""
        x = x_BTD + self.attention(self.before(x_BTD), kept_BSW, places)
        return x + self.mlp(self.after(x))


class CachedModule:
    """A `NextToken` over its layer of a cache."""

    def __init__(self, module: NextToken) -> None:
        self.enorm, self.hnorm, self.norm = Norm(module.enorm), Norm(module.hnorm), Norm(module.norm)
        self.entry, self.layer = module.eh_proj.weight, CachedLayer(module.block)

    def __call__(self, h_BTD: Tensor, embedded_BTD: Tensor, kept_BSW: Tensor, places: Places) -> Tensor:
        """-> [B, T, D]."""
        joined = torch.cat((self.enorm(embedded_BTD), self.hnorm(h_BTD)), dim=-1)
        return self.norm(self.layer(F.linear(joined, self.entry), kept_BSW, places))


class Prepared:
    """A model's parts in the form that passes over caches want, partly copied; parameters are those at the time of
    making. Several decoders may share it."""

    def __init__(self, model: CausalLM) -> None:
        body, self.config = model.model, model.config
        self.embedding, self.norm, self.head = body.embed_tokens.weight, Norm(body.norm), model.lm_head.weight
        blocks = list(model.blocks().values())[: self.config.num_hidden_layers]
        self.layers = [CachedLayer(block) for block in blocks]
        self.module: CachedModule | None = None
        """The first prediction module, if there is one."""
        if len(body.mtp):
            assert isinstance(body.mtp[0], NextToken)
            self.module = CachedModule(body.mtp[0])


class Decoder:
    """A model with the caches of some texts, and those of its prediction module. Under inference mode only."""

    def __init__(
        self, model: Prepared, batch: int, places: int, *, ahead: bool = False, vocabulary: int | None = None
    ) -> None:
        """For `batch` rows of at most `places` tokens; `ahead`: with the prediction module, which there must be;
        `vocabulary`: logits of so many tokens only (None: of all)."""
        self.model, self.head, config = model, model.head[:vocabulary], model.config
        kind = self.head.dtype, self.head.device
        self.cache = LatentCache(config, config.num_hidden_layers, batch, places, *kind)
        self.module_cache = LatentCache(config, 1, batch, places, *kind) if ahead else None
        self.angles = Angles(config, places, self.head.device)

    def read(self, tokens_BT: Tensor, first_B: Sequence[int]) -> Tensor:
        """What the output head reads after each token, [B, T, D]; row b's tokens stand at place `first_B[b]` and after.

        All places before must have been read, by whatever passes.
        """
        places = self.angles.at(first_B, tokens_BT.shape[1])
        h = F.embedding(tokens_BT, self.model.embedding)
        for layer, kept in zip(self.model.layers, self.cache.kept_LBSW, strict=True):
            h = layer(h, kept, places)
        return self.model.norm(h)

    def read_ahead(self, h_BTD: Tensor, next_BT: Tensor, first_B: Sequence[int]) -> Tensor:
        """What the head reads for the token after the next, [B, T, D]: from `read`'s results and the tokens that follow
        each place, as in training."""
        module, cache = self.model.module, self.module_cache
        assert module is not None, "the model has no prediction module"
        assert cache is not None, "made without a cache for the prediction module"
        places = self.angles.at(first_B, next_BT.shape[1])
        embedded_BTD = F.embedding(next_BT, self.model.embedding)
        return module(h_BTD, embedded_BTD, cache.kept_LBSW[0], places)

    def logits(self, h: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return F.linear(h, self.head)

    @property
    def bytes_per_token(self) -> int:
        """What the caches hold for one token of one row."""
        return sum(cache.bytes_per_token for cache in self._caches())

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        for cache in self._caches():
            cache.keep(rows)

    def _caches(self) -> list[LatentCache]:
        return [self.cache] if self.module_cache is None else [self.cache, self.module_cache]
