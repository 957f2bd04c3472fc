"""The base install: what plans and prices a run imports nothing heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model.presets import preset

ROOT = Path(__file__).parents[1]
HEAVY = [
    "torch",
    "numpy",
    "ray",
    "mlflow",
    "deepspeed",
    "tokenizers",
    "matplotlib",
    "psutil",
    "safetensors",
    "scipy",
    "transformers",
]
LIGHT = [
    "model.config",
    "model.presets",
    "model.flops",
    "model.names",
    "model.recipe",
    "model.released",
    "model.dataset",
    "model.schedule",
    "orchestrator.spec",
    "orchestrator.status",
    "orchestrator.jobfile",
    "orchestrator.launch.resolve",
    "orchestrator.launch.events",
    "orchestrator.plan.goodput",
    "orchestrator.plan.simulate",
    "orchestrator.plan.prices",
    "orchestrator.plan.estimate",
    "orchestrator.plan.against",
    "orchestrator.plan.figure",
    "orchestrator.crd.definition",
    "orchestrator.plan.calibrate",
    "orchestrator.cli.calibrate",
    "orchestrator.cli.plan",
    "orchestrator.cli.planned",
    "orchestrator.cli.pictures",
    "orchestrator.cost.ledger",
    "orchestrator.compare.load",
    "orchestrator.compare.page",
    "orchestrator.cli.compare",
    "orchestrator.cli.main",
    "orchestrator.reference",
    "orchestrator.why",
    "orchestrator.controller.webhooks",
]
BARRED = """
import importlib, resource, sys

class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise ImportError("not in a base install: " + name)

sys.meta_path.insert(0, Bar())
"""


def child(code: str) -> subprocess.CompletedProcess[str]:
    program = BARRED.format(heavy=HEAVY) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)


def test_planning_needs_nothing_heavy() -> None:
    done = child(f"for name in {LIGHT!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_the_bar_holds() -> None:
    assert "not in a base install: torch" in child("import model.transformer").stderr


def test_help_is_quick_and_model_counts_without_torch() -> None:
    code = (
        "from orchestrator.cli.main import app\n"
        "try: app({arguments!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)"
    )
    helped = child(code.format(arguments=["--help"]))
    assert "train" in helped.stdout
    assert float(helped.stderr) < 3.0, "half a second is promised; this leaves room for a slow and busy machine"
    counted = child(code.format(arguments=["model", "v3-671b", "-o", "json"]))
    assert "671026404352" in counted.stdout, counted.stderr


def test_a_run_is_planned_and_printed_without_anything_heavy() -> None:
    arguments = (
        "plan --preset v3-671b --accelerator H800 --gpus 2048 --tokens 14.8T --precision fp8 --against deepseek-v3"
    )
    code = (
        "from orchestrator.cli.main import app\n"
        f"for output in ('json', 'table'):\n"
        f"    try: app({arguments.split()!r} + ['-o', output])\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
    )
    done = child(code)
    assert '"gpuHours"' in done.stdout, done.stderr
    assert "2,048 H800" in done.stdout


PLAN = "plan --preset v2-lite-16b --accelerator H100 --gpus 64 --tokens 1T --against llama-3.1-405b"
LEDGER = ROOT / "tests/orchestrator/cost/data/ledger-v1.json"
RUN = {
    "name": "one",
    "device": "cpu",
    "model": preset("mini").model_dump(mode="json"),
    "layout": {
        "world_size": 1, "expert_parallel": 1, "zero_stage": 1,
        "micro_batch": 8, "accumulation": 1, "recompute": "none",
    },
    "sequence_length": 256,
    "precision": "fp32",
    "seconds": 0.9,
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says", "needed"),
    [
        ("--help", "calibrate", ()),
        (f"{PLAN} -o json", '"gpuHours"', ()),
        (PLAN, "Cheaper ways", ()),
        ("plan --help", "--against", ()),
        ("goodput --gpus 1024 --days 3", "goodput", ()),
        ("goodput --gpus 1024 --days 3 -o json", "goodput", ()),
        (f"cost {LEDGER}", "CLASS", ()),
        (f"cost {LEDGER} -o csv", "BilledCost", ()),
        ("calibrate --help", "--write", ()),
        ("calibrate RUNS --write OWN", "cpu_matrix_flops", ("numpy", "scipy")),
        ("model mini", "mini", ()),
        ("explain spec.compute", "gpusPerNode", ()),
    ],
)
def test_what_plans_and_accounts_needs_nothing_heavy(
    tmp_path: Path, line: str, says: str, needed: tuple[str, ...]
) -> None:
    """Each in a process of its own; only a fit takes numpy and scipy."""
    (tmp_path / "runs.json").write_text(json.dumps({"runs": [RUN]}))
    places = {"RUNS": str(tmp_path / "runs.json"), "OWN": str(tmp_path / "own.yaml")}
    arguments = [places.get(word, word) for word in line.split()]
    barred = BARRED.format(heavy=[name for name in HEAVY if name not in needed])
    code = f"{barred}from orchestrator.cli.main import main\nsys.argv[1:] = {arguments!r}\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


@pytest.mark.parametrize("module", ["orchestrator.cli", "orchestrator.cli.main"])
def test_the_command_runs_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", module]
    done = subprocess.run([*command, "plan"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: give a job file, or --preset")
    assert (
        "calibrate" in subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    )


def test_help_imports_no_file_systems() -> None:
    """fsspec brings asyncio along."""
    done = child("import orchestrator.cli.main\nassert not {'fsspec', 'asyncio'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_only_a_worker_that_trains_imports_deepspeed() -> None:
    """The driver and Ray's controller import what they hand to the workers, and would take seconds longer to start."""
    program = "import sys, model.train\nprint('deepspeed' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_worker_that_trains_imports_no_mlflow() -> None:
    """DeepSpeed would, for its autotuner; whoever asks for MLflow afterwards gets it."""
    program = "import sys, model.engine.zero\nprint('mlflow' in sys.modules)\nimport mlflow\nprint(mlflow.__name__)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split()[-2:] == ["False", "mlflow"]


def test_a_worker_that_trains_compiles_no_optimizer_that_it_does_not_use() -> None:
    """ZeRO asks each time whether an optimizer is Muon; what others want to be compiled still is."""
    program = (
        "import sys, torch, model.engine.zero\n"
        "from deepspeed.runtime import compiler\n"
        "from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam\n"
        "print('torch._dynamo' in sys.modules, issubclass(MuonWithAuxAdam, torch.optim.Optimizer))\n"
        "print(compiler.compile() is torch.compile)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split()[-3:] == ["False", "True", "True"]
