"""The table of versions in docs/kubernetes.md is what is installed, and what the commands name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.launch.rayjob import ClusterSettings
from orchestrator.tracking.server import OLDEST

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
TABLE = PAGE[PAGE.index("## Versions that go together") :].split("\n## ")[0]
ROWS = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|", TABLE, re.MULTILINE))
CONSTRAINTS = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
NEEDED = (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("row", "package"),
    [
        ("Ray in the training image", "ray"),
        ("torch", "torch"),
        ("DeepSpeed", "deepspeed"),
        ("MLflow, client and server", "mlflow"),
    ],
)
def test_packages_are_those_that_are_installed(row: str, package: str) -> None:
    assert ROWS[row].split()[0] == CONSTRAINTS[package]


def test_the_least_is_what_is_asked_for() -> None:
    assert f"({OLDEST[0]}.{OLDEST[1]} at least)" in ROWS["MLflow, client and server"]
    assert f'"torch>={re.search(r"([0-9.]+) at least", ROWS["torch"])[1]}"' in NEEDED  # type: ignore[index]
    assert f'"deepspeed>={ROWS["DeepSpeed"]}"' in NEEDED
    assert re.search(r'"transformer-engine\[pytorch\]>=2\.20;', NEEDED)
    assert ROWS["Transformer Engine, for FP8 on GPUs"].startswith("2.20 at least")
    assert CONSTRAINTS["ray"] == ClusterSettings().ray_version
    assert CONSTRAINTS["mlflow-skinny"] == CONSTRAINTS["mlflow"], "client and server"


def test_kuberay_is_the_one_of_every_command() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {found for page in pages for found in re.findall(r"kuberay-operator --version (\S+)", page.read_text())}
    assert named == {ROWS["KubeRay"]}


def test_kubernetes_is_what_the_chart_asks_for() -> None:
    chart = (ROOT / "helm" / "fathom" / "Chart.yaml").read_text()
    [least] = re.findall(r"kubeVersion: .*?([0-9]+\.[0-9]+)", chart)
    assert ROWS["Kubernetes"].startswith(least)
