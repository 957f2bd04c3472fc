"""Forecast of CPU seconds against training, on shapes that the forecast was fitted to and on others.

    nice python benchmarks/calibrate.py [--steps 8] [--warmup 3] [--json FILE] [--runs FILE]
    python benchmarks/calibrate.py --read tests/golden/cpu_seconds.json

The first measures (some eight minutes of one core) and prints the table of docs/calibration.md; the second prints it
for what was measured before. `--runs` writes what is fitted to in the form that `fathom calibrate` reads.

What is measured is what a job reports as `train/cpu_seconds`: the product's loop with its DeepSpeed engine, one thread
for each worker, random tokens, FP32. Each shape has its own processes, which wait for each other: they take turns, step
by step, so that all see the same disturbances of a machine that others use too. A shape's figure is the median of its
steps after the warm-up.

The shapes were written down before any of them was measured; those that are not fitted to were chosen between and
beyond the others in width, depth, experts, sequence length and vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.plan.calibrate import Calibration, calibrate
from orchestrator.plan.cpu import CpuRates, cpu_priors, forecast_cpu
from orchestrator.plan.efficiency import CPU, efficiencies
from orchestrator.plan.observed import Observed

MINI: dict[str, Any] = {"sequence": 256, "micro_batch": 8, "accumulation": 2, "workers": 1, "expert": 1}
FITTED: dict[str, dict[str, Any]] = {
    "mini": MINI,
    "wide": MINI | {
        "vocab_size": 2048, "hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 6, "q_lora_rank": 192,
        "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
        "intermediate_size": 1024, "moe_intermediate_size": 192, "num_nextn_predict_layers": 0,
        "micro_batch": 4, "accumulation": 1,
    },
    "long": MINI | {
        "num_hidden_layers": 3, "num_attention_heads": 8, "num_nextn_predict_layers": 0,
        "sequence": 1024, "micro_batch": 1, "accumulation": 2,
    },
    "vocabulary": MINI | {
        "vocab_size": 16384, "hidden_size": 128, "num_hidden_layers": 2, "sequence": 128, "micro_batch": 8,
        "accumulation": 1,
    },
    "experts": MINI | {
        "hidden_size": 192, "n_routed_experts": 64, "num_experts_per_tok": 2, "n_group": 8, "topk_group": 4,
        "moe_intermediate_size": 96, "num_nextn_predict_layers": 0, "sequence": 128, "micro_batch": 4,
        "accumulation": 2,
    },
    "deep": MINI | {
        "hidden_size": 96, "num_hidden_layers": 12, "num_nextn_predict_layers": 0, "sequence": 64, "micro_batch": 8,
        "accumulation": 4,
    },
    "pair": MINI | {"accumulation": 1, "workers": 2, "expert": 2},
}  # fmt: skip
"""What the constants are fitted to: changes of preset `mini`, and how it is trained."""
OTHERS: dict[str, dict[str, Any]] = {
    "middle": MINI | {
        "vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 6, "n_routed_experts": 32, "sequence": 512,
        "micro_batch": 2, "accumulation": 1,
    },
    "longer": MINI | {
        "hidden_size": 128, "num_hidden_layers": 3, "num_experts_per_tok": 2, "num_nextn_predict_layers": 0,
        "sequence": 2048, "micro_batch": 1, "accumulation": 1,
    },
    "eight": MINI | {
        "vocab_size": 6000, "hidden_size": 224, "num_hidden_layers": 3, "n_routed_experts": 32,
        "num_experts_per_tok": 8, "moe_intermediate_size": 128, "num_nextn_predict_layers": 0, "sequence": 192,
        "micro_batch": 8, "accumulation": 1,
    },
    "large": MINI | {
        "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "q_lora_rank": 256, "kv_lora_rank": 128,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "intermediate_size": 1408,
        "moe_intermediate_size": 384, "n_routed_experts": 8, "num_experts_per_tok": 2, "num_nextn_predict_layers": 0,
        "micro_batch": 4, "accumulation": 1,
    },
    "dense": MINI | {
        "hidden_size": 256, "num_hidden_layers": 6, "first_k_dense_replace": 6, "intermediate_size": 704,
        "num_nextn_predict_layers": 0, "micro_batch": 4, "accumulation": 2,
    },
    "two": MINI | {
        "hidden_size": 320, "num_hidden_layers": 4, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 160, "num_nextn_predict_layers": 0, "sequence": 128, "micro_batch": 4,
        "accumulation": 1, "workers": 2, "expert": 2,
    },
}  # fmt: skip
"""What is forecast only."""
SHAPES = FITTED | OTHERS
_TRAINING = tuple(MINI)


# ------------------------------------------------------------------ one worker's process


def recipe(name: str) -> Any:  # noqa: ANN401 - a Recipe, which is imported late
    """The run of a shape."""
    from model.presets import preset
    from model.recipe import Anomalies, Balance, Checkpointing, Layout, MultiToken, Optimizer, Recipe, Schedule

    shape = SHAPES[name]
    changes = {key: value for key, value in shape.items() if key not in _TRAINING}
    config = preset("mini").replace(max_position_embeddings=max(1024, shape["sequence"]), **changes)
    steps = 1000
    return Recipe(
        model=config,
        data="unused",
        seed=0,
        sequence_length=shape["sequence"],
        steps=steps,
        precision="fp32",
        schedule=Schedule(
            learning_rate=1e-3, final_learning_rate=1e-3, warmup_steps=0, decay_start_step=steps, decay_end_step=steps
        ),
        optimizer=Optimizer(),
        balance=Balance(bias_stop_step=steps),
        multi_token=MultiToken(switch_step=steps),
        layout=Layout(
            world_size=shape["workers"],
            expert_parallel=shape["expert"],
            micro_batch=shape["micro_batch"],
            accumulation=shape["accumulation"],
        ),
        anomalies=Anomalies(action="warn"),
        checkpoint=Checkpointing(uri="unused", interval_seconds=1e9, keep=1),
        eval_every_steps=steps,
        eval_tokens=2,
        sample_tokens=0,
        device="cpu",
    )


def worker(name: str, folder: Path) -> None:
    """One step for each line that it is given; rank 0 answers each with a line of JSON."""
    import numpy as np
    import torch

    from model.checkpoint import Identity, Store
    from model.engine.zero import ZeroEngine
    from model.loop import Loop

    torch.set_num_threads(1)
    run = recipe(name)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=int(os.environ["RANK"]),
        world_size=run.layout.world_size,
    )
    engine = ZeroEngine(run)
    draw = np.random.default_rng(engine.rank)

    class Noise:
        """In place of `TrainingBatches`."""

        def passes(self, _step: int) -> int:
            return int(run.layout.accumulation)

        def numbers_for(self, _step: int, _rank: int, _k: int) -> Any:  # noqa: ANN401
            return np.zeros(run.layout.micro_batch, dtype=np.int64)

        def batch_for(self, _step: int, _rank: int, _k: int) -> Any:  # noqa: ANN401
            size = (run.layout.micro_batch, run.sequence_length + 1 + run.model.num_nextn_predict_layers)
            return draw.integers(0, run.model.vocab_size, size)

    class Told:
        """The reporter."""

        def __getattr__(self, _name: str) -> Any:  # noqa: ANN401
            return lambda *_, **__: None

        def progress(self, *, metrics: dict[str, float], **_: object) -> None:
            print(json.dumps({"seconds": metrics["train/cpu_seconds"]}), flush=True)

    def wait() -> None:
        if not sys.stdin.readline():
            os._exit(0)

    Loop(
        engine=engine,
        recipe=run,
        batches=Noise(),  # type: ignore[arg-type]
        heldout={},
        token_bytes=np.ones(1, dtype=np.int64),
        data_digest="",
        store=Store(str(folder), Identity(job="j", attempt=1, incarnation="a"), b"key"),
        reporter=Told(),
        alive=wait,
    ).run()


# ------------------------------------------------------------------ the other end


class Shape:
    """The processes of one shape."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.workers = [self._start(rank, folder) for rank in range(SHAPES[name]["workers"])]

    def _start(self, rank: int, folder: Path) -> subprocess.Popen[str]:
        folder.mkdir(exist_ok=True)
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": SHAPES[self.name]["workers"], "OMP_NUM_THREADS": 1}
        with (folder / f"errors-{rank}").open("w") as errors:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, "--worker", self.name, str(folder)],
                env=os.environ | {key: str(value) for key, value in own.items()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def step(self) -> float:
        """CPU seconds of one step."""
        for process in self.workers:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        out = self.workers[0].stdout
        assert out is not None
        while line := out.readline():
            if line.startswith('{"seconds"'):  # libraries print there too
                return float(json.loads(line)["seconds"])
        raise SystemExit(f"{self.name} ended")

    def close(self) -> None:
        """End the processes."""
        for process in self.workers:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.workers:
            process.wait()


def measure(names: list[str], steps: int, warmup: int) -> dict[str, list[float]]:
    """CPU seconds of each step after the warm-up, by shape."""
    with tempfile.TemporaryDirectory() as folder:
        shapes = [Shape(name, Path(folder) / name) for name in names]
        try:
            rounds = [{shape.name: shape.step() for shape in shapes} for _ in range(warmup + steps)]
        except (SystemExit, BrokenPipeError) as error:
            said = "".join(path.read_text()[-2000:] for path in Path(folder).glob("*/errors-*"))
            raise SystemExit(f"{error}\n{said}") from error
        finally:
            for shape in shapes:
                shape.close()
    return {name: [round(one[name], 4) for one in rounds[warmup:]] for name in names}


# ------------------------------------------------------------------ what it says


def observed(name: str, seconds: list[float]) -> Observed:
    """A shape as `fathom calibrate` sees a run."""
    run = recipe(name)
    return Observed(
        name=name,
        device="cpu",
        model=run.model,
        sequence_length=run.sequence_length,
        precision=run.precision,
        layout=run.layout,
        seconds=statistics.median(seconds),
    )


def fitted(measured: dict[str, list[float]]) -> Calibration:
    """The rates by the shapes in `FITTED` and no others."""
    return calibrate([observed(name, measured[name]) for name in FITTED], efficiencies(), {}, cpu_priors())


def rates(calibration: Calibration) -> CpuRates:
    """As the planner takes them."""
    return CpuRates(**{name.removeprefix(CPU): value for name, value in calibration.values.items()})


def errors(measured: dict[str, list[float]], known: CpuRates) -> dict[str, float]:
    """Forecast over measured, less 1, of each shape."""
    runs = [observed(name, seconds) for name, seconds in measured.items()]
    return {run.name: forecast_cpu(run, known) / run.measured - 1 for run in runs}


def tables(measured: dict[str, list[float]]) -> str:
    """In Markdown: the rates, and each shape."""
    found = fitted(measured)
    by_shape, left_out = errors(measured, rates(found)), {error.name: error.left_out for error in found.errors}
    lines = ["| rate of one core, per second | value | uncertain by |", "|---|---|---|"]
    lines += [f"| {one.constant.name} | {one.value:.3g} | {one.spread:.0%} |" for one in found.constants]
    lines += [
        "",
        "| shape | CPU s measured (least to most) | forecast | error | left out of the fit |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in measured.items():
        median, off = statistics.median(seconds), by_shape[name]
        other = left_out.get(name)
        last = "never in it" if other is None else f"{other / median - 1:+.1%}"
        spread = f"{median:.3f} ({min(seconds):.3f} to {max(seconds):.3f})"
        lines.append(f"| {name} | {spread} | {median * (1 + off):.3f} | {off:+.1%} | {last} |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--runs", type=Path, help="write the fitted shapes for `fathom calibrate`")
    parser.add_argument("--read", type=Path, help="what was measured before, instead of measuring")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], Path(args.worker[1]))
        return
    if args.read:
        rounds = json.loads(args.read.read_text())
    else:
        rounds = [{"seconds": measure(list(SHAPES), args.steps, args.warmup)}]
    if args.json:
        args.json.write_text(json.dumps(rounds, indent=1) + "\n")
    if args.runs:
        rows = [
            observed(name, rounds[0]["seconds"][name]).model_dump(mode="json", exclude_none=True) for name in FITTED
        ]
        args.runs.write_text(json.dumps({"runs": rows}, indent=1) + "\n")
    for one in rounds:
        print(f"{one.get('about', '')}\n\n{tables(one['seconds'])}\n")


if __name__ == "__main__":
    main()
