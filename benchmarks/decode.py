"""Decoding with and without the prediction module, and against transformers, on one CPU thread.

    python benchmarks/decode.py WEIGHTS --prompts PROMPTS.jsonl [--tokens 128] [--batch 1 8] [--output decode.json]

WEIGHTS is a folder of whole weights (a run's `weights/`, or an export); PROMPTS.jsonl has one JSON text per line, best
beginnings of texts that were held out of training. Everything is greedy and counted in CPU seconds after the prompts.
Plain decoding and speculation take turns pass by pass, transformers text by text, so that they meet the same machine.

The bound on the speed-up is (1 + a) / (1 + c): a the share of drafts that were accepted, c the CPU time of a draft over
that of a pass over one token.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from model.flops import cache_bytes_per_token
from model.generate import Prepared, Statistics, Writer
from model.released import to_released
from model.transformer import CausalLM
from model.weights import read_model


def in_turns(model: Prepared, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[Writer, Writer]:
    """Plain and speculating, one pass each in turn."""
    both = tuple(Writer(model, prompts, tokens=tokens, speculate=s, clock=time.process_time) for s in (False, True))
    going = [iter(writer) for writer in both]
    while going:
        going = [one for one in going if next(one, None) is not None]
    return both


def speculation(model: Prepared, prompts: Sequence[Sequence[int]], batch: int, tokens: int) -> dict[str, Any]:
    """Sums over all prompts, `batch` at a time."""
    plain, ahead, same = Statistics(), Statistics(), 0
    for i in range(0, len(prompts) - batch + 1, batch):
        one, two = in_turns(model, prompts[i : i + batch], tokens)
        same += sum(a.text == b.text for a, b in zip(one.rows, two.rows, strict=True))
        for total, writer in ((plain, one), (ahead, two)):
            for name, value in vars(writer.statistics).items():
                setattr(total, name, getattr(total, name) + value)
    speedup = plain.seconds / plain.later_tokens / (ahead.seconds / ahead.later_tokens)
    two_token = ahead.main_pass / plain.main_pass
    return {
        "batch": batch,
        "texts": len(prompts) // batch * batch,
        "same_texts": same,
        "plain_ms_per_token": 1e3 * plain.seconds / plain.later_tokens,
        "mtp_ms_per_token": 1e3 * ahead.seconds / ahead.later_tokens,
        "acceptance": ahead.acceptance,
        "tokens_per_pass": ahead.tokens_per_pass,
        "draft_cost": ahead.draft_cost(plain),
        "two_token_pass_over_one": two_token,
        "speedup": speedup,
        "bound": ahead.bound(plain),
        "share_of_bound": speedup / ahead.bound(plain),
    }


def transformers_model(ours: CausalLM) -> DeepseekV3ForCausalLM:
    """The same weights; it has no prediction modules."""
    released = to_released(ours.config.replace(num_nextn_predict_layers=0))
    theirs = DeepseekV3ForCausalLM(DeepseekV3Config(**released, attn_implementation="sdpa"))
    state = {name: tensor for name, tensor in ours.state_dict().items() if ".mtp." not in name}
    theirs.load_state_dict(state)
    return theirs.eval()


def against_transformers(model: CausalLM, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
    """Plain decoding of single texts, with either's cache."""
    theirs, ours, ours_s, theirs_s, count, same = transformers_model(model), Prepared(model), 0.0, 0.0, 0, 0
    options = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True}
    for prompt in prompts:
        writer = Writer(ours, [prompt], tokens=tokens, clock=time.process_time)
        list(writer)
        start = torch.tensor([prompt])
        seconds = []
        for new in (1, tokens):  # the first gives what the prompt costs
            before = time.process_time()
            out = theirs.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=new, **options)
            seconds.append(time.process_time() - before)
        ours_s += writer.statistics.seconds
        theirs_s += seconds[1] - seconds[0]
        count += writer.statistics.later_tokens
        same += out.sequences[0].tolist() == writer.rows[0].text
        kept = sum(t.nbytes for layer in out.past_key_values.layers for t in (layer.keys, layer.values))
        theirs_bytes = kept // (len(out.sequences[0]) - 1)
    return {
        "fathom_ms_per_token": 1e3 * ours_s / count,
        "transformers_ms_per_token": 1e3 * theirs_s / count,
        "ratio": theirs_s / ours_s,
        "same_texts": same,
        "texts": len(prompts),
        "fathom_cache_bytes_per_token": writer.cache_bytes_per_token,
        "predicted_cache_bytes_per_token": cache_bytes_per_token(model.config, 4),
        "transformers_cache_bytes_per_token": theirs_bytes,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One column per measurement."""
    lines = []
    for name in rows[0]:
        values = (f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for row in rows)
        lines.append(f"{name:36}" + "".join(f"{value:>12}" for value in values))
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = read_model(args.weights)
    prompts = [tokenizer.encode(json.loads(line)) for line in args.prompts.read_text().splitlines()]
    prepared = Prepared(model)
    in_turns(prepared, prompts[:1], 8)  # warm up
    decoding = [speculation(prepared, prompts, batch, args.tokens) for batch in args.batch]
    print(table(decoding), end="\n\n")
    beside = against_transformers(model, prompts[:8], args.tokens)
    print(table([beside]))
    if args.output is not None:
        content = {"tokens": args.tokens, "speculation": decoding, "transformers": beside}
        args.output.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
