"""Writing text with a trained model, one process, plain: the whole context is computed anew for every token.

Shapes: V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.transformer import CausalLM


def pick(logits_V: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """The next token: the best one at temperature 0, otherwise drawn from the `top_k` best (0: from all)."""
    if temperature == 0:
        return int(logits_V.argmax())
    scores = logits_V.float() / temperature
    if top_k and top_k < scores.numel():
        threshold = scores.topk(top_k).values[-1]
        scores = scores.masked_fill(scores < threshold, float("-inf"))
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))


@torch.no_grad()
def generate(
    model: CausalLM,
    prompt: list[int],
    *,
    tokens: int,
    context: int,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    stop: int | None = None,
) -> list[int]:
    """Up to `tokens` new tokens after `prompt`, looking back at most `context` tokens; ends before token `stop`.

    Equal arguments give equal text on the same machine.
    """
    if not prompt:
        raise ValueError("the prompt is empty: give at least one token")
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    text = list(prompt)
    for _ in range(tokens):
        window = torch.tensor([text[-context:]])
        token = pick(model(window).logits[0][0, -1], temperature, top_k, generator)
        if token == stop:
            break
        text.append(token)
    return text[len(prompt) :]
