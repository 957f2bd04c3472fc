"""`benchmarks/gpu.py` on a CPU: everything but CUDA's own calls, and what it does when something fails."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipes import TINY
from torch import Tensor

from benchmarks import gpu  # puts its folder on the path

import gpu_work  # isort: skip
from model.precision.backends import Candidate
from model.precision.products import HIGH
from model.precision.reference import Reference

ROOT = Path(__file__).parents[2]
SMALL = {"linear": ([16], 32, 48), "grouped, empty experts": ([0, 8, 24, 24], 32, 48)}
CONFIG = TINY.replace(num_hidden_layers=2, hidden_size=64, moe_intermediate_size=32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gpu, gpu_work):
        monkeypatch.setattr(module, "preset", lambda _: CONFIG)
    for module in (gpu, gpu_work):
        monkeypatch.setattr(module, "CHECKS", SMALL)


def arguments(out: Path, *more: str) -> list[str]:
    sizes = ["--sequence", "16", "--micro-batch", "2", "--rounds", "2", "--warmup", "1"]
    return ["--out", str(out), "--device", "cpu", "--here", *sizes, *more]


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch says why a kernel does not take these heads
@pytest.mark.usefixtures("small")
def test_every_section_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[set[str]] = []
    save = gpu.save
    monkeypatch.setattr(
        gpu, "save", lambda report, to: (save(report, to), written.append(set(json.loads(to.read_text()))))
    )
    gpu.main(arguments(tmp_path / "gpu.json", "--peak-bf16", "1e12", "--peak-fp8", "2e12"))
    report = json.loads((tmp_path / "gpu.json").read_text())

    assert [len(keys) for keys in written] == list(range(4, 4 + len(gpu.SECTIONS))), "saved after each section"
    assert "error" in report["machine"]["backends"]["Transformer Engine"]
    for training in (report["train-bf16"], report["train-fp8"]["reference"]):
        assert training["rounds"] == 2
        assert training["micro_batch"] == 2
        assert training["tokens_per_second"] == pytest.approx(32 / training["step_seconds"])
        assert training["mfu_of_bf16_peak"] == pytest.approx(training["teraflops"])
        assert training["mfu_of_fp8_peak"] == pytest.approx(training["teraflops"] / 2)
        assert training["losses"][0] == pytest.approx(4.16 * 1.3, rel=0.03), "ln 64, and 0.3 of the prediction module's"
        assert training["peak_bytes"] > 0
    assert report["train-bf16"]["losses"] != report["train-fp8"]["reference"]["losses"]
    assert "torch scaled_mm" not in report["train-fp8"], "it does not run on a CPU"
    assert report["check"]["reference"]["passed"]
    assert 0.01 < report["check"]["reference"]["cases"]["linear"]["reference_from_exact"]["y"] < 0.1
    assert report["attention"]["MATH"]["seconds"] > 0
    assert "error" in report["attention"]["CUDNN_ATTENTION"]
    experts = report["products"]["experts up"]
    assert set(experts) == {"bf16", "reference"}
    assert experts["bf16"]["seconds"] < experts["reference"]["seconds"]


def test_weights_move_by_their_masters() -> None:
    device = gpu_work.Cpu()
    model = gpu_work.build(CONFIG, device)
    masters = gpu_work.Masters(model, device)
    before = [p.detach().clone() for p, _ in masters.pairs]
    for parameter, _ in masters.pairs:
        parameter.grad = torch.full_like(parameter, 3.0)
    masters.step()
    total = sum(p.numel() for p, _ in masters.pairs)
    for (parameter, master), old in zip(masters.pairs, before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, master.detach().bfloat16())
        decay = 1 - gpu_work.LEARNING_RATE * (0.1 if parameter.ndim >= 2 else 0.0)
        assert torch.allclose(master.detach(), old.float() * decay - gpu_work.LEARNING_RATE, atol=1e-6)
        average = masters.adam.state[master]["exp_avg"]
        assert torch.allclose(average, torch.full_like(average, 0.1 / total**0.5), rtol=1e-3), "clipped to norm 1"


def test_groups_cover_all_and_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    masters = gpu_work.Masters(gpu_work.build(CONFIG, gpu_work.Cpu()), gpu_work.Cpu())
    monkeypatch.setattr(gpu_work, "GROUP", 10_000)
    groups = list(masters.groups())
    assert [pair for group in groups for pair in group] == masters.pairs
    assert len(groups) > 3
    assert all(sum(p.numel() for p, _ in group[:-1]) < 10_000 for group in groups)


@pytest.mark.usefixtures("small")
def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gpu_work.measure_steps

    def measure(*given: Any) -> gpu.Report:  # noqa: ANN401 - handed on
        if given[-1] > 1:
            raise torch.OutOfMemoryError(f"no room for {given[-1]}")
        return whole(*given)

    monkeypatch.setattr(gpu_work, "measure_steps", measure)
    report = gpu.main(arguments(tmp_path / "gpu.json", "--micro-batch", "4", "--sections", "train-bf16"))
    assert report["train-bf16"]["micro_batch"] == 1
    assert [one["micro_batch"] for one in report["train-bf16"]["did_not_fit"]] == [4, 2]

    monkeypatch.setattr(gpu_work, "measure_steps", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    report = gpu.main(arguments(tmp_path / "gpu.json", "--sections", "train-bf16"))
    assert "one sequence" in report["train-bf16"]["error"]


class Wrong(Reference):
    """Scales of the weights lost, a little."""

    def weight(self, w: Tensor, dtype: torch.dtype) -> Tensor:
        return super().weight(w, dtype) * 1.02


@pytest.mark.usefixtures("small")
def test_a_wrong_backend_is_found_and_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "options", lambda _: [Candidate("wrong", Wrong), Candidate("reference", Reference)])
    report = gpu.main(arguments(tmp_path / "gpu.json", "--sections", "check,train-fp8"))
    case = report["check"]["wrong"]["cases"]["linear"]
    assert not report["check"]["wrong"]["passed"]
    assert case["from_reference"] == {"y": pytest.approx(0.02, rel=0.1), "dx": pytest.approx(0.02, rel=0.1), "dw": 0.0}
    assert list(report["train-fp8"]) == ["reference"]


def test_a_product_that_fails_costs_only_itself() -> None:
    class Broken:
        def linear(self, x: Tensor, weight_OI: Tensor) -> Tensor:
            raise RuntimeError("misaligned")

        grouped = linear

    found = gpu_work.time_product({"bf16": HIGH, "broken": Broken()}, gpu_work.Cpu(), ([8], 16, 16), 1)
    assert "misaligned" in found["broken"]["error"]
    assert found["bf16"]["seconds"] > 0


def test_sections_run_apart_and_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(tmp_path / "gpu.json", "--preset", "mini", "--sections", "machine")
    given.remove("--here")
    monkeypatch.setattr(sys, "argv", ["gpu.py", *given])
    assert gpu.main(given)["machine"]["torch"] == torch.__version__
    assert json.loads((tmp_path / "gpu.json").read_text())["machine"]["torch"] == torch.__version__
    args = gpu.arguments(given)
    assert gpu.run_apart("machine", None, args, {}, 0.01) == {"error": "stopped after 0 seconds"}
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--nonsense"])
    dead = gpu.run_apart("machine", None, args, {}, 60)
    assert dead["error"] == "its process ended with 2"
    assert "--out" in dead["said"]
    gpu.main([*given, "--seconds-limit", "1"])
    assert json.loads((tmp_path / "gpu.json").read_text())["machine"] == {"error": "no time left"}


def test_it_says_what_is_wrong_with_its_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.arguments(arguments(tmp_path / "x", "--sections", "machine,dance"))
    assert "no section dance" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.arguments(["--out", "x"])
        assert "no GPU" in capsys.readouterr().err


def test_it_needs_only_torch_and_pydantic() -> None:
    """Not even numpy: whatever else is installed is hidden."""
    code = """
import sys
allowed = {'torch', 'torchgen', 'functorch', 'pydantic', 'pydantic_core', 'annotated_types', 'typing_extensions',
           'typing_inspection', 'sympy', 'mpmath', 'filelock', 'networkx', 'jinja2', 'markupsafe', 'fsspec', 'model',
           'gpu', 'gpu_work'}
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec
class Bar:
    def find_spec(self, name, path=None, target=None):
        found = find(name.partition('.')[0])
        if found and 'site-packages' in str(found.origin) and name.partition('.')[0] not in allowed:
            raise ModuleNotFoundError('not allowed: ' + name)
sys.meta_path.insert(0, Bar())
sys.path[:0] = ['benchmarks']
import gpu
try:
    import numpy
except ImportError:
    print('barred')
assert not {'deepspeed', 'ray', 'transformers', 'tokenizers', 'numpy', 'fsspec'} & set(sys.modules), sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "barred\n", done.stderr
