"""Two phases of context extension, 64 -> 128 -> 256 tokens, against controls, on text that must be looked up.

    python benchmarks/extend_context.py [--seeds 0 1 2] [--out runs/extend-context]

About a CPU minute for each seed, on one thread; seeds that results.json in the folder holds already are not repeated.
Writes that file and context.png and prints the table of docs/context.md. The text, the model and the measures are those
of tests/support/retrieval.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.retrieval import LONG, MIDDLE, MODEL, SHORT, YARN, Measured, load, measure, save, train  # noqa: E402

from model.config import ModelConfig, Yarn  # noqa: E402
from model.transformer import CausalLM  # noqa: E402

STEPS, RATE, PHASE_STEPS = 300, 3e-3, 40
SHARES = (30, 10, 3)
"""The extension's rate is the pre-training's highest, divided by one of these."""
WIDE = Yarn(factor=40, original_max_position_embeddings=SHORT)
Rows = dict[str, Measured]


def phases(start: Path, folder: Path, stretch: Callable[[ModelConfig, int], ModelConfig], rate: float) -> Measured:
    """Both, by way of files."""
    where = start
    config = MODEL
    for length in (MIDDLE, LONG):
        config = stretch(config, length)
        model = load(config, where)
        train(model, length, PHASE_STEPS, rate, seed=length)
        where = save(model, folder / str(length))
    return measure(model)


def one_seed(seed: int, folder: Path) -> Rows:
    """All that is compared, from the same start."""
    base = CausalLM(MODEL)
    base.initialise(seed)
    train(base, SHORT, STEPS, RATE, seed=seed, warmup=20)
    start = save(base, folder / "base")
    rows = {
        "before": measure(base),
        "YaRN, not trained further": measure(load(MODEL.stretched(LONG, YARN), start)),
    }
    for share in SHARES:
        rate = RATE / share
        control = load(MODEL, start)
        train(control, SHORT, 2 * PHASE_STEPS, rate, seed=seed + 100)
        rows[f"control: same tokens at {SHORT}, rate 1/{share}"] = measure(control)
        rows[f"two phases, rate 1/{share}"] = phases(start, folder, lambda c, n: c.stretched(n, YARN), rate)
    plain = phases(start, folder, lambda c, n: c.replace(max_position_embeddings=n), RATE / 10)
    rows["two phases without YaRN, rate 1/10"] = plain
    rows["two phases, factor 40, rate 1/10"] = phases(start, folder, lambda c, n: c.stretched(n, WIDE), RATE / 10)
    return rows


HEAD = (
    "", f"loss at length {SHORT}", f"loss, position < {SHORT}", f"{SHORT} to {MIDDLE}", f"{MIDDLE} to {LONG}",
    f"right, distance <= {SHORT // 2}", f"right, distance > {SHORT}",
)  # fmt: skip


def values(measured: Measured) -> tuple[float, ...]:
    """In the order of HEAD."""
    return (measured.short, *measured.by_position, measured.near, measured.far)


def table(seeds: Sequence[Rows]) -> str:
    """Means over the seeds, with the range in brackets for what is judged by."""
    lines = [HEAD, ["---"] * len(HEAD)]
    for name in seeds[0]:
        columns = list(zip(*(values(rows[name]) for rows in seeds), strict=True))
        cells = [f"{statistics.mean(column):.2f}" for column in columns]
        for judged in (3, 5):
            cells[judged] += f" ({min(columns[judged]):.2f} to {max(columns[judged]):.2f})"
        lines.append([name, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(seeds: Sequence[Rows], path: Path) -> None:
    """Loss by position and accuracy by distance, a bar for each of four rows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [name for name in seeds[0] if "rate" not in name or ("1/10" in name and "factor" not in name)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(3, 2), layout="constrained")
    for k, name in enumerate(shown):
        means = [statistics.mean(column) for column in zip(*(values(rows[name]) for rows in seeds), strict=True)]
        at = 0.8 * (k - (len(shown) - 1) / 2) / len(shown)
        left.bar([x + at for x in range(3)], means[1:4], 0.8 / len(shown), label=name)
        right.bar([x + at for x in range(2)], means[4:], 0.8 / len(shown))
    left.set(ylabel="held-out loss (nats per token)", xticks=range(3), xticklabels=HEAD[2:5])
    right.set(ylabel="right tokens among the knowable", xticks=range(2), xticklabels=HEAD[5:], ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/extend-context"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.json"
    settings = {"steps": STEPS, "rate": RATE, "phase_steps": PHASE_STEPS}
    content = json.loads(file.read_text()) if file.exists() else settings | {"seeds": {}}
    for seed in args.seeds:
        if str(seed) in content["seeds"]:
            continue
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            rows = one_seed(seed, Path(folder))
        content["seeds"][str(seed)] = {name: asdict(measured) for name, measured in rows.items()}
        file.write_text(json.dumps(content, indent=1))
        print(f"seed {seed}: {time.process_time() - began:.0f} CPU seconds", file=sys.stderr)
    seeds = [{name: Measured(**row) for name, row in content["seeds"][str(seed)].items()} for seed in args.seeds]
    picture(seeds, args.out / "context.png")
    print(table(seeds))


if __name__ == "__main__":
    main()
