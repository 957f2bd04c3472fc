"""Which of Ray Train's helpers a run starts; by Ray itself, which takes seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LISTED = """
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from orchestrator.launch.lean_trainer import UNUSED, LeanTrainer
def made(kind):
    config = RunConfig(name="n", storage_path="/x")
    trainer = kind(print, scaling_config=ScalingConfig(num_workers=2), run_config=config)
    return [type(one).__name__ for one in trainer._create_default_callbacks()]
all_of_them, ours = made(TorchTrainer), made(LeanTrainer)
assert set(all_of_them) - set(ours) == set(UNUSED), (all_of_them, ours)
assert ours == [name for name in all_of_them if name not in UNUSED]
assert "BackendSetupCallback" in ours
"""


@pytest.mark.processes
def test_all_but_those_without_work(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LISTED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
