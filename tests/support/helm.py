"""The chart `helm/fathom` through the program `helm`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

CHART = Path(__file__).parents[2] / "helm" / "fathom"
NOT_RUN = "needs helm: put it into the folder KUBEBUILDER_ASSETS, or on PATH"
"""Why a test was skipped; tests/conftest.py counts these at the end."""
DIGEST = "@sha256:" + "a5" * 32
IMAGES = {"images": {name: f"registry.example.com/fathom-{name}{DIGEST}" for name in ("controller", "tracking")}}
"""What has no default."""


def find_helm(env: Mapping[str, str] = os.environ) -> Path | None:
    """The program; None if there is none."""
    beside = Path(env.get("KUBEBUILDER_ASSETS") or "/nonexistent") / "helm"
    found = str(beside) if beside.exists() else shutil.which("helm", path=env.get("PATH", ""))
    return None if found is None else Path(found)


def not_run(reasons: Iterable[str]) -> str:
    """What is to be said loudly at the end, of the reasons why tests were skipped; "" if nothing."""
    count = sum(NOT_RUN in reason for reason in reasons)
    return f"{count} tests of the chart did NOT run: they need helm, in KUBEBUILDER_ASSETS or on PATH" if count else ""


class Helm:
    """In a home of its own, so that nobody's plugins and repositories have a part in it."""

    def __init__(self, program: Path, home: Path, kubeconfig: Path | None = None) -> None:
        self._program = program
        self._env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(home),
            **{f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")},
            "KUBECONFIG": str(kubeconfig or home / "none"),
        }

    def run(
        self, *arguments: str, values: Mapping[str, Any] | None = None, chart: Path = CHART
    ) -> subprocess.CompletedProcess[str]:
        """`{}` among the arguments is the chart; `values` go to it as a file."""
        full = [str(chart) if one == "{}" else one for one in arguments]
        given = [] if values is None else ["--values", "-"]
        return subprocess.run(
            [str(self._program), *full, *given],
            env=self._env,
            input=json.dumps(values),
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    def done(self, *arguments: str, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> str:
        """As `run`; -> what it said. It has to succeed."""
        done = self.run(*arguments, values=values, chart=chart)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rendered(self, values: Mapping[str, Any] | None = None, namespace: str = "fathom-system") -> list[Object]:
        """All objects, with images where `values` name none."""
        text = self.done("template", "fathom", "{}", "--namespace", namespace, values=merged(IMAGES, values or {}))
        return [one for one in yaml.load_all(text, yaml.CSafeLoader) if one]

    def refused(self, values: Mapping[str, Any]) -> str:
        """-> why."""
        done = self.run("template", "fathom", "{}", values=merged(IMAGES, values))
        assert done.returncode != 0, "it was taken"
        return done.stderr


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """As Helm does it: maps by their keys, all else as a whole."""
    result = dict(below)
    for key, value in above.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result


def the(objects: Iterable[Object], kind: str, name: str) -> Object:
    """The one of that kind and name."""
    [found] = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pod_specs(objects: Iterable[Object]) -> dict[str, Object]:
    """What would run, by the name of what says so."""
    found: dict[str, Object] = {}
    for one in objects:
        if one["kind"] == "Pod":
            found[one["metadata"]["name"]] = one["spec"]
        elif one["kind"] in ("Deployment", "Job"):
            found[one["metadata"]["name"]] = one["spec"]["template"]["spec"]
    return found
