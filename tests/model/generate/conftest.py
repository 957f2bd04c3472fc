"""A tiny model that has learned something, so that its drafts are sometimes right."""

from __future__ import annotations

import pytest
import torch
from support.recipes import TINY

from model.loss import training_losses
from model.optim import without_compiler
from model.transformer import CausalLM

VOCABULARY = 12
"""Small enough to count how often each text was written."""
LEARNED = TINY.replace(
    vocab_size=VOCABULARY, num_hidden_layers=2, n_routed_experts=4, n_group=2, topk_group=1, max_position_embeddings=160
)


def sequences(count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Each number is the sum of the two before it, modulo the vocabulary, but for one in eight."""
    out = torch.randint(VOCABULARY, (count, length), generator=generator)
    chance = torch.rand(count, length, generator=generator)
    for i in range(2, length):
        follows = (out[:, i - 1] + out[:, i - 2]) % VOCABULARY
        out[:, i] = torch.where(chance[:, i] < 0.125, out[:, i], follows)
    return out


@pytest.fixture(scope="session")
def learned() -> CausalLM:
    """Trained for seconds on such sequences, main model and prediction module."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, generator = CausalLM(LEARNED), torch.Generator().manual_seed(0)
    model.initialise(1)
    optimizer = without_compiler(torch.optim.AdamW(model.parameters(), 1e-2, fused=True))
    for _ in range(80):
        window = sequences(12, 18, generator)
        losses = training_losses(model(window[:, :-1], 1), window, ahead_weight=1.0, alpha=0.0)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return model.eval()
