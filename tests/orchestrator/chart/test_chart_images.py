"""What images are made of, as far as that can be seen without making one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "k8s" / "images"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_IMPORTS = """
import json, sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}: it is not in the image", name=name)

absent = set(json.load(sys.stdin))
sys.meta_path.insert(0, Absent())
import orchestrator.api.app, orchestrator.cli.main, orchestrator.cli.leading, orchestrator.controller.pictures
import orchestrator.controller.service, orchestrator.kube.client, orchestrator.kube.lease, orchestrator.launch.rayjob
import orchestrator.tracking.client, orchestrator.tracking.plots, orchestrator.tracking.cost_page
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
MlflowClient(tracking_uri="http://127.0.0.1:9")
"""
"""What the controller's processes import, where nothing but the image's packages can be."""


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s;<>=!~\[]", requirement, maxsplit=1)[0]).lower()


def _closure(requirements: list[str]) -> set[str]:
    """Distributions that are installed for these, by what each says that it needs without extras."""
    found: set[str] = set()
    waiting = [_name(one) for one in requirements]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform or Python
            continue
        found.add(name)
        waiting += [_name(one) for one in needs if "extra ==" not in one]
    return found


def test_the_controllers_image_has_what_the_controller_imports() -> None:
    there = _closure([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["controller"]])
    assert {"kubernetes", "mlflow-skinny", "matplotlib", "fastapi"} <= there
    absent = {
        name
        for name, owners in metadata.packages_distributions().items()
        if not {_name(one) for one in owners} & {*there, "fathom-train"}
    }
    assert {"torch", "ray", "deepspeed", "pandas", "scipy"} <= absent
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS],
        input=json.dumps(sorted(absent)),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_each_image_installs_an_extra_that_there_is() -> None:
    files = sorted(IMAGES.glob("*.Dockerfile"))
    assert [file.name for file in files] == ["controller.Dockerfile", "tracking.Dockerfile", "train.Dockerfile"]
    for file in files:
        text = file.read_text()
        [extras] = re.findall(r"^RUN /source/k8s/images/install\.sh (\S+) /opt/fathom$", text, re.MULTILINE)
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), file.name
        copied = re.findall(r"^COPY ((?!--from)[^\n]*)", text, re.MULTILINE)
        for name in (name for line in copied for name in line.split()[:-1]):
            assert (ROOT / name).exists(), f"{file.name} copies {name}"


def test_kuberay_finds_rays_dashboard_in_the_training_image() -> None:
    """Without its agent no pod is ever ready: seen on a live cluster."""
    [extras] = re.findall(r"install\.sh (\S+) /opt/fathom", (IMAGES / "train.Dockerfile").read_text())
    needed = [one for extra in extras.split(",") for one in PROJECT["optional-dependencies"][extra]]
    assert any(one.startswith("ray[default]") for one in needed)
    pinned = {_name(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    default = [one for one in metadata.requires("ray") or [] if 'extra == "default"' in one]
    assert {_name(one) for one in default} <= pinned


@pytest.mark.parametrize("file", sorted(IMAGES.glob("*.Dockerfile")), ids=lambda file: file.stem)
def test_each_image_runs_as_nobody_and_stands_on_what_its_maker_names(file: Path) -> None:
    text = file.read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1000:1000"]
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    assert all(re.fullmatch(r"\$\{[A-Z]+\}", base) or base in stages for base in bases)
    named = re.findall(r"^ARG ([A-Z]+)(=.*)?$", text, re.MULTILINE)
    assert [default for name, default in named if default not in ("", "=${PYTHON}")] == [], "no base is invented"


@pytest.mark.parametrize("arguments", [[], ["controller"], ["controller", "x", "python3", "more"]])
def test_the_script_says_how_it_is_called(arguments: list[str]) -> None:
    done = subprocess.run([IMAGES / "install.sh", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "k8s/images/install.sh EXTRA TARGET [PYTHON]"


def test_the_script_touches_no_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    done = subprocess.run([IMAGES / "install.sh", "controller", tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"{tmp_path} is not empty: name a folder that is, or none\n")
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]
