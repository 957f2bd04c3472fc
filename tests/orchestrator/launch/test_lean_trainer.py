"""Which of Ray Train's helpers a run starts; by Ray itself, which takes seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LISTED = """
import asyncio
from types import SimpleNamespace
from ray import cloudpickle
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy
from orchestrator.launch.lean_trainer import ASKS_FOR_NODES, UNUSED, LeanTrainer
scaling = ScalingConfig(num_workers=2)
def trainer(kind):
    return kind(print, scaling_config=scaling, run_config=RunConfig(name="n", storage_path="/x"))
def made(kind):
    return [type(one).__name__ for one in trainer(kind)._create_default_callbacks()]
all_of_them, ours = made(TorchTrainer), made(LeanTrainer)
assert set(all_of_them) - set(ours) == set(UNUSED), (all_of_them, ours)
assert ours == [name for name in all_of_them if name not in UNUSED]
assert "BackendSetupCallback" in ours

policy = create_scaling_policy(scaling)
assert all(hasattr(policy, name) for name in ASKS_FOR_NODES)
class Handed(Exception): ...
def hand_out(self, **parts): raise Handed(parts["scaling_policy"])
TorchTrainer._initialize_and_run_controller = hand_out
try:
    trainer(LeanTrainer)._initialize_and_run_controller(scaling_policy=policy)  # as fit() calls it, once Ray is up
except Handed as handed:
    [policy] = handed.args
policy = cloudpickle.loads(cloudpickle.dumps(policy))
policy.after_controller_start(SimpleNamespace(run_id="one"))  # asking would start a Ray and, there, the coordinator
assert policy.make_decision_for_non_running_worker_group().num_workers == 2
policy.make_decision_for_running_worker_group(None, None)
asyncio.run(policy.before_controller_shutdown())
assert "_autoscaling_coordinator" not in vars(policy._coordinator_client)
"""


@pytest.mark.processes
def test_all_but_those_without_work(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LISTED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
