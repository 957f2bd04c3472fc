"""Sparse against dense: what the same text and the same active parameters buy, per FLOP and per dollar.

    fathom data prepare SOURCE runs/demo-data ...        (as `make demo` does)
    python benchmarks/sparse_dense.py runs/demo-data OUT [--tokens 1_000_000] [--seeds 1,2,3]

`sparse` is the preset `mini` without multi-token prediction: 16 experts, 4 of them and a shared one for each token.
`dense` has the same width, depth and attention, and one feed-forward in each layer of the size that gives the same
active parameters. Both are trained by `fathom train` with one worker and equal settings, on the same sequences in the
same order for each seed. A sparse step costs more time than a dense one of the same FLOPs, so a third run,
`dense, longer`, trains the dense model, with a schedule of its own, for as many tokens as the sparse run's money buys.

How much longer is measured first: optimizer steps of both by the product's engine, in turns in one process, in CPU time
(other work on the machine stretches wall time, CPU time hardly). The ledgers' money, which is wall time, is reported
too. OUT gets sparse-dense.json, sparse-dense.png and the runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model.config import ModelConfig  # noqa: E402
from model.flops import count, elements, flops_per_token, shared_matrices, swiglu_matrices  # noqa: E402
from model.presets import preset  # noqa: E402
from orchestrator.cost.ledger import Ledger  # noqa: E402
from orchestrator.plan.prices import PriceBook  # noqa: E402

SEQUENCE, BATCH_TOKENS, ROUNDS = 256, 4096, 12
FATHOM = [sys.executable, "-c", "from orchestrator.cli.main import main; main()"]
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """One training run: its evaluations and what it cost."""

    arm: str
    seed: int
    folder: str
    tokens: int
    cost: float
    """As billed: all held time, start and evaluations included."""
    training_seconds: float
    """Of it in steps and evaluations, by the wall."""
    evaluations: list[dict[str, float]]
    """step, tokens, dollars (billed until then), bits_per_byte."""


def sparse_model() -> ModelConfig:
    """The small preset, without what only one of the two could have."""
    return preset("mini").replace(num_nextn_predict_layers=0)


def dense_twin(sparse: ModelConfig) -> ModelConfig:
    """All layers dense, of the one inner size that comes nearest to the same active parameters."""
    c = sparse
    routed = c.num_experts_per_tok * elements(swiglu_matrices(c, c.moe_intermediate_size))
    moe = routed + elements(shared_matrices(c)) + c.n_routed_experts * c.hidden_size
    first = elements(swiglu_matrices(c, c.intermediate_size))
    wanted = (c.first_k_dense_replace * first + c.num_moe_layers * moe) / c.num_hidden_layers
    return c.replace(
        first_k_dense_replace=c.num_hidden_layers, intermediate_size=round(wanted / elements(swiglu_matrices(c, 1)))
    )


# ------------------------------------------------------------------ cost of a step
def pace(models: dict[str, ModelConfig]) -> dict[str, float]:
    """CPU seconds per token of each model's training step (forward, backward, AdamW), medians of interleaved rounds."""
    import torch
    from support.recipes import tiny_recipe

    from model.engine.zero import ZeroEngine
    from model.recipe import Layout

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    rows = BATCH_TOKENS // SEQUENCE
    layout = Layout(world_size=1, expert_parallel=1, micro_batch=rows, accumulation=1)
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        engines = {
            name: ZeroEngine(tiny_recipe(model=config, layout=layout, sequence_length=SEQUENCE))
            for name, config in models.items()
        }
        times: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(ROUNDS + 2):
            for name, engine in engines.items():
                window = torch.randint(0, models[name].vocab_size, (rows, SEQUENCE + 1))
                before = time.process_time()
                engine.micro_step(window, ahead_weight=0.0, alpha=1e-4, passes=1)
                engine.step(1e-3)
                if number >= 2:  # the first ones allocate
                    times[name].append(time.process_time() - before)
        torch.distributed.destroy_process_group()
    return {name: statistics.median(values) / BATCH_TOKENS for name, values in times.items()}


# ------------------------------------------------------------------ runs
def train(home: Path, dataset: Path, arm: str, config: ModelConfig, seed: int, tokens: int) -> Run:
    """One worker, one CPU; everything but the feed-forward's shape is equal in all arms."""
    steps = math.ceil(tokens / BATCH_TOKENS)
    job = home / f"{arm.replace(', ', '-')}-{seed}.json"
    job.write_text(
        json.dumps(
            {
                "apiVersion": "fathom.dev/v1alpha1",
                "kind": "TrainingJob",
                "metadata": {"name": job.stem},
                "spec": {
                    "model": {
                        "preset": "mini",
                        "overrides": {
                            "mtpDepth": config.num_nextn_predict_layers,
                            "denseLayers": config.first_k_dense_replace,
                            "denseHiddenSize": config.intermediate_size,
                        },
                    },
                    "data": {"source": str(dataset.absolute()), "sequenceLength": SEQUENCE},
                    "training": {
                        "tokens": tokens,
                        "globalBatchTokens": BATCH_TOKENS,
                        "precision": "fp32",
                        "seed": seed,
                        "sampleTokens": 0,
                        "evaluation": {"everySteps": max(1, steps // 10)},
                    },
                    "compute": {"accelerator": "cpu", "workers": 1, "cpuPerWorker": 1},
                    "checkpoint": {"intervalMinutes": 10},
                    "budget": {"limit": "5.00", "currency": "USD"},
                },
            },
            indent=1,
        )
    )
    environment = os.environ | {"FATHOM_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*FATHOM, "train", str(job), "-o", "json"], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job}: fathom train ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return read_run(arm, seed, Path(json.loads(done.stdout)["run"]))


def read_run(arm: str, seed: int, folder: Path) -> Run:
    """From the ledger and the metrics that a run has left."""
    totals = Ledger.from_json((folder / "artifacts" / "ledger.json").read_text()).totals
    with (folder / "artifacts" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("eval/bits_per_byte")]
    return Run(
        arm=arm,
        seed=seed,
        folder=folder.name,
        tokens=totals.tokens,
        cost=float(totals.cost),
        training_seconds=float(totals.seconds_by_class["productive"]),
        evaluations=[
            {
                "step": float(row["step"]),
                "tokens": float(row["progress/tokens"]),
                "dollars": float(row["cost/usd"]),
                "bits_per_byte": float(row["eval/bits_per_byte"]),
            }
            for row in rows
        ],
    )


# ------------------------------------------------------------------ what comes out
def reach(curve: Curve, y: float) -> float:
    """The first x at which the curve is down at `y`; nan if it never is."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if y1 <= y <= y0:
            return x0 + (x1 - x0) * (y0 - y) / (y0 - y1)
    return math.nan


def curve_of(run: Run, unit: Callable[[dict[str, float]], float]) -> Curve:
    """Evaluations of a run against tokens, FLOPs or dollars."""
    return [(unit(one), one["bits_per_byte"]) for one in run.evaluations]


def results(report: dict[str, Any]) -> dict[str, Any]:
    """Paired differences, sparse minus dense, for each seed, and their mean: below 0 the sparse model is better."""
    runs = [Run(**run) for run in report["runs"]]
    by = {(run.arm, run.seed): run for run in runs}
    seeds = sorted({run.seed for run in runs if ("dense, longer", run.seed) in by and ("sparse", run.seed) in by})

    def last(arm: str, seed: int) -> float:
        return by[arm, seed].evaluations[-1]["bits_per_byte"]

    def spread(values: Iterable[float]) -> dict[str, Any]:
        found = list(values)
        return {
            "by_seed": [round(value, 4) for value in found],
            "mean": round(statistics.fmean(found), 4),
            "standard_error": round(statistics.stdev(found) / len(found) ** 0.5, 4) if len(found) > 1 else None,
        }

    def saved(seed: int) -> float:
        """Tokens that the dense runs need to come down to the sparse run's end, over the sparse run's."""
        sparse, dense = by["sparse", seed], by["dense, longer", seed]
        return reach(curve_of(dense, lambda one: one["tokens"]), last("sparse", seed)) / sparse.tokens

    return {
        "seeds": seeds,
        "bits_per_byte": {
            arm: spread(last(arm, seed) for seed in seeds) for arm in ("sparse", "dense", "dense, longer")
        },
        "difference_at_equal_tokens_and_flops": spread(last("sparse", s) - last("dense", s) for s in seeds),
        "difference_at_equal_dollars": spread(last("sparse", s) - last("dense, longer", s) for s in seeds),
        "dense_tokens_to_reach_sparse": [round(saved(seed), 3) for seed in seeds],
        "billed": {arm: spread(by[arm, s].cost for s in seeds) for arm in ("sparse", "dense", "dense, longer")},
        "wall_tokens_per_second": {
            arm: spread(by[arm, s].tokens / by[arm, s].training_seconds for s in seeds)
            for arm in ("sparse", "dense", "dense, longer")
        },
    }


def draw(report: dict[str, Any], target: Path) -> None:
    """Bits per byte against FLOPs and against dollars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    look = {"sparse": ("C0", "-"), "dense": ("C1", "-"), "dense, longer": ("C1", "--")}
    shapes, seen = report["shapes"], set()
    for run in (Run(**run) for run in report["runs"]):
        shape = shapes["sparse" if run.arm == "sparse" else "dense"]
        for axis, unit in zip(axes, ("flops_per_token", "dollars_per_token"), strict=True):
            curve = [(tokens * shape[unit], bits) for tokens, bits in curve_of(run, lambda one: one["tokens"])]
            color, line = look[run.arm]
            label = None if (run.arm, unit) in seen else run.arm
            axis.plot(*zip(*curve, strict=True), line, color=color, alpha=0.75, label=label, marker=".")
            seen.add((run.arm, unit))
    axes[0].set(xlabel="training FLOPs (causal)", ylabel="bits per byte of held-out text")
    axes[1].set(xlabel=f"dollars of training ({report['price']['text']})")
    top = sorted(one["bits_per_byte"] for run in report["runs"] for one in run["evaluations"])
    axes[0].set_ylim(top[0] - 0.05, top[int(0.9 * len(top))])
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    active = f"{shapes['sparse']['active']:,} and {shapes['dense']['active']:,} active parameters"
    figure.suptitle(f"Sparse ({shapes['sparse']['total']:,} parameters) against dense: {active}", fontsize=10)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def shapes_of(models: dict[str, ModelConfig], seconds_per_token: dict[str, float], price: float) -> dict[str, Any]:
    """Counts and cost of each; ValueError if the active parameters differ by 2 % or more."""
    out = {}
    for name, config in models.items():
        counts = count(config)
        out[name] = {
            "total": counts.total,
            "active": counts.active,
            "matmul": counts.matmul,
            "flops_per_token": flops_per_token(config, SEQUENCE),
            "cpu_seconds_per_token": seconds_per_token[name],
            "tokens_per_cpu_second": round(1 / seconds_per_token[name], 1),
            "dollars_per_token": seconds_per_token[name] * price / 3600,
            "config": config.model_dump(),
        }
    sparse, dense = out["sparse"], out["dense"]
    for what in ("active", "matmul", "flops_per_token"):
        far = abs(dense[what] / sparse[what] - 1)
        if far >= 0.02:
            raise ValueError(f"{what}: {sparse[what]} sparse and {dense[what]} dense differ by {far:.1%}")
    return out


def table(report: dict[str, Any]) -> str:
    """Markdown, for docs."""
    found, shapes = report["results"], report["shapes"]
    rows = [
        "| | parameters | active | MFLOP per token | tokens per CPU second | tokens | bits per byte |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ("sparse", "dense", "dense, longer"):
        shape = shapes["sparse" if arm == "sparse" else "dense"]
        tokens = next(run["tokens"] for run in report["runs"] if run["arm"] == arm)
        bits = found["bits_per_byte"][arm]
        rows.append(
            f"| {arm} | {shape['total']:,} | {shape['active']:,} | {shape['flops_per_token'] / 1e6:.2f} | "
            f"{shape['tokens_per_cpu_second']:,.0f} | {tokens:,} | {bits['mean']:.4f} {bits['by_seed']} |"
        )
    return "\n".join(rows)


def as_json(content: object) -> str:
    """JSON has no NaN: null stands for what was never reached."""

    def known(value: object) -> object:
        if isinstance(value, dict):
            return {name: known(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [known(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(content), indent=1, allow_nan=False)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seeds", default="1,2,3")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "sparse-dense.json"
    models = {"sparse": sparse_model()}
    models["dense"] = dense_twin(models["sparse"])
    row = PriceBook.load().price("cpu", "on-demand")
    report = json.loads(file.read_text()) if file.exists() else {"runs": []}
    if "shapes" not in report:
        report["price"] = {"text": f"{row.amount} {row.currency} per {row.unit}", "source": row.source}
        report["shapes"] = shapes_of(models, pace(models), float(row.amount))
        file.write_text(as_json(report))
    seconds = {name: shape["cpu_seconds_per_token"] for name, shape in report["shapes"].items()}
    longer = args.tokens * seconds["sparse"] / seconds["dense"]
    arms = {
        "sparse": ("sparse", args.tokens),
        "dense": ("dense", args.tokens),
        "dense, longer": ("dense", round(longer / BATCH_TOKENS) * BATCH_TOKENS),
    }
    for seed in map(int, args.seeds.split(",")):
        for arm, (model, tokens) in arms.items():
            if not any(run["arm"] == arm and run["seed"] == seed for run in report["runs"]):
                report["runs"].append(asdict(train(args.out, args.dataset, arm, models[model], seed, tokens)))
        report["results"] = results(report)
        file.write_text(as_json(report))
        draw(report, args.out / "sparse-dense.png")
    print(table(report))
    print(as_json(report["results"]))


if __name__ == "__main__":
    main()
