"""What recomputation costs and saves: a whole training step of the product under each policy.

    python benchmarks/recomputation.py [--shape mini wide long] [--precision fp32 bf16 fp8] [--rounds 7] [--json FILE]

Steps are those of `benchmarks/train_step.py` (DeepSpeed engine, ZeRO stage 1, clipping, AdamW, one thread): each policy
has its own process, and they take turns, step by step. The ratio of CPU seconds is the median over the rounds of a
policy's step by that of `none` in the same round, in brackets its quartiles. Bytes per token are what layers keep for
the backward pass, and the highest sum of all that is alive in it (gradients of weights too), by `benchmarks/memory.py`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, get_args

sys.path[:0] = [str(Path(__file__).parents[1])]

from benchmarks import memory  # noqa: E402
from benchmarks.train_step import SHAPES, Side, shape  # noqa: E402
from model.recipe import PrecisionName  # noqa: E402

POLICIES = ("none", "selective", "full")


def timed(which: str, precision: PrecisionName, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each step, by policy."""
    sides = {policy: Side(f"fathom:{precision}:1:{policy}", which, threads=1) for policy in POLICIES}
    found: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    for _ in range(rounds + 2):
        for policy, one in sides.items():
            found[policy].append(one.step()["seconds"])
    for one in sides.values():
        one.close()
    return {policy: seconds[2:] for policy, seconds in found.items()}  # the first two warm up


def compare(which: str, precision: PrecisionName, rounds: int) -> list[dict[str, Any]]:
    """A row for each policy."""
    config, sequence, batch = shape(which)
    seconds, rows = timed(which, precision, rounds), []
    for policy in POLICIES:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            bytes_of = pool.submit(memory.measure, config, (precision, 1, policy), batch, sequence).result()
        ratios = [a / b for a, b in zip(seconds[policy], seconds["none"], strict=True)]
        rows.append(
            {
                "shape": which,
                "precision": precision,
                "recompute": policy,
                "sequence": sequence,
                "tokens": sequence * batch,
                "rounds": rounds,
                "seconds": round(statistics.median(seconds[policy]), 4),
                "ratio": round(statistics.median(ratios), 3),
                "quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
                "kept": round(bytes_of.activations / (sequence * batch)),
                "highest": round(bytes_of.backward / (sequence * batch)),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| shape, sequence | precision | recomputation | CPU s a step | ratio | kept, bytes per token | highest |",
        "|" + "---|" * 7,
    ]
    for of in range(0, len(rows), len(POLICIES)):
        for r in rows[of : of + len(POLICIES)]:
            less = f" ({r['kept'] / rows[of]['kept'] - 1:+.0%})" if r is not rows[of] else ""
            spread = f" [{r['quartiles'][0]}, {r['quartiles'][1]}]" if less else ""
            lines.append(
                f"| {r['shape']}, {r['sequence']} | {r['precision']} | {r['recompute']} | {r['seconds']:.2f} "
                f"| {r['ratio']}{spread} | {r['kept']:,}{less} | {r['highest']:,} |"
            )
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    precisions = get_args(PrecisionName)
    parser.add_argument("--precision", nargs="+", default=list(precisions), choices=list(precisions))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for which in args.shape:
        for precision in args.precision:
            rows += compare(which, precision, args.rounds)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
