"""What 8-bit arithmetic does to training: FP32, BF16 and FP8 on the same text, and controls that ought to be worse.

    python benchmarks/precision.py --out OUT [--steps 300] [--seeds 1,2,3] [--arms fp32,bf16,...] [--part 1/2]
    python benchmarks/precision.py --out OUT --continued [--seeds ...] [--arms ...] [--part ...]
    python benchmarks/precision.py --out OUT --same-weights
    python benchmarks/precision.py --out OUT --report docs/precision.png

A model with hidden and expert widths of 256 learns the Python files of this interpreter's standard library (without its
tests), prepared by the product, through the product's engine in one process on one thread. An arm is a way to
multiply; arms of one seed have the same initial weights and see the same sequences in the same order. Each run is
written to `OUT/ARM-SEED.json` when it has ended, and not done again; `--part i/n` takes every n-th run, so that several
processes can share the work. The report computes, for each arm, the relative difference of two losses to the BF16 and
the FP32 run of the same seed: training loss (mean over the last 50 steps) and held-out loss (after the last step).

Two runs that differ in the last bit drift apart; from random weights by more than the limit in so few steps. So
`--continued` starts the arms of a seed from the weights of one FP32 run of 900 steps and trains on as at the end of a
run, with a falling rate; its arm `again`, FP32 from weights changed by a millionth, shows what is still noise.
`--same-weights` has none: it takes the held-out loss and one batch's gradient in each arithmetic on the weights of one
FP32 run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.balance import collect_loads, update_biases
from model.config import ModelConfig
from model.corpus import Mixture, Options, Source, prepare
from model.data import TrainingBatches, TrainingWindows, heldout_windows
from model.dataset import DatasetManifest
from model.engine.zero import ZeroEngine
from model.evaluate import evaluate
from model.precision import Products, use
from model.precision.blocks import E4M3, scales
from model.precision.fp8 import Fp8Products
from model.precision.reference import Reference
from model.recipe import (
    Balance,
    Checkpointing,
    Layout,
    MultiToken,
    Optimizer,
    PrecisionName,
    Recipe,
    Schedule,
)
from model.schedule import bias_speed, learning_rate, multi_token_weight
from model.tokenizer import Tokenizer
from model.transformer import CausalLM
from model.weights import INDEX, write_weights

SEQUENCE, BATCH, LAST, FIRST = 128, 4, 50, 900
EVAL_TOKENS = 16_384
MODEL = ModelConfig(
    vocab_size=2048,
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    q_lora_rank=192,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    intermediate_size=512,
    moe_intermediate_size=256,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    num_nextn_predict_layers=0,
    initializer_range=0.02,
)
LIMIT = 0.0025
"""arXiv 2412.19437, section 3.3: the relative loss error of FP8 training stays below 0.25 %."""


# ------------------------------------------------------------------ arms
class E5M2(Reference):
    """Control: the same blocks with two bits of mantissa, everywhere."""

    fp8 = torch.float8_e5m2


class OneScale(Reference):
    """Control: one scale for a whole tensor (all experts of a layer are one)."""

    def rows(self, x: Tensor) -> Tensor:
        """See `Reference`."""
        scale = scales(x.float().abs().amax())
        return ((x.float() / scale).to(E4M3).float() * scale).to(x.dtype)

    def weight(self, w: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Reference`."""
        return self.rows(w).to(dtype)

    def keep(self, x: Tensor, ends_E: Tensor) -> tuple[Tensor, ...]:
        """See `Reference`."""
        return (x,)

    def kept(self, kept: tuple[Tensor, ...], ends_E: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Reference`."""
        return self.rows(kept[0]).to(dtype)


class Unscaled(OneScale):
    """Control: E4M3 as it is; gradients below 2**-10 are zeros."""

    def rows(self, x: Tensor) -> Tensor:
        """See `Reference`."""
        return x.float().to(E4M3).to(x.dtype)


@dataclass(frozen=True)
class Arm:
    """A way to train."""

    title: str
    precision: PrecisionName
    products: Callable[[], Products] | None = None
    """In place of the policy's."""
    moments: Literal["fp32", "bf16"] = "fp32"


ARMS = {
    "fp32": Arm("FP32", "fp32"),
    "bf16": Arm("BF16", "bf16"),
    "fp8": Arm("FP8 (E4M3, 1x128 and 128x128)", "fp8"),
    "e5m2": Arm("control: E5M2 everywhere", "fp32", lambda: Fp8Products(E5M2())),
    "one-scale": Arm("control: one scale per tensor", "fp32", lambda: Fp8Products(OneScale())),
    "unscaled": Arm("control: E4M3 without scales", "fp32", lambda: Fp8Products(Unscaled())),
    "again": Arm("FP32 from weights changed by 1e-6", "fp32"),
    "fp8-bf16": Arm("FP8 products between BF16 tensors", "bf16", lambda: Fp8Products(Reference())),
    "moments-bf16": Arm("FP32, moments in BF16", "fp32", moments="bf16"),
}


# ------------------------------------------------------------------ one run
def prepared(folder: Path) -> DatasetManifest:
    """The text, prepared once."""
    library = sysconfig.get_path("stdlib")
    skip = ("site-packages", "*/site-packages", "test", "*/test", "tests", "*/tests")
    source = Source(name="stdlib", uri=library, include=("*.py",), exclude=skip)
    options = Options(vocab_size=MODEL.vocab_size, fim_rate=0.0, workers=1)
    return prepare(Mixture(sources=(source,)), folder, options)


def recipe_of(arm: Arm, seed: int, steps: int, data: str, start: str | None = None) -> Recipe:
    """As the product would choose for so few steps, but for the batch; from weights (`start`): a third of the highest
    rate, falling to a thirtieth."""
    rate = 2.2e-4 * (7168 / MODEL.hidden_size) ** 0.5 / (1 if start is None else 3)
    return Recipe(
        model=MODEL,
        data=data,
        seed=seed,
        sequence_length=SEQUENCE,
        steps=steps,
        precision=arm.precision,
        init_from=start,
        schedule=Schedule(
            learning_rate=rate,
            final_learning_rate=rate / 10,
            warmup_steps=max(1, steps // 30),
            decay_start_step=steps * 2 // 3 if start is None else steps // 30,
            decay_end_step=steps,
        ),
        optimizer=Optimizer(moments_precision=arm.moments),
        balance=Balance(bias_update_speed=0.01, bias_stop_step=steps),
        multi_token=MultiToken(switch_step=steps * 2 // 3),
        layout=Layout(world_size=1, expert_parallel=1, micro_batch=BATCH, accumulation=1),
        checkpoint=Checkpointing(uri="unused", interval_seconds=1e9, keep=1),
        eval_every_steps=steps,
        eval_tokens=EVAL_TOKENS,
        sample_tokens=0,
        device="cpu",
    )


def train(
    arm: Arm, recipe: Recipe, manifest: DatasetManifest, weights: dict[str, Tensor] | None = None
) -> dict[str, Any]:
    """-> losses of the main head in nats by step, the held-out loss, CPU seconds of a step; fills `weights`."""
    engine = ZeroEngine(recipe)
    if arm.products is not None:
        use(engine.model, arm.products())
    extra = 1 + MODEL.num_nextn_predict_layers
    windows = TrainingWindows(recipe.data, manifest, SEQUENCE, extra)
    batches = TrainingBatches(windows, recipe.seed, 1, BATCH, recipe.batches)
    losses, norms, began = [], [], time.process_time()
    for step in range(recipe.steps):
        window = torch.from_numpy(batches.batch_for(step, 0, 0))
        weight = multi_token_weight(step, recipe.multi_token)
        got = engine.micro_step(window, ahead_weight=weight, alpha=recipe.balance.aux_loss_alpha, passes=1)
        norms.append(engine.step(learning_rate(step, recipe.schedule)))
        update_biases(engine.routing_biases(), collect_loads(engine.routings()), bias_speed(step, recipe.balance))
        losses.append(got.next_token.item())
        if step % 50 == 49:
            print(f"  step {step + 1}: {statistics.mean(losses[-50:]):.4f}", flush=True)
    seconds = (time.process_time() - began) / recipe.steps
    heldout = heldout_windows(recipe.data, manifest, SEQUENCE, extra, EVAL_TOKENS)
    token_bytes = Tokenizer.load(recipe.data).token_byte_lengths()
    scores = evaluate(engine, heldout, token_bytes, BATCH, MODEL.num_nextn_predict_layers)
    text = engine.arithmetic if arm.products is None else arm.title
    if weights is not None:
        weights |= dict(engine.full_weights())
    engine.close()
    return {"losses": losses, "norms": norms, "cpu_s_per_step": seconds, "arithmetic": text} | scores


@contextmanager
def one_process() -> Iterator[None]:
    """A process group of one, on one thread."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def trained_weights(out: Path, seed: int, data: str, manifest: DatasetManifest, first: int = FIRST) -> None:
    """`OUT/weights-SEED`, and the same changed by a millionth in `OUT/weights-again-SEED`."""
    if (out / f"weights-again-{seed}" / INDEX).exists():
        return
    weights: dict[str, Tensor] = {}
    print(f"first weights, seed {seed}", flush=True)
    train(ARMS["fp32"], recipe_of(ARMS["fp32"], FIRST + seed, first, data), manifest, weights)
    generator = torch.Generator().manual_seed(0)
    changed = {name: w * (1 + 1e-6 * torch.randn(w.shape, generator=generator)) for name, w in weights.items()}
    tokenizer = Tokenizer.load(data).to_json()
    for folder, tensors in (("weights", weights), ("weights-again", changed)):
        write_weights(str(out / f"{folder}-{seed}"), MODEL, iter(tensors.items()), tokenizer, write=True)


def run_all(
    out: Path, names: list[str], seeds: list[int], steps: int, part: tuple[int, int], *, continued: bool
) -> None:
    """All runs of this part that have not been done."""
    data = out / "data"
    out = out / "continued" if continued else out
    out.mkdir(parents=True, exist_ok=True)
    with one_process():
        manifest = prepared(data)
        runs = [(seed, name) for seed in seeds for name in names]
        for seed, name in runs[part[0] - 1 :: part[1]]:
            target = out / f"{name}-{seed}.json"
            if target.exists():
                continue
            start = None
            if continued:
                trained_weights(out, seed, str(data), manifest)
                start = str(out / f"weights{'-again' if name == 'again' else ''}-{seed}")
            print(f"{name}, seed {seed}", flush=True)
            recipe = recipe_of(ARMS[name], seed, steps, str(data), start)
            result = {"arm": name, "seed": seed, "steps": steps} | train(ARMS[name], recipe, manifest)
            target.with_suffix(".part").write_text(json.dumps(result))
            target.with_suffix(".part").replace(target)


# ------------------------------------------------------------------ the same weights
def same_weights(out: Path, seed: int, steps: int) -> None:
    """Writes `OUT/same-weights.json`: by arithmetic, how far the held-out loss and the gradient are from FP32."""
    with one_process():
        manifest = prepared(out / "data")
        recipe = recipe_of(ARMS["fp32"], seed, steps, str(out / "data"))
        weights: dict[str, Tensor] = {}
        train(ARMS["fp32"], recipe, manifest, weights)
    heldout = next(iter(heldout_windows(recipe.data, manifest, SEQUENCE, 1, EVAL_TOKENS).values()))
    batch = TrainingBatches(TrainingWindows(recipe.data, manifest, SEQUENCE), seed, 1, BATCH, recipe.batches)
    unseen = torch.from_numpy(batch.batch_for(steps, 0, 0))
    found: dict[str, tuple[float, Tensor]] = {}
    for name in ("fp32", "bf16", "fp8", "e5m2", "one-scale", "unscaled"):
        model = CausalLM(MODEL)
        model.load_state_dict(weights)
        if name == "bf16":
            for parameter in model.parameters():
                parameter.data = parameter.data.bfloat16()
        elif name != "fp32":
            products = ARMS[name].products
            use(model, Fp8Products(Reference()) if products is None else products())
        found[name] = (_heldout(model, heldout), _gradient(model, unseen))
    loss, gradient = found["fp32"]
    rows = {
        name: {"loss": other / loss - 1, "gradient": float((theirs - gradient).norm() / gradient.norm())}
        for name, (other, theirs) in found.items()
    }
    for name, row in rows.items():
        print(f"{name:<10} held-out loss {100 * row['loss']:+.4f} %, gradient {100 * row['gradient']:.2f} % away")
    (out / "same-weights.json").write_text(json.dumps({"seed": seed, "steps": steps, "arms": rows}, indent=1))


@torch.no_grad()
def _heldout(model: CausalLM, windows: NDArray[np.int64]) -> float:
    losses = []
    for part in torch.from_numpy(windows).split(BATCH):
        logits = model(part[:, :-1]).logits[0]
        losses.append(F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return float(torch.stack(losses).double().sum()) / windows[:, 1:].size


def _gradient(model: CausalLM, window: Tensor) -> Tensor:
    """Of all parameters, one after the other."""
    logits = model(window[:, :-1]).logits[0]
    F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


# ------------------------------------------------------------------ report
def report(out: Path, picture: Path) -> None:
    """Prints a table, writes `summary.json` beside the runs and the picture."""
    runs = [json.loads(path.read_text()) for path in sorted(out.glob("*-[0-9]*.json"))]
    by = {(run["arm"], run["seed"]): run for run in runs}
    rows = []
    for name in (name for name in ARMS if any(arm == name for arm, _ in by)):
        row: dict[str, Any] = {"arm": name, "title": ARMS[name].title}
        for base in ("bf16", "fp32"):
            for what, of in (("train", _train_loss), ("heldout", _heldout_loss)):
                pairs = [(by[name, s], by[base, s]) for arm, s in by if arm == name and (base, s) in by]
                row[f"{what}_vs_{base}"] = [of(a) / of(b) - 1 for a, b in pairs]
        row["train_loss"] = [_train_loss(run) for (arm, _), run in by.items() if arm == name]
        row["heldout_loss"] = [_heldout_loss(run) for (arm, _), run in by.items() if arm == name]
        row["cpu_s_per_step"] = statistics.median(run["cpu_s_per_step"] for (a, _), run in by.items() if a == name)
        rows.append(row)
    print(
        f"{'arm':<14} {'train':>8} {'heldout':>8} | relative to BF16, percent: train; held-out | to FP32 | CPU s/step"
    )
    for row in rows:
        means = f"{statistics.mean(row['train_loss']):8.4f} {statistics.mean(row['heldout_loss']):8.4f}"
        parts = [_percent(row[key]) for key in ("train_vs_bf16", "heldout_vs_bf16", "train_vs_fp32", "heldout_vs_fp32")]
        print(
            f"{row['arm']:<14} {means} | {parts[0]}; {parts[1]} | {parts[2]}; {parts[3]} | {row['cpu_s_per_step']:.2f}"
        )
    (out / "summary.json").write_text(json.dumps({"limit": LIMIT, "last": LAST, "arms": rows}, indent=1))
    draw(by, picture)


def _train_loss(run: dict[str, Any]) -> float:
    return statistics.mean(run["losses"][-LAST:])


def _heldout_loss(run: dict[str, Any]) -> float:
    return float(run["eval/loss"])


def _percent(values: list[float]) -> str:
    """Mean, and each seed."""
    if not values:
        return "-"
    return f"{100 * statistics.mean(values):+.3f} ({', '.join(f'{100 * v:+.2f}' for v in values)})"


def draw(by: dict[tuple[str, int], dict[str, Any]], picture: Path) -> None:
    """Left: losses. Right: relative difference to FP32, mean over seeds, both smoothed over 25 steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    kernel = np.ones(25) / 25
    for name, arm in ARMS.items():
        curves = [(np.array(run["losses"]), by.get(("fp32", s))) for (a, s), run in by.items() if a == name]
        if not curves:
            continue
        steps = np.arange(24, len(curves[0][0])) + 1
        mean = np.mean([np.convolve(losses, kernel, "valid") for losses, _ in curves], axis=0)
        left.plot(steps, mean, label=arm.title, linewidth=1)
        differences = [
            np.convolve(losses, kernel, "valid") / np.convolve(np.array(base["losses"]), kernel, "valid") - 1
            for losses, base in curves
            if base is not None
        ]
        if differences:
            right.plot(steps, 100 * np.mean(differences, axis=0), label=arm.title, linewidth=1)
    left.set(xlabel="step", ylabel="training loss (nats)")
    right.set(xlabel="step", ylabel="relative to FP32 (%)")
    right.axhspan(-100 * LIMIT, 100 * LIMIT, color="0.85", zorder=0)
    left.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--part", default="1/1", help="i/n: every n-th run, from the i-th")
    parser.add_argument("--continued", action="store_true", help="all arms from the weights of one FP32 run")
    parser.add_argument("--same-weights", action="store_true", help="each arithmetic on the weights of one FP32 run")
    parser.add_argument("--report", type=Path, metavar="PICTURE", help="only report on what was run")
    args = parser.parse_args()
    if args.report is not None:
        report(args.out, args.report)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    if args.same_weights:
        same_weights(args.out, seeds[0], args.steps)
        return
    first, of = map(int, args.part.split("/"))
    run_all(args.out, args.arms.split(","), seeds, args.steps, (first, of), continued=args.continued)


if __name__ == "__main__":
    main()
