"""Log-probabilities of requests' continuations, shared among the ranks.

Shapes: B rows of a pass, L tokens of a window, S = L - 1 positions, V vocabulary, N scored tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from model.tasks.requests import Request

ROUND = 32
"""Lengths of passes are multiples of it, so that a device sees few different shapes."""


class Scorer(Protocol):
    """The parts of `Engine` that scoring needs."""

    rank: int
    world_size: int
    device: torch.device

    def evaluate(self, window_BL: Tensor, depth: int) -> tuple[Tensor, ...]:
        """Logits [B, S, V] for the windows without their last token; collective."""


class Score(NamedTuple):
    """How well a continuation fits."""

    logprob: float
    """Natural logarithm, summed over the continuation's tokens."""
    greedy: bool
    """Whether each token was the likeliest."""


def score(engine: Scorer, requests: Sequence[Request], sequence_length: int, batch: int, pad: int) -> list[Score]:
    """Scores in the order of the requests, on every rank; `batch` is rows per rank and pass. Collective.

    All ranks make the same passes of the same length, because experts are reached by collectives. Rows are filled up on
    the right with `pad`, which no earlier position sees.
    """
    order = sorted(range(len(requests)), key=lambda i: -_length(requests[i]))  # what is too large fails at once
    found = torch.zeros(len(requests), 2, dtype=torch.float64, device=engine.device)
    together = batch * engine.world_size
    for start in range(0, len(order), together):
        numbers = order[start : start + together]
        own = numbers[engine.rank * batch : (engine.rank + 1) * batch]
        length = min(-(-(_length(requests[numbers[0]]) - 1) // ROUND) * ROUND, sequence_length)
        rows = [requests[i] for i in own] + [requests[numbers[0]]] * (batch - len(own))  # the last ones count nothing
        values = _pass(engine, rows, length, pad)
        if own:
            found[own] = values[: len(own)]
    if engine.world_size > 1:
        dist.all_reduce(found)  # each request was scored by one rank; others have zeros
    return [Score(logprob, bool(greedy)) for logprob, greedy in found.tolist()]


def _length(request: Request) -> int:
    return len(request.context) + len(request.continuation)


def _pass(engine: Scorer, rows: Sequence[Request], length: int, pad: int) -> Tensor:
    """[B, 2] log-probability and greediness of windows of `length` positions."""
    window = torch.full((len(rows), length + 1), pad, dtype=torch.int64)
    for row, request in zip(window, rows, strict=True):
        row[: _length(request)] = torch.tensor(request.context + request.continuation)
    window = window.to(engine.device)
    logits_BSV = engine.evaluate(window, 0)[0]
    values = []
    for row, logits_SV, request in zip(window, logits_BSV, rows, strict=True):
        begin, end = len(request.context), _length(request)
        # only the scored positions in FP32: all of them would take much more memory than the logits themselves
        logs_NV = logits_SV[begin - 1 : end - 1].float().log_softmax(-1)
        wanted_N = row[begin:end]
        logprob = logs_NV.gather(1, wanted_N.unsqueeze(1)).double().sum()
        greedy = (logs_NV.argmax(-1) == wanted_N).all()
        values.append(torch.stack((logprob, greedy.double())))
    return torch.stack(values)
