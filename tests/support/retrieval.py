"""Text whose continuation must be looked up far back, and a model small enough to learn that in seconds.

A sequence is one random block, repeated until the sequence is full: from its second copy on each token can be known by
whoever finds where the same tokens stood before, a block's length back. Shapes: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import ModelConfig, Yarn
from model.loss import token_losses
from model.optim import build_optimizer, parameter_groups
from model.recipe import Optimizer
from model.transformer import CausalLM
from model.weights import load_weights, write_weights

SHORT, MIDDLE, LONG = 64, 128, 256
"""Lengths of pre-training and of the two phases."""
SHORTEST_BLOCK = 8
BATCH_TOKENS = 2048
"""Of every step, whatever the length: longer sequences are fewer, as in DeepSeek-V3."""
YARN = Yarn(factor=LONG / SHORT, original_max_position_embeddings=SHORT)
MODEL = ModelConfig(
    vocab_size=16,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    q_lora_rank=None,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=32,
    intermediate_size=128,
    moe_intermediate_size=64,
    first_k_dense_replace=1,
    n_routed_experts=4,
    num_experts_per_tok=2,
    max_position_embeddings=SHORT,
    initializer_range=0.05,
)


def draw(generator: np.random.Generator, count: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[B, S + 1] tokens and [B] lengths of the blocks, from 8 to half the sequence, evenly in their logarithm."""
    low, high = np.log(SHORTEST_BLOCK), np.log(length // 2 + 1)
    blocks = np.exp(generator.uniform(low, high, count)).astype(np.int64)
    rows = [np.resize(generator.integers(0, MODEL.vocab_size, size), length + 1) for size in blocks]
    return np.stack(rows), blocks


def train(model: CausalLM, length: int, steps: int, rate: float, *, seed: int, warmup: int = 0) -> None:
    """At a constant rate after `warmup` steps."""
    generator, settings = np.random.default_rng(seed), Optimizer()
    optimizer = build_optimizer(parameter_groups(model, settings.weight_decay), settings, rate)
    model.train()
    for step in range(steps):
        window = torch.from_numpy(draw(generator, BATCH_TOKENS // length, length)[0])
        losses = token_losses(model(window[:, :-1]).logits[0], window[:, 1:])
        optimizer.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate * min(1.0, (step + 1) / (warmup or 1))
        optimizer.step()


@dataclass(frozen=True)
class Measured:
    """Of text that training never saw. Losses in nats per token, accuracies of tokens that can be known."""

    short: float
    """Loss on sequences of the original length."""
    by_position: tuple[float, float, float]
    """Loss on sequences of LONG tokens at positions below SHORT, from there below MIDDLE, and beyond."""
    near: float
    """Share of right tokens whose block is at most half the original length, the longest that pre-training saw."""
    far: float
    """The same where one has to look back further than the whole original length."""


@torch.no_grad()
def measure(model: CausalLM) -> Measured:
    """Always on the same text."""
    model.eval()
    generator = np.random.default_rng(12345)
    short, _, _ = _scored(model, generator, 256, SHORT)
    losses, right, blocks = _scored(model, generator, 96, LONG)
    known = torch.arange(LONG) + 1 >= blocks[:, None]
    edges = ((0, SHORT), (SHORT, MIDDLE), (MIDDLE, LONG))
    return Measured(
        short=float(short.mean()),
        by_position=tuple(float(losses[:, a:b].mean()) for a, b in edges),  # type: ignore[arg-type]
        near=float(right[known & (blocks <= SHORT // 2)[:, None]].float().mean()),
        far=float(right[known & (blocks > SHORT)[:, None]].float().mean()),
    )


def _scored(model: CausalLM, generator: np.random.Generator, count: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, S] losses and whether the best token is right, [B] blocks."""
    tokens, blocks = draw(generator, count, length)
    window = torch.from_numpy(tokens)
    logits = model(window[:, :-1]).logits[0]
    return token_losses(logits, window[:, 1:]), logits.argmax(-1) == window[:, 1:], torch.from_numpy(blocks)


def save(model: CausalLM, folder: Path) -> Path:
    """As a run leaves them."""
    write_weights(str(folder), model.config, _tensors(model), "{}", write=True)
    return folder


def _tensors(model: CausalLM) -> Iterator[tuple[str, Tensor]]:
    yield from model.state_dict().items()


def load(config: ModelConfig, folder: Path) -> CausalLM:
    """Weights in a model that may be made for longer sequences."""
    model = CausalLM(config)
    load_weights(model, str(folder))
    return model
