"""Which GPUs a process may use, held against how PyTorch, which reads as CUDA does, understands the same words."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from support.nvml import FakeNvml

from orchestrator.launch.devices import VISIBLE, in_words, own, visible_gpus

UUIDS = [FakeNvml().nvmlDeviceGetUUID(number) for number in range(4)]


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    made = FakeNvml(4, ("MIG-a", "MIG-b", "MIG-GPU-1/7/0"))
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, "0 1 2 3"),
        ("", ""),
        ("NoDevFiles", ""),
        ("-1", ""),
        ("2", "2"),
        ("3,1", "1 3"),
        (" 3 , 1", "1 3"),
        ("0,1,-1,2", "0 1"),
        ("0,9,1", "0"),
        ("0,1,1", ""),
        ("1x,2y", "1 2"),
        ("0,GPU-1a", "0"),
        (UUIDS[2], "2"),
        (f"{UUIDS[2]},{UUIDS[0]}", "0 2"),
        ("GPU-3a,GPU-1a", "1 3"),
        ("GPU-", ""),
        (f"GPU-1a,{UUIDS[1]}", ""),
        ("GPU-1a,0", "1"),
        ("GPU-beef", ""),
        ("MIG-b", "MIG-b"),
        ("MIG-b,MIG-a", "MIG-b MIG-a"),
        ("MIG-GPU-1/7/0", "MIG-GPU-1/7/0"),
        ("MIG-a,MIG-gone,MIG-b", "MIG-a"),
        ("MIG-a,MIG-a", ""),
        ("MIG-a,1", "MIG-a"),
    ],
)
def test_words(four: FakeNvml, value: str | None, names: str) -> None:
    assert list(visible_gpus({} if value is None else {VISIBLE: value})) == names.split()
    assert four.users == 0, "the driver is let go"


WORDS = st.one_of(st.sampled_from(["", "0", "1", "2", " 3", "+1", "-1", "7", "1a", "x", *UUIDS, "GPU-2", "GPU-"]))


@given(st.lists(WORDS, max_size=5).map(",".join))
def test_torch_counts_as_many(value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", FakeNvml(4))
        patch.setenv(VISIBLE, value)
        meant = torch.cuda._parse_visible_devices()
        if meant and isinstance(meant[0], str):
            meant = torch.cuda._transform_uuid_to_ordinals(meant, UUIDS)
        else:
            below = [number >= 4 for number in meant]
            meant = meant[: below.index(True)] if True in below else meant
        assert list(visible_gpus({VISIBLE: value})) == [str(number) for number in sorted(meant)]


@pytest.mark.parametrize("broken", [None, "no driver"])
def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch, broken: str | None) -> None:
    def fails(self: FakeNvml) -> None:
        raise OSError(broken)

    monkeypatch.setattr(FakeNvml, "nvmlInit", fails)
    monkeypatch.setitem(sys.modules, "pynvml", None if broken is None else FakeNvml())
    assert visible_gpus({}) == ()


@pytest.mark.parametrize("given_out", [(), ("1",), ("0", "3"), ("MIG-b", "MIG-a")])
def test_ray_and_a_driver_that_looks_itself_see_what_was_given(
    four: FakeNvml, monkeypatch: pytest.MonkeyPatch, given_out: tuple[str, ...]
) -> None:
    for name, value in own(given_out).items():
        monkeypatch.setenv(name, value)
    assert visible_gpus({VISIBLE: own(given_out)[VISIBLE]}) == given_out
    assert NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids() == list(given_out)
    spec = ResourceAndLabelSpec(num_cpus=1, num_gpus=len(given_out))
    spec._resolve_accelerator_resources(NvidiaGPUAcceleratorManager, len(given_out))
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES contains"):
        spec._resolve_accelerator_resources(NvidiaGPUAcceleratorManager, len(given_out) + 1)
    assert own(given_out)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_in_words() -> None:
    found = [in_words(one) for one in ((), ("2",), ("0", "1"))]
    assert found == ["", "GPU 2 of this machine", "GPUs 0,1 of this machine"]
    assert "nobody knows" in in_words(None)


SEEN = """
import json, os
os.environ |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # as the driver has it
import ray
given = int(os.environ["GIVEN"])
ray.init(address="local", num_cpus=3, num_gpus=given, include_dashboard=False, object_store_memory=100 * 2**20)
class Worker:
    def seen(self): return os.environ["CUDA_VISIBLE_DEVICES"]
kinds = [{"num_gpus": 1}] * given + [{"num_gpus": 0}]
workers = [ray.remote(num_cpus=1, **kind)(Worker).remote() for kind in kinds]
print(json.dumps(ray.get([worker.seen.remote() for worker in workers])))
"""


@pytest.mark.ray
@pytest.mark.parametrize("given_out", [("5", "MIG-b"), ()])
def test_rays_workers_have_those_of_their_driver_and_no_other(given_out: tuple[str, ...]) -> None:
    """A helper without a GPU of its own, such as Ray Train's controller, sees all of its job."""
    environment = os.environ | own(given_out) | {"GIVEN": str(len(given_out))}
    done = subprocess.run([sys.executable, "-c", SEEN], env=environment, capture_output=True, text=True, check=True)
    *workers, helper = json.loads(done.stdout.splitlines()[-1])
    assert sorted(workers) == sorted(given_out)
    assert helper == ",".join(given_out)
