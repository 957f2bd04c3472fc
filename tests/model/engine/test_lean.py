"""What a training process does not import: it would take seconds of each start, and memory for as long as it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TRAINS = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from support.engine_worker import windows
from support.parity import layout, recipe
from model.engine.zero import ZeroEngine
engine = ZeroEngine(recipe(layout(1, 1, 1)))
for _ in range(2):
    engine.micro_step(windows(engine.recipe, 0), ahead_weight=0.1, alpha=0.0, passes=1)
    engine.step(1e-3)
engine.snapshot({"step": 2})(Path(sys.argv[1]))
engine.close()
print(sorted({"mlflow", "pandas", "torch._dynamo", "torch._inductor"} & sys.modules.keys()))
"""


@pytest.mark.processes
def test_a_process_that_trains_and_saves(tmp_path: Path) -> None:
    """Under ZeRO-3 DeepSpeed itself imports torch's compiler."""
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment = os.environ | one | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    command = [sys.executable, "-c", TRAINS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
