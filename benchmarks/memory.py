"""Memory by part, measured with the product's engine on one process, beside the planner's formula.

    python benchmarks/memory.py [--preset mini] [--sequence 256] [--batch 4] [--json FILE]

Every row is an engine of its own in a fresh process (gloo, world size 1). Measured are storages, each counted once:

- weights, master, moments: what parameters and optimizer hold after a step;
- gradients: what a backward pass leaves behind;
- activations: what layers keep for the backward pass, weights apart; logits: the most that the heads need at a time;
- backward, update: the highest number of bytes alive during the last micro-step and during the optimizer's step, over
  what was alive before; every tensor that an operation returns is followed until it is freed;
- resident: the same highest points as the kernel sees them (VmHWM), which counts pages that were written.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import weakref
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from support.recipes import tiny_recipe  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_iter  # noqa: E402

from model.config import ModelConfig  # noqa: E402
from model.head import Head  # noqa: E402
from model.loss import training_losses  # noqa: E402
from model.presets import preset  # noqa: E402
from model.recipe import Layout, Recipe  # noqa: E402
from orchestrator.plan.memory import (  # noqa: E402
    BUCKET,
    Kernels,
    kept_bytes,
    policy_of,
    trained_parameters,
    training_memory,
)

Case = tuple[str, int, str]
"""Precision, ZeRO stage, recomputation."""
CASES: tuple[Case, ...] = (
    ("fp32", 1, "none"), ("fp32", 1, "selective"), ("fp32", 1, "full"),
    ("fp32", 2, "none"), ("fp32", 3, "none"), ("fp32", 3, "selective"), ("fp32", 0, "none"),
    ("bf16", 0, "none"), ("bf16", 1, "none"), ("bf16", 1, "selective"), ("bf16", 1, "full"),
    ("bf16", 2, "none"), ("bf16", 3, "none"),
    ("fp8", 1, "none"), ("fp8", 1, "selective"), ("fp8", 1, "full"),
)  # fmt: skip
SETTINGS = {"ahead_weight": 0.3, "alpha": 1e-4}


class Alive(TorchDispatchMode):
    """Bytes of the storages that operations have returned since it was entered and that nobody has freed."""

    def __init__(self, known: Iterable[Tensor], parameters: int) -> None:
        """`known`: what was there before; `parameters`: elements that DeepSpeed's bucket is filled with."""
        super().__init__()
        self._parameters = parameters
        self._known = {id(t.untyped_storage()): t.untyped_storage() for t in known}
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self.peak = 0

    @property
    def bytes(self) -> int:
        """Now; of storages that were emptied nothing."""
        found = ((storage(), most) for storage, most in self._alive.values())
        return sum(min(storage.nbytes(), most) for storage, most in found if storage is not None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor) and value.device.type != "meta":
                self._follow(value.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)  # torch keeps one object for a storage as long as anything refers to it
        if key in self._known or key in self._alive:
            return
        size = storage.nbytes()
        if size >= BUCKET * 2:  # of the whole bucket memory is taken for what is written
            size = size * self._parameters // BUCKET
        self._alive[key] = weakref.ref(storage, lambda _: self._alive.pop(key)), size
        self.peak = max(self.peak, self.bytes)


@dataclass
class Measured:
    """Bytes."""

    weights: int = 0
    master: int = 0
    moments: int = 0
    gradients: int = 0
    activations: int = 0
    logits: int = 0
    backward: int = 0
    update: int = 0
    resident: dict[str, int] = field(default_factory=dict)


def size_of(tensors: Iterable[Tensor], apart: Iterable[Tensor] = ()) -> int:
    """Bytes of all storages, each once, without those of `apart`."""
    known = {t.untyped_storage().data_ptr() for t in apart}
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for pointer, size in sizes.items() if pointer not in known)


def saved_bytes(engine: Any, window: Tensor) -> tuple[int, int]:  # noqa: ANN401 - imported late
    """-> what the layers keep for the backward pass, the highest of what the heads need at a time."""
    model, config = engine.model, engine.recipe.model
    heads = 1 + config.num_nextn_predict_layers
    dtype = next(model.parameters()).dtype
    head = Head(config.hidden_size, config.vocab_size).to(dtype)  # the model's would be gathered under ZeRO-3
    read = torch.randn(window.shape[0], window.shape[1] - heads, config.hidden_size, dtype=dtype).requires_grad_()
    with Alive([read, head.weight], 0) as of_heads:
        asked = [head(read, window[:, k + 1 : k + 1 + read.shape[1]]) for k in range(heads)]
        kept_by_heads = of_heads.bytes
        del asked
    with Alive([window, *model.parameters(), *model.buffers()], 0) as alive:
        total = training_losses(engine._forward(window, asked=window), window, **SETTINGS).total
        kept = alive.bytes
        del total  # keeps the graph till here
    return kept - kept_by_heads, of_heads.peak


def resident(reset: bool = False) -> int:
    """Highest resident size since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def optimizer_tensors(engine: Any) -> tuple[list[Tensor], list[Tensor]]:  # noqa: ANN401
    """-> what the optimizer updates, both moments."""
    outer = engine._engine.optimizer
    inner = getattr(outer, "optimizer", outer)
    # ZeRO-3 hands its own FP32 parts to the optimizer only for the time of a step
    parts = getattr(outer, "fp32_partitioned_groups_flat", None)
    updated = parts or [p for group in inner.param_groups for p in group["params"]]
    return list(updated), [v for state in inner.state.values() for v in state.values() if isinstance(v, Tensor)]


def measure(config: ModelConfig, case: Case, batch: int, sequence: int) -> Measured:
    """Two steps; the second is measured. Runs in a process of its own."""
    from model.engine.zero import ZeroEngine

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        recipe = recipe_of(config, case, batch, sequence)
        engine = ZeroEngine(recipe)
        window = torch.randint(0, config.vocab_size, (batch, sequence + 1 + config.num_nextn_predict_layers))
        out = _measure(engine, window)
        torch.distributed.destroy_process_group()
    return out


def recipe_of(config: ModelConfig, case: Case, batch: int, sequence: int) -> Recipe:
    """One process, one micro-batch."""
    precision, stage, recompute = case
    layout = Layout(
        world_size=1,
        expert_parallel=1,
        micro_batch=batch,
        accumulation=1,
        zero_stage=stage,  # type: ignore[arg-type]
        recompute=recompute,  # type: ignore[arg-type]
    )
    return tiny_recipe(model=config, layout=layout, sequence_length=sequence, precision=precision)


def _measure(engine: Any, window: Tensor) -> Measured:  # noqa: ANN401
    engine.micro_step(window, **SETTINGS, passes=1)
    engine.step(1e-3)
    gc.collect()
    weights = weight_tensors(engine)
    updated, moments = optimizer_tensors(engine)
    out = Measured(
        weights=size_of(weights), master=size_of(updated, apart=weights), moments=size_of(moments, apart=updated)
    )
    out.activations, out.logits = saved_bytes(engine, window)
    gc.collect()
    before = resident(reset=True)
    with Alive([*weights, *updated, *moments], trained_parameters(engine.recipe.model)) as alive:
        engine.micro_step(window, **SETTINGS, passes=1)
        gc.collect()
        out.gradients, out.backward, alive.peak = alive.bytes, alive.peak, alive.bytes
        out.resident["backward"] = resident() - before
        resident(reset=True)
        engine.step(1e-3)
        out.update = alive.peak
        out.resident["update"] = resident() - before
    return out


def weight_tensors(engine: Any) -> list[Tensor]:  # noqa: ANN401
    """Parameters as this process keeps them: under ZeRO-3 its parts."""
    return [getattr(p, "ds_tensor", p) for p in engine.model.parameters()]


def rows(config: ModelConfig, case: Case, batch: int, sequence: int, found: Measured) -> dict[str, Any]:
    """Measured, formula, and their ratio, by part."""
    recipe, stage = recipe_of(config, case, batch, sequence), case[1]
    policy = policy_of(recipe.precision, on_cpu=True)
    formula = training_memory(config, recipe.layout, policy, sequence, Kernels.composed)
    tokens = batch * sequence
    pairs = {name: (getattr(found, name), getattr(formula, name)) for name in ("weights", "master", "moments")}
    # ZeRO-3 keeps its bucket
    pairs["gradients"] = (found.gradients, formula.gradients + (formula.buckets if stage == 3 else 0))
    saved_by_layers = round(tokens * kept_bytes(config, recipe.layout, policy, sequence, Kernels.composed))
    pairs["activations"] = (found.activations, saved_by_layers)
    pairs["logits"] = (found.logits, formula.logits)
    pairs["backward"] = (found.backward, formula.peak - formula.states + formula.gradients)
    pairs["update"] = (found.update, formula.update + formula.gradients)
    return {
        name: {"measured": measured, "formula": wanted, "ratio": round(measured / wanted, 4) if wanted else None}
        for name, (measured, wanted) in pairs.items()
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = preset(args.preset)
    report: dict[str, Any] = {"preset": args.preset, "sequence": args.sequence, "batch": args.batch, "cases": []}
    spawn = multiprocessing.get_context("spawn")
    for case in CASES:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:  # DeepSpeed keeps groups and buffers for ever
            found = pool.submit(measure, config, case, args.batch, args.sequence).result()
        parts = rows(config, case, args.batch, args.sequence, found)
        report["cases"].append({"case": case, "parts": parts, "resident": found.resident})
        print(f"{case}  resident {found.resident}")
        for name, row in parts.items():
            print(f"    {name:12s} {row['measured']:>13,} {row['formula']:>13,} {row['ratio']}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
