"""The base install: what plans and prices a run imports nothing heavy."""

import subprocess
import sys
from pathlib import Path

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
    "orchestrator.plan.calibrate",
    "orchestrator.cli.calibrate",
    "orchestrator.cli.plan",
    "orchestrator.cli.planned",
    "orchestrator.cli.pictures",
    "orchestrator.cost.ledger",
    "orchestrator.cli.main",
    "orchestrator.reference",
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
    assert float(helped.stderr) < 1.0, "half a second is promised; this leaves room for a busy machine"
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
