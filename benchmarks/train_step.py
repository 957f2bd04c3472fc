"""A whole training step of the product against transformers' DeepseekV3: the same shape, weights, tokens and threads.

    python benchmarks/train_step.py [--shape mini wide long] [--precision fp32 bf16] [--rounds 9] [--threads 1]
        [--zero-stage 1] [--json FILE]

Ours is what a job runs: the DeepSpeed engine at its defaults for one process (ZeRO stage 1, AutoEP of size 1), clipping
and AdamW. With `--zero-stage 0` (in a job `zeroStage: 0`; FP32 only) it keeps no second copy of the weights.
Theirs is the quickest set-up found on CPU: sdpa, grouped experts, no cache, plain cross-entropy without their loss
function's copies, clipping, torch's fused AdamW. Prediction modules are left out of ours, because transformers trains
none. Each side has its own process, which the others wait for: they take turns, step by step.

fp32: weights, activations and products in FP32 on both sides.
bf16: ours is the policy of that name: BF16 weights, activations, gradients and products, and in the optimizer FP32
master weights and moments. transformers has two ways, and both are run:
- `autocast`: FP32 weights, gradients and moments, products in BF16. As many bits per weight as ours learn.
- `pure`: BF16 weights, gradients and moments and nothing else. Less work and less memory than ours, and a worse
  result: an update smaller than 1/256 of a weight is lost. There is no master copy to learn it.

CPU seconds are of whole steps; memory is the highest resident set during the steps, above that of the process with
everything imported and nothing built. The ratio of speeds is the median over the rounds of theirs / ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from model.config import ModelConfig
from model.presets import preset
from model.recipe import Balance, Checkpointing, Layout, MultiToken, Optimizer, PrecisionName, Recipe, Schedule
from model.released import to_released
from model.transformer import CausalLM

Step = Callable[[torch.Tensor], float]
MIB = 1 << 20
RATE = 1e-3
WIDE: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "q_lora_rank": 192,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
}
SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {
    "mini": ({}, 256, 16),  # what `make demo` trains, all of its batch in one process
    "wide": (WIDE, 512, 4),
    "long": ({}, 1024, 4),
}
"""Changes of preset `mini`, tokens of a sequence, sequences of a step."""
WAYS: dict[PrecisionName, tuple[str, ...]] = {"fp32": ("fp32",), "bf16": ("autocast", "pure")}
"""What transformers can do against a precision of ours."""


def shape(name: str) -> tuple[ModelConfig, int, int]:
    """-> architecture, sequence length, batch."""
    changes, sequence, batch = SHAPES[name]
    return preset("mini").replace(num_nextn_predict_layers=0, **changes), sequence, batch


def fathom(
    config: ModelConfig, sequence: int, batch: int, precision: PrecisionName, stage: str, recompute: str = "none"
) -> Step:
    """-> one step of the product on a window; returns its loss."""
    from model.engine.zero import ZeroEngine

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    recipe = Recipe(
        model=config,
        data="unused",
        seed=0,
        sequence_length=sequence,
        steps=1,
        precision=precision,
        schedule=Schedule(
            learning_rate=RATE, final_learning_rate=RATE, warmup_steps=0, decay_start_step=1, decay_end_step=1
        ),
        optimizer=Optimizer(),
        balance=Balance(bias_stop_step=1),
        multi_token=MultiToken(switch_step=1),
        layout=Layout(
            zero_stage=int(stage),  # type: ignore[arg-type]
            world_size=1,
            expert_parallel=1,
            micro_batch=batch,
            accumulation=1,
            recompute=recompute,  # type: ignore[arg-type]
        ),
        checkpoint=Checkpointing(uri="unused", interval_seconds=60, keep=1),
        eval_every_steps=1,
        eval_tokens=2,
        sample_tokens=0,
        device="cpu",
    )
    engine = ZeroEngine(recipe)

    def step(window: torch.Tensor) -> float:
        losses = engine.micro_step(window, ahead_weight=0.0, alpha=1e-4, passes=1)
        engine.step(RATE)
        return float(losses.next_token)

    return step


def transformers(config: ModelConfig, _sequence: int, _batch: int, how: str, experts: str) -> Step:
    """-> one step of DeepseekV3ForCausalLM with the same first weights; `how`: see `WAYS`."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    released = DeepseekV3Config(
        **to_released(config), attn_implementation="sdpa", experts_implementation=experts, use_cache=False
    )
    ours = CausalLM(config)
    ours.initialise(0)
    model = DeepseekV3ForCausalLM(released)
    model.load_state_dict(ours.state_dict(), assign=True)
    model.train()
    if how == "pure":
        model.to(torch.bfloat16)
    settings = Optimizer()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=RATE,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )

    def step(window: torch.Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            logits = model(window[:, :-1]).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def resident(field: str) -> int:
    """Bytes of this process by a field of its status: VmRSS now, VmHWM at its highest."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def side(name: str, which: str, threads: int) -> None:
    """One side's process: a step for each line it is given, answered by a line of JSON."""
    torch.set_num_threads(threads)
    import deepspeed  # noqa: F401  # both processes hold the same libraries
    from transformers import DeepseekV3ForCausalLM  # noqa: F401

    config, sequence, batch = shape(which)
    start = resident("VmRSS")
    kind, *how = name.split(":")
    build = fathom if kind == "fathom" else transformers
    step = build(config, sequence, batch, *how)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
    generator = torch.Generator().manual_seed(1)
    for _ in sys.stdin:
        window = torch.randint(0, config.vocab_size, (batch, sequence + 1), generator=generator)
        before = time.process_time()
        loss = step(window)
        seconds = time.process_time() - before
        print(json.dumps({"seconds": seconds, "loss": loss, "peak": resident("VmHWM") - start}), flush=True)


class Side:
    """The other end of `side`."""

    def __init__(self, name: str, which: str, threads: int) -> None:
        command = [
            sys.executable,
            "-W",
            "ignore",
            __file__,
            "--side",
            name,
            "--shape",
            which,
            "--threads",
            str(threads),
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def step(self) -> dict[str, float]:
        """Seconds, loss and peak of one step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("{"):  # libraries print there too
                answer: dict[str, float] = json.loads(line)
                return answer
        raise SystemExit(self.process.communicate()[1])

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def compare(
    which: str, precision: PrecisionName, rounds: int, threads: int, experts: str, stage: int
) -> list[dict[str, Any]]:
    """All sides on one shape, in turns: a row for each way of transformers."""
    config, sequence, batch = shape(which)
    names = [f"fathom:{precision}:{stage}", *(f"transformers:{way}:{experts}" for way in WAYS[precision])]
    sides = [Side(name, which, threads) for name in names]
    found: list[list[dict[str, float]]] = [[] for _ in sides]
    for _ in range(rounds + 2):
        for rows, one in zip(found, sides, strict=True):
            rows.append(one.step())
    for one in sides:
        one.close()
    common = {
        "shape": which,
        "precision": precision,
        "tokens": sequence * batch,
        "sequence": sequence,
        "parameters": sum(p.numel() for p in CausalLM(config).parameters()),
        "rounds": rounds,
        "threads": threads,
        "experts": experts,
        "zero_stage": stage,
    }
    ours, *others = found
    return [
        common | {"theirs": way} | paired(ours, theirs, sequence * batch)
        for way, theirs in zip(WAYS[precision], others, strict=True)
    ]


def paired(ours: list[dict[str, float]], theirs: list[dict[str, float]], tokens: int) -> dict[str, Any]:
    """What the steps of two sides say; the first two of each only warm up."""
    both = ours, theirs
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours[2:], theirs[2:], strict=True)]
    seconds = [statistics.median(row["seconds"] for row in rows[2:]) for rows in both]
    peaks = [max(row["peak"] for row in rows) for rows in both]
    return {
        "seconds": [round(value, 4) for value in seconds],
        "tokens_per_second": [round(tokens / value) for value in seconds],
        "peak_mib": [round(peak / MIB, 1) for peak in peaks],
        "speed_ratio": round(statistics.median(ratios), 3),
        "speed_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
        "memory_ratio": round(peaks[0] / peaks[1], 3),
        "first_loss": [rows[0]["loss"] for rows in both],
        "last_loss": [rows[-1]["loss"] for rows in both],
    }


def table(results: list[dict[str, Any]]) -> str:
    """In Markdown; each pair is ours and theirs."""
    lines = [
        "| shape | precision | theirs | tokens/step | parameters | tokens per CPU-second | speed | peak MiB | memory |",
        "|" + "---|" * 9,
    ]
    for r in results:
        speeds, peaks = (" / ".join(f"{v:,}" for v in r[key]) for key in ("tokens_per_second", "peak_mib"))
        lines.append(
            f"| {r['shape']} | {r['precision']} | {r['theirs']} | {r['tokens']:,} "
            f"| {r['parameters'] / 1e6:.1f}M | {speeds} | {r['speed_ratio']} "
            f"| {peaks} | {r['memory_ratio']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--precision", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--experts", default="grouped_mm", help="transformers' experts_implementation")
    parser.add_argument("--zero-stage", type=int, default=1, choices=(0, 1, 2), help="ours; 0 with fp32 only")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side(args.side, args.shape[0], args.threads)
        return
    results = [
        row
        for name in args.shape
        for precision in args.precision
        for row in compare(name, precision, args.rounds, args.threads, args.experts, args.zero_stage)
    ]
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
