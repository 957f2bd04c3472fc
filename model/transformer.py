"""The whole language model: embedding, layers, output head and multi-token prediction.

Shapes: B batch, S sequence, L = S + depth tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.block import Block
from model.config import ModelConfig
from model.experts import Experts
from model.head import Asked, Head
from model.mtp import NextToken
from model.rope import rotation
from model.router import Router


class Output(NamedTuple):
    """Result of a forward pass."""

    logits: tuple[Tensor, ...]
    """[B, S, V] of the main model, then of each prediction depth that was asked for."""
    balance_loss: Tensor
    """Sum of the layers' sequence-wise auxiliary losses, without alpha (scalar FP32)."""
    asked: tuple[Asked, ...] = ()
    """In place of logits, where the targets were given: what each head makes of its own."""


def documents_of(tokens_BL: Tensor, end_of_text: int) -> Tensor:
    """[B, L] number of the document that each token belongs to, from 0; end-of-text belongs to the one it ends."""
    ends = (tokens_BL == end_of_text).long()
    return ends.cumsum(dim=1) - ends


def targets(window_BL: Tensor, head: int, length: int) -> Tensor:
    """Targets [B, S] of a head: position i is asked for token i + 1 + head."""
    return window_BL[:, head + 1 : head + 1 + length]


def document_mask(documents_BS: Tensor) -> Tensor:
    """[B, 1, S, S] whether a query (row) attends to a key: of the same document, and not after it.

    Rotary positions depend on distances only, so a document gives the same wherever in a sequence it stands.
    """
    same = documents_BS.unsqueeze(2) == documents_BS.unsqueeze(1)
    return same.tril().unsqueeze(1)


class Transformer(nn.Module):
    """Everything but the output head; its children's names are those of transformers, plus `mtp`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c, moe=i >= c.first_k_dense_replace) for i in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mtp = nn.ModuleList(NextToken(c) for _ in range(c.num_nextn_predict_layers))


class CausalLM(nn.Module):
    """A DeepSeek-style causal language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.index_n_heads:
            raise ValueError(
                f"sparse attention (index_n_heads={config.index_n_heads}) can be counted and planned but not yet "
                "trained; set index_n_heads to 0 to train the dense model"
            )
        self.config = config
        self.model = Transformer(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size)

    def forward(
        self,
        tokens_BL: Tensor,
        depth: int = 0,
        documents_BL: Tensor | None = None,
        window_BL: Tensor | None = None,
    ) -> Output:
        """Logits for the first S = L - depth positions; `depth` prediction modules look at the tokens after.

        With depth 0 this is the plain model. Head k (0 is the main one) predicts token i + 1 + k at position i. With
        `documents_BL` (`documents_of`) no position attends to another document; prediction modules still read the
        embedding of the tokens that they predict after. With `window_BL`, which has one token more than `tokens_BL`,
        each head is asked for its targets, and no logits are returned: they never stand whole.
        """
        body = self.model
        length = tokens_BL.shape[1] - depth
        if not 0 <= depth <= len(body.mtp) or length < 1:
            raise ValueError(
                f"depth {depth} needs at most {len(body.mtp)} prediction modules and more than {depth} tokens, "
                f"got {tokens_BL.shape[1]}"
            )
        cos, sin = rotation(self.config, length, tokens_BL.device)
        mask = None if documents_BL is None else document_mask(documents_BL[:, :length])
        embedded = body.embed_tokens(tokens_BL)
        h, balance = embedded[:, :length], torch.zeros((), device=tokens_BL.device)
        for layer in body.layers:
            h, loss = layer(h, cos, sin, mask)
            balance = balance + loss
        h = body.norm(h)  # what a head reads is what the next depth gets, as in the released order
        read = [h]
        for k in range(depth):
            module = body.mtp[k]
            assert isinstance(module, NextToken)
            h, loss = module(h, embedded[:, k + 1 : k + 1 + length], cos, sin, mask)
            balance = balance + loss
            read.append(h)
        if window_BL is None:
            return Output(tuple(self.lm_head(h) for h in read), balance)
        asked = (self.lm_head(h, targets(window_BL, k, length)) for k, h in enumerate(read))
        return Output((), balance, tuple(asked))

    def blocks(self) -> dict[str, Block]:
        """All layers by a short name: "0", "1", ... for the main ones, "mtp.0", ... for the prediction modules."""
        main = {str(i): b for i, b in enumerate(self.model.layers)}
        ahead = {f"mtp.{k}": m.block for k, m in enumerate(self.model.mtp)}
        return {name: b for name, b in (main | ahead).items() if isinstance(b, Block)}

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """The paper's initialisation: every matrix normal with `initializer_range`, norms 1, biases 0."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | Router | Experts):
                for parameter in module.parameters(recurse=False):
                    # FP32 on the host first: the same seed gives the same weights on every device
                    values = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
                    parameter.copy_(values)
            if isinstance(module, nn.RMSNorm):
                module.weight.fill_(1.0)
            if isinstance(module, Router):
                module.e_score_correction_bias.zero_()
