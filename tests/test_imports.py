"""The base install: what plans and prices a run imports nothing heavy."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
import importlib, json, os, resource, sys, tempfile

barred = {heavy!r}

class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in barred:
            raise ImportError("not in a base install: " + name)

sys.meta_path.insert(0, Bar())
"""
EACH_APART = """
from orchestrator.cli.main import main
told = [sorted(sys.modules)]
for arguments, needed in json.load(sys.stdin):
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    child = os.fork()
    if not child:
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        barred = [name for name in barred if name not in needed]
        sys.argv[1:] = arguments
        main()
        sys.exit()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told.append([code, *(file.seek(0) or file.read().decode() for file in (out, err))])
print(json.dumps(told))
"""
"""The command lines of its input, each in a process of its own that has imported the command and nothing more."""


def child(code: str, given: str = "") -> subprocess.CompletedProcess[str]:
    program = BARRED.format(heavy=HEAVY) + code
    command = [sys.executable, "-c", program]
    return subprocess.run(command, input=given, capture_output=True, text=True, cwd=ROOT, check=False)


def test_planning_needs_nothing_heavy() -> None:
    done = child(f"for name in {LIGHT!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_the_bar_holds() -> None:
    assert "not in a base install: torch" in child("import model.transformer").stderr


def test_help_is_quick() -> None:
    helped = child(
        "from orchestrator.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)"
    )
    assert "train" in helped.stdout
    assert float(helped.stderr) < 3.0, "half a second is promised; this leaves room for a slow and busy machine"


PLAN = "plan --preset v2-lite-16b --accelerator H100 --gpus 64 --tokens 1T --against llama-3.1-405b"
PLAN_OF_V3 = "plan --preset v3-671b --accelerator H800 --gpus 2048 --tokens 14.8T --precision fp8 --against deepseek-v3"
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


LINES: list[tuple[str, str, tuple[str, ...]]] = [
    ("--help", "calibrate", ()),
    ("model v3-671b -o json", "671026404352", ()),
    (f"{PLAN_OF_V3} -o json", '"gpuHours"', ()),
    (f"{PLAN_OF_V3} -o table", "2,048 H800", ()),
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
]
FIT_WITHOUT = "calibrate RUNS --write NOWHERE"
"""Without what it needs."""


@dataclass(frozen=True)
class Ran:
    imported: list[str]
    """By the command alone."""
    ended: dict[str, tuple[int, str, str]]
    """Of each line: exit status, what it printed, and its complaints."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("calibrate")
    (folder / "runs.json").write_text(json.dumps({"runs": [RUN]}))
    places = {
        "RUNS": str(folder / "runs.json"),
        "OWN": str(folder / "own.yaml"),
        "NOWHERE": str(folder / "nowhere.yaml"),
    }
    lines = {line: needed for line, _, needed in LINES} | {FIT_WITHOUT: ()}
    asked = [([places.get(word, word) for word in line.split()], needed) for line, needed in lines.items()]
    done = child(EACH_APART, json.dumps(asked))
    assert done.returncode == 0, done.stderr
    imported, *ended = json.loads(done.stdout)
    return Ran(imported, {line: tuple(end) for line, end in zip(lines, ended, strict=True)})


@pytest.mark.parametrize(("line", "says"), [(line, says) for line, says, _ in LINES])
def test_what_plans_and_accounts_needs_nothing_heavy(ran: Ran, line: str, says: str) -> None:
    """Only a fit takes numpy and scipy."""
    status, printed, complaints = ran.ended[line]
    assert status == 0, complaints
    assert says in printed


def test_a_fit_without_numpy_is_found_out(ran: Ran) -> None:
    """The bar holds in the processes that run the lines, too."""
    status, _, complaints = ran.ended[FIT_WITHOUT]
    assert status != 0
    assert "numpy" in complaints


@pytest.mark.parametrize("module", ["orchestrator.cli", "orchestrator.cli.main"])
def test_the_command_runs_as_a_module(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "plan"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: give a job file, or --preset")


def test_help_imports_no_file_systems(ran: Ran) -> None:
    """fsspec brings asyncio along."""
    assert "orchestrator.cli.main" in ran.imported
    assert not {"fsspec", "asyncio"} & set(ran.imported)


# ------------------------------------------------------------------- what trains
TRAINS = """
import importlib.util, json, sys, model.train
told = {"to hand it on": sorted({"deepspeed"} & sys.modules.keys())}
import model.engine.zero, torch
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
from model.optim import build_optimizer, parameter_groups
from model.recipe import Optimizer
build_optimizer(parameter_groups(torch.nn.Linear(1, 1), 0.1), Optimizer(), 1.0)
told["to train"] = sorted({"deepspeed", "mlflow", "torch._dynamo"} & sys.modules.keys())
told["is Muon an optimizer"] = issubclass(MuonWithAuxAdam, torch.optim.Optimizer)
told["is mlflow there"] = importlib.util.find_spec("mlflow") is not None
told["is the rest compiled"] = compiler.compile() is torch.compile
print(json.dumps(told))
"""
"""Each import takes seconds: one process answers all questions."""


@pytest.fixture(scope="module")
def trains() -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-c", TRAINS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_only_a_worker_that_trains_imports_deepspeed(trains: dict[str, Any]) -> None:
    """The driver and Ray's controller import what they hand to the workers, and would take seconds longer to start."""
    assert trains["to hand it on"] == []
    assert "deepspeed" in trains["to train"]


def test_a_worker_that_trains_imports_no_mlflow(trains: dict[str, Any]) -> None:
    """DeepSpeed would, for its autotuner; whoever asks for MLflow afterwards gets it."""
    assert "mlflow" not in trains["to train"]
    assert trains["is mlflow there"]


def test_a_worker_that_trains_compiles_no_optimizer_that_it_does_not_use(trains: dict[str, Any]) -> None:
    """ZeRO asks each time whether an optimizer is Muon; what others want to be compiled still is."""
    assert "torch._dynamo" not in trains["to train"]
    assert trains["is Muon an optimizer"]
    assert trains["is the rest compiled"]
