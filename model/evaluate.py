"""Held-out quality in bits per byte, which is comparable between tokenizers.

Shapes: N windows, S positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from model.engine.base import Engine
from model.loss import targets, token_losses

NATS, BYTES, TOKENS, RIGHT = range(4)
"""What is summed for each source: cross-entropy, bytes and number of the targets, right second tokens."""


def evaluate(
    engine: Engine,
    heldout: Mapping[str, NDArray[np.int64]],
    token_bytes: NDArray[np.int64],
    batch: int,
    depth: int,
) -> dict[str, float]:
    """Score each source's windows [N, S + 1 + depth] once, shared among the ranks; names by `model.metrics`.

    Bits per byte = sum of cross-entropies / ln 2 / bytes of the target tokens (special tokens stand for none, but their
    cost counts), over all sources together, and of each where there are several.
    """
    sums = {name: _sums(engine, windows, token_bytes, batch, depth) for name, windows in heldout.items()}
    whole = torch.stack(list(sums.values())).sum(0)
    nats, _, tokens, right = whole.tolist()
    result = {"eval/loss": nats / tokens, "eval/bits_per_byte": bits_per_byte(whole)}
    if depth:
        result["eval/mtp_accuracy"] = right / tokens
    if len(sums) > 1:
        result |= {f"eval/bits_per_byte/{name}": bits_per_byte(one) for name, one in sums.items()}
    return result


def bits_per_byte(sums: Tensor) -> float:
    """Of one source; not a number where its targets stand for no byte at all."""
    size = float(sums[BYTES])
    return float(sums[NATS]) / math.log(2) / size if size else math.nan


def _sums(engine: Engine, windows: NDArray[np.int64], token_bytes: NDArray[np.int64], batch: int, depth: int) -> Tensor:
    """[4] over all ranks. All ranks make the same number of passes, because experts are reached by collectives: the
    last passes are filled up with windows of weight 0."""
    passes = math.ceil(len(windows) / (batch * engine.world_size))
    lengths = torch.from_numpy(token_bytes).to(engine.device)
    sums = torch.zeros(4, dtype=torch.float64, device=engine.device)
    for i in range(passes):
        first = (i * engine.world_size + engine.rank) * batch
        rows = [min(first + j, len(windows) - 1) for j in range(batch)]
        used = torch.tensor([first + j < len(windows) for j in range(batch)], device=engine.device)
        window = torch.from_numpy(windows[rows]).to(engine.device)
        logits = engine.evaluate(window, depth)
        wanted = targets(window, 0, logits[0].shape[1])
        weight = used.unsqueeze(1).expand_as(wanted)
        sums[NATS] += (token_losses(logits[0], wanted) * weight).double().sum()
        sums[BYTES] += (lengths[wanted] * weight).sum()
        sums[TOKENS] += weight.sum()
        if depth:
            right = logits[1].argmax(-1) == targets(window, 1, wanted.shape[1])
            sums[RIGHT] += (right & weight).sum()
    dist.all_reduce(sums)
    return sums
