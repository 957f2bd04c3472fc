"""Writing text with a trained model: compressed cache, sampling, speculation, and text as it comes.

`Writer` is the whole of it; `generate` the short form for one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.generate.decoder import Prepared
from model.generate.sampling import GREEDY, Sampling
from model.generate.statistics import Statistics, bound
from model.generate.text import TextStream
from model.generate.writer import Row, Writer
from model.transformer import CausalLM

__all__ = ["GREEDY", "Prepared", "Row", "Sampling", "Statistics", "TextStream", "Writer", "bound", "generate"]


def generate(
    model: CausalLM,
    prompt: Sequence[int],
    *,
    tokens: int,
    sampling: Sampling = GREEDY,
    speculate: bool = False,
    end_of_text: int | None = None,
) -> list[int]:
    """Up to `tokens` new tokens after `prompt`; see `Writer`. Equal arguments give equal text on the same machine."""
    writer = Writer(model, [prompt], tokens=tokens, sampling=sampling, speculate=speculate, end_of_text=end_of_text)
    return [token for _, new in writer for token in new]
