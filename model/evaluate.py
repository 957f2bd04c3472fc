"""Held-out quality in bits per byte, which is comparable between tokenizers.

Shapes: N windows, S positions, V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from model.engine.base import Engine
from model.loss import targets, token_losses


def evaluate(
    engine: Engine, windows: NDArray[np.int64], token_bytes: NDArray[np.int64], batch: int, depth: int
) -> dict[str, float]:
    """Score windows [N, S + 1 + depth] once each, shared among the ranks.

    Bits per byte = sum of cross-entropies / ln 2 / bytes of the target tokens (end-of-text stands for none, but its
    cost counts). All ranks make the same number of passes, because experts are reached by collectives: the last
    passes are filled up with windows of weight 0.
    """
    passes = math.ceil(len(windows) / (batch * engine.world_size))
    lengths = torch.from_numpy(token_bytes).to(engine.device)
    sums = torch.zeros(4, dtype=torch.float64, device=engine.device)  # nats, bytes, tokens, right second tokens
    for i in range(passes):
        first = (i * engine.world_size + engine.rank) * batch
        rows = [min(first + j, len(windows) - 1) for j in range(batch)]
        used = torch.tensor([first + j < len(windows) for j in range(batch)], device=engine.device)
        window = torch.from_numpy(windows[rows]).to(engine.device)
        logits = engine.evaluate(window, depth)
        wanted = targets(window, 0, logits[0].shape[1])
        weight = used.unsqueeze(1).expand_as(wanted)
        sums[0] += (token_losses(logits[0], wanted) * weight).double().sum()
        sums[1] += (lengths[wanted] * weight).sum()
        sums[2] += weight.sum()
        if depth:
            right = logits[1].argmax(-1) == targets(window, 1, wanted.shape[1])
            sums[3] += (right & weight).sum()
    dist.all_reduce(sums)
    nats, size, tokens, right = sums.tolist()
    result = {"eval/loss": nats / tokens, "eval/bits_per_byte": nats / math.log(2) / size}
    return result | ({"eval/mtp_accuracy": right / tokens} if depth else {})
