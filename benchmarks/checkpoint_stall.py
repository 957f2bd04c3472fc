"""How long training stands still for a checkpoint: our copy to host memory against DeepSpeed's own save to disk.

`python benchmarks/checkpoint_stall.py [PRESET]`: one process, one thread, ZeRO-1, AdamW; both ways in turns in one run.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine  # noqa: E402
from support.recipes import tiny_recipe  # noqa: E402

from model.engine.zero import ZeroEngine  # noqa: E402
from model.presets import preset  # noqa: E402
from model.recipe import Layout  # noqa: E402

ROUNDS = 5


def main(name: str) -> None:
    """Print the seconds of both, and their ratio."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        layout = Layout(world_size=1, expert_parallel=1, micro_batch=1, accumulation=1)
        recipe = tiny_recipe(model=preset(name), layout=layout, sequence_length=64)
        engine = ZeroEngine(recipe)
        window = torch.randint(0, recipe.model.vocab_size, (1, 64 + 1 + recipe.model.num_nextn_predict_layers))
        engine.micro_step(window, ahead_weight=0.3, alpha=1e-4, passes=1)
        engine.step(1e-3)
        ours, theirs, size = _measure(engine, Path(folder))
    us, them = statistics.median(ours), statistics.median(theirs)
    print(
        f"{name}: a checkpoint of {size / 1e6:.0f} MB stops training for {us:.3f} s, DeepSpeed's own save for "
        f"{them:.3f} s: {them / us:.1f} times as long (medians of {ROUNDS}, wall time)"
    )


def _measure(engine: ZeroEngine, folder: Path) -> tuple[list[float], list[float], int]:
    """-> seconds of our snapshots, of DeepSpeed's saves, and bytes of one checkpoint."""
    ours, theirs, size = [], [], 0
    for number in range(ROUNDS):
        began = time.perf_counter()
        write = engine.snapshot({"step": number})
        ours.append(time.perf_counter() - began)
        target = folder / f"ours-{number}"
        target.mkdir()
        write(target)  # in training another thread does this
        size = sum(path.stat().st_size for path in target.iterdir())
        engine._engine.checkpoint_engine = TorchCheckpointEngine(engine._engine._config)
        began = time.perf_counter()
        engine._engine.save_checkpoint(str(folder), tag=f"theirs-{number}", save_latest=False)
        theirs.append(time.perf_counter() - began)
        engine._engine.checkpoint_engine = engine._checkpoints
    return ours, theirs, size


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mini")
