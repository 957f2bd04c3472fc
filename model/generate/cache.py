"""What attention keeps of the tokens it has seen, and where the tokens of one pass stand.

Shapes: L layers, B rows, S places, T tokens of one pass per row, C latent rank, R rotary dimension, W = C + R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.rope import rotation


class LatentCache:
    """One latent (after its norm, so that the up-projections can be absorbed) and one rotary key (turned already) per
    token and layer, side by side, because one product with both gives the scores. Made once, at its full size."""

    def __init__(
        self, config: ModelConfig, layers: int, batch: int, places: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        width = config.kv_lora_rank + config.qk_rope_head_dim
        # zeros: what was never written is hidden by a weight of 0, and 0 times garbage may be NaN
        self.kept_LBSW = torch.zeros(layers, batch, places, width, dtype=dtype, device=device)

    @property
    def bytes_per_token(self) -> int:
        """Of the tensors as they are, for one row."""
        layers, _, _, width = self.kept_LBSW.shape
        return layers * width * self.kept_LBSW.element_size()

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self.kept_LBSW = self.kept_LBSW[:, list(rows)]


@dataclass
class Places:
    """Where the T tokens of one pass stand in each row.

    A pass sees the places up to each token's own. Whatever lies beyond (padding of shorter rows, drafts that were
    rejected) is hidden by that rule, and overwritten before it could come into sight.
    """

    first: int | None
    """The first token's place where it is the same in all rows."""
    places_BT: Tensor | None
    """All places where rows differ."""
    end: int
    """How many places of the cache the pass looks at."""
    turn_1TR: Tensor
    """[B or 1, T, 1, R/2] complex: the rotary angles."""
    hidden_BTS: Tensor | None
    """[B or 1, T, 1, S] which places a token must not see; None: it sees all."""

    _bias: Tensor | None = None

    def bias(self, heads: int, dtype: torch.dtype) -> Tensor | None:
        """[B or 1, T*H, S] what to add to all scores: 0, or minus infinity for what is hidden. None: nothing.

        The same for all layers, so made once.
        """
        if self.hidden_BTS is not None and self._bias is None:
            hidden = self.hidden_BTS
            shown = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._bias = shown.expand(-1, -1, heads, -1).flatten(1, 2)
        return self._bias

    def write(self, kept_BSW: Tensor, new_BTW: Tensor) -> None:
        """Into one layer's part of the cache."""
        if self.first is not None:
            kept_BSW[:, self.first : self.end].copy_(new_BTW)
        else:
            rows = torch.arange(kept_BSW.shape[0], device=kept_BSW.device).unsqueeze(1)
            kept_BSW[rows, self.places_BT] = new_BTW


class Angles:
    """Rotary angles of all places of a model's context, as complex numbers of length 1 (times YaRN's factor)."""

    def __init__(self, config: ModelConfig, places: int, device: torch.device) -> None:
        self.turn_SR = torch.complex(*rotation(config, places, device))
        self.places_S = torch.arange(places, device=device)

    def at(self, first_B: Sequence[int], tokens: int) -> Places:
        """For `tokens` tokens per row, the first of them at place `first_B[row]`."""
        end = max(first_B) + tokens
        if min(first_B) + tokens == end:
            first = first_B[0]
            hidden = None
            if tokens > 1:
                hidden = (self.places_S[:end] > self.places_S[first:end, None])[None, :, None]
            return Places(first, None, end, self.turn_SR[None, first:end, None], hidden)
        starts_B1 = torch.tensor(first_B, device=self.places_S.device).unsqueeze(1)
        places_BT = starts_B1 + self.places_S[:tokens]
        hidden = (self.places_S[:end] > places_BT.unsqueeze(-1)).unsqueeze(2)
        return Places(None, places_BT, end, self.turn_SR[places_BT].unsqueeze(2), hidden)
