"""One training step of our model against transformers' DeepseekV3 with the same weights, on one CPU thread.

    python benchmarks/train_step.py [--preset mini] [--sequence 256] [--batch 8] [--rounds 5]

Prints CPU seconds of forward and backward for both, interleaved, and their ratio (median of the rounds; above 1 ours is
quicker). Prediction modules are left out on our side, because transformers has none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from model.presets import preset
from model.released import to_released
from model.transformer import CausalLM


def cpu_seconds(step: Callable[[], None]) -> float:
    """CPU time of one call."""
    before = time.process_time()
    step()
    return time.process_time() - before


def train_step(model: nn.Module, logits: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> None:
    """Forward, next-token loss, backward."""
    model.zero_grad()
    out = logits(tokens[:, :-1])
    F.cross_entropy(out.flatten(0, 1), tokens[:, 1:].flatten()).backward()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = preset(args.preset).replace(num_nextn_predict_layers=0)
    ours = CausalLM(config)
    ours.initialise(0)
    released = DeepseekV3Config(**to_released(config), attn_implementation="sdpa", use_cache=False)
    theirs = DeepseekV3ForCausalLM(released)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(0, config.vocab_size, (args.batch, args.sequence + 1))

    steps = {
        "fathom": lambda: train_step(ours, lambda t: ours(t).logits[0], tokens),
        "transformers": lambda: train_step(theirs, lambda t: theirs(t).logits, tokens),
    }
    for step in steps.values():
        step()  # warm up
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(cpu_seconds(step))
    ratios = [b / a for a, b in zip(times["fathom"], times["transformers"], strict=True)]
    print(
        json.dumps(
            {name: round(statistics.median(values), 4) for name, values in times.items()}
            | {"ratio": round(statistics.median(ratios), 3), "rounds": args.rounds, "unit": "CPU seconds per step"}
        )
    )


if __name__ == "__main__":
    main()
