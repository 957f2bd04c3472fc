"""From logits to tokens: the best one, or drawn; and whether a drawn draft is accepted.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is taken. ValueError for what makes no sense."""

    temperature: float = 0.8
    """0 takes the best token always."""
    top_k: int = 50
    """Only so many best tokens; 0: all."""
    top_p: float = 1.0
    """Of these only the best whose probabilities together reach this share."""
    seed: int = 0
    """Row r of a batch is drawn as a single text of seed + r is."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or a positive number, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or a number of tokens, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    @property
    def greedy(self) -> bool:
        """Whether chance has no part."""
        return self.temperature == 0


GREEDY = Sampling(temperature=0.0)


def distribution(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """What is drawn from, [B, V] FP32: temperature first, then the best `top_k`, then the best `top_p` of those.

    Tokens as good as the last of the best `top_k` stay too, and none is lost to rounding.
    """
    scores = logits_BV.float()
    temperature = max(sampling.temperature, torch.finfo(torch.float32).tiny)
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature  # the best is 0: no inf - inf, however cold
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    probabilities = scores.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # the first one always stays
        probabilities = torch.zeros_like(ordered).scatter(-1, order, ordered.masked_fill(beyond, 0.0))
        probabilities /= probabilities.sum(-1, keepdim=True)
    return probabilities


def draw(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """[B] tokens in proportion to `weights_BV` (not all 0), by one number in [0, 1) each."""
    cumulated = weights_BV.cumsum(-1)
    total = cumulated[..., -1:]
    token_B1 = torch.searchsorted(cumulated, uniform_B.unsqueeze(-1) * total, right=True)
    last = cumulated.argmax(-1, keepdim=True)  # u * total may round to the total, which no token lies beyond
    return torch.minimum(token_B1, last).squeeze(-1)


class Verdict(NamedTuple):
    """Of a pass on the drafts of all rows."""

    accepted_B: Tensor
    token_B: Tensor
    """The draft where it is accepted, otherwise what stands in its place."""


def verify(target_BV: Tensor, draft_BV: Tensor, token_B: Tensor, uniform_2B: Tensor) -> Verdict:
    """Accept a draft drawn from `draft_BV` with min(1, target / draft), otherwise draw from what the target has more
    than the draft had: together this draws from the target exactly (arXiv 2211.17192, theorem 1)."""
    at = token_B.unsqueeze(-1)
    accepted = uniform_2B[0] * draft_BV.gather(-1, at).squeeze(-1) < target_BV.gather(-1, at).squeeze(-1)
    more = (target_BV - draft_BV).clamp_min(0)
    accepted |= more.sum(-1) == 0  # equal up to rounding: nothing is left over to draw from
    instead = draw(torch.where(accepted.unsqueeze(-1), target_BV, more), uniform_2B[1])
    return Verdict(accepted, torch.where(accepted, token_B, instead))
