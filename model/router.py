"""Which experts a token visits: the only implementation, used by the plain model and inside DeepSpeed AutoEP.

Shapes: T tokens, D hidden, E routed experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.again import again
from model.config import ModelConfig

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


@contextmanager
def recomputation() -> Iterator[None]:
    """Marks a forward pass that is run again for the backward pass: its side effects must not repeat."""
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


def affinities(x_TD: Tensor, weight_ED: Tensor, scoring: str, selective: bool = False) -> Tensor:
    """Scores of all experts, [T, E] FP32. Product and non-linearity are FP32 whatever the model's precision:
    a lower-precision product changes which experts are chosen. With `selective` no FP32 copy of the tokens is kept."""
    with torch.autocast(x_TD.device.type, enabled=False):
        logits = again(selective, Tensor.float, lambda x: F.linear(x, weight_ED.float()), x_TD)
    return logits.sigmoid() if scoring == "sigmoid" else logits.softmax(dim=-1)


@torch.no_grad()
def choose(scores_TE: Tensor, bias_E: Tensor, config: ModelConfig) -> Tensor:
    """Group-limited top-k: [T, K] int64 indices of the chosen experts.

    noaux_tc (V3): bias added for the choice only, a group is worth its two best experts. group_limited_greedy
    (V2): no bias, a group is worth its best expert. greedy: neither groups nor bias.
    """
    c, tokens = config, scores_TE.shape[0]
    v3 = c.topk_method == "noaux_tc"
    scores = scores_TE + bias_E if v3 else scores_TE
    if c.n_group > 1 and c.topk_method != "greedy":
        grouped = scores.view(tokens, c.n_group, -1)
        worth = grouped.topk(2, dim=-1).values.sum(-1) if v3 else grouped.amax(-1)
        best = worth.topk(c.topk_group, dim=-1).indices
        reachable = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, best, True)
        scores = grouped.masked_fill(~reachable.unsqueeze(-1), float("-inf")).view(tokens, -1)
    return scores.topk(c.num_experts_per_tok, dim=-1).indices


def gate_weights(scores_TE: Tensor, chosen_TK: Tensor, config: ModelConfig) -> Tensor:
    """Weights of the chosen experts from the unbiased scores, [T, K] FP32."""
    weights = scores_TE.gather(1, chosen_TK)
    if config.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * config.routed_scaling_factor


def counted(scores_TE: Tensor, chosen_TK: Tensor, config: ModelConfig) -> Tensor:
    """Which experts the auxiliary loss counts, [T, K]: in V3 those of the highest affinities, without bias and groups
    (arXiv 2412.19437, eq. 18); in V2 the chosen ones (arXiv 2405.04434, eq. 24)."""
    return scores_TE.topk(config.num_experts_per_tok).indices if config.topk_method == "noaux_tc" else chosen_TK


def sequence_balance_loss(scores_TE: Tensor, counted_TK: Tensor, length: int) -> Tensor:
    """Sequence-wise auxiliary loss without its factor alpha (arXiv 2412.19437, eq. 17-20), mean over sequences.

    T must be whole sequences of `length` tokens. Only the mean affinity carries a gradient. It needs nothing from
    other processes: tokens are routed before they are sent to the processes that hold the experts.
    """
    experts, k = scores_TE.shape[1], counted_TK.shape[1]
    share = (scores_TE / scores_TE.sum(-1, keepdim=True)).view(-1, length, experts).mean(1)
    visits = counted_TK.reshape(-1, length * k)
    load = torch.zeros_like(share).scatter_add_(1, visits, torch.ones_like(visits, dtype=share.dtype))
    return (load * (experts / (k * length)) * share).sum(-1).mean()


class Routing:
    """What one router does and remembers; the module that owns the weights calls `run`."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.sequence_length = 0
        """Set by the block before each forward pass: the router itself sees [T, D] only."""
        self.balance_loss: Tensor | None = None
        """Auxiliary loss of the last forward pass; taken by the block, which returns it as a value, so that it
        keeps its graph under recomputation and is scaled with the rest of the loss."""
        self.load: Tensor | None = None
        """[E] int64 tokens per expert since the last bias update; recomputed passes are not counted."""
        self.calls = 0
        """First forward passes so far, to prove that this code runs inside AutoEP."""

    def run(
        self, x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor, selective: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> weights [T, K] FP32, indices [T, K] int64, tokens per expert [E] int32 (exact: they become the
        splits of an all-to-all, in a recomputation too)."""
        config = self.config
        scores = affinities(x_TD, weight_ED, config.scoring_func, selective)
        chosen = choose(scores, bias_E, config)
        counts = torch.zeros(config.n_routed_experts, dtype=torch.int32, device=x_TD.device)
        counts.scatter_add_(0, chosen.flatten(), torch.ones_like(chosen.flatten(), dtype=torch.int32))
        if torch.is_grad_enabled():
            self.balance_loss = sequence_balance_loss(scores, counted(scores, chosen, config), self.sequence_length)
            if not _recomputing.get():
                self.calls += 1
                self.load = counts.long() if self.load is None else self.load + counts
        return gate_weights(scores, chosen, config), chosen, counts

    def take_balance_loss(self, like: Tensor) -> Tensor:
        """The auxiliary loss of the last pass, once; zero where no gradients are wanted."""
        loss, self.balance_loss = self.balance_loss, None
        return loss if loss is not None else like.new_zeros((), dtype=torch.float32)


class Router(nn.Module):
    """Router of the plain model; parameter names as in transformers."""

    e_score_correction_bias: Tensor
    selective: bool = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        self.routing = Routing(config)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Routing.run`."""
        return self.routing.run(x_TD, self.weight, self.e_score_correction_bias, self.selective)
