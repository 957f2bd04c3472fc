"""A whole Kubernetes of one machine, for what an API server alone does not show: scheduling, garbage collection, pods.

It is started by a program outside the project, which FATHOM_TEST_KUBE names: `PROGRAM up [--control-plane]`,
`PROGRAM nodes N --gpus G`, `PROGRAM image FOLDER NAME`, `PROGRAM env`, `PROGRAM down`, all of the folder KUBE_HOME.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import yaml

from support.kube_objects import until

Json = dict[str, Any]

_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAMED_BY = "FATHOM_TEST_KUBE"
BESIDE = Path(__file__).parents[3] / "shared" / "kube" / "cluster"
"""Where it lies if nobody names it."""
DEBIAN = {
    "containerd": "containerd", "ctr": "containerd", "runc": "runc", "iptables": "iptables", "conntrack": "conntrack",
    "debootstrap": "debootstrap", "/usr/lib/cni/bridge": "containernetworking-plugins",
}  # fmt: skip
"""Programs that a node and its images need, and Debian's packages that have them."""


_PATIENCE = 600
"""Seconds for one call of a program."""


class NoCluster(Exception):
    """It did not come up."""

    status = 75
    """Of a run of tests that ends for it."""


def find_program() -> Path | None:
    """None where there is none."""
    found = Path(os.environ.get(NAMED_BY) or BESIDE)
    return found if found.exists() else None


def definitions_beside() -> str:
    """The folder with the operators' definitions that lies beside the program; "" where there is none."""
    program = find_program()
    return str(program.parent / "crds") if program is not None and (program.parent / "crds").is_dir() else ""


def lacking(*, node: bool) -> list[str]:
    """What a control plane with pretended nodes, or a real node, needs and this machine does not have."""
    found = []
    if find_program() is None:
        found.append(f"the program that starts Kubernetes: it is not at {BESIDE}; name it in {NAMED_BY}")
    if node and os.geteuid() != 0:
        found.append(f"root: this is user {os.geteuid()}, and a node starts containers")
    if not os.environ.get("FATHOM_TEST_CRDS") and not definitions_beside():
        found.append("KubeRay's resource definitions: name their folder in FATHOM_TEST_CRDS")
    packages = sorted({package for program, package in DEBIAN.items() if shutil.which(program) is None}) if node else []
    if packages:
        found.append(f"Debian's packages: apt-get install {' '.join(packages)}")
    return found


class KubeHome:
    """One cluster: that of a folder, which begins with `up`, or one that runs already, by its kubeconfig."""

    def __init__(self, folder: Path, kubeconfig: Path | None = None) -> None:
        self.folder, self._given = folder, kubeconfig
        self._client: httpx2.Client | None = None
        self._namespaces = 0

    # ------------------------------------------------------------------ life
    def up(self, *options: str) -> None:
        """Until it answers; NoCluster with the program's own words where it does not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._program("up", *options)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            raise NoCluster(str(error)) from error

    def nodes(self, count: int, gpus: int) -> None:
        """Pretended ones, until all are ready."""
        self._program("nodes", str(count), "--gpus", str(gpus))

    def image(self, root: Path, name: str, *, env: Sequence[str] = ()) -> None:
        """Of a root folder, for the pods of the node."""
        self._program("image", str(root), name, "--user", "1000", *(part for one in env for part in ("--env", one)))

    def down(self) -> None:
        """With all that runs in it, unless it was there before."""
        if self._client is not None:
            self._client.close()
        if self._given is None:
            self._program("down")
            shutil.rmtree(self.folder / "containerd", ignore_errors=True)  # images; what programs said stays

    def _program(self, *words: str) -> str:
        program = find_program()
        assert program is not None, lacking(node=False)
        command, environment = [str(program), *words], {**os.environ, "KUBE_HOME": str(self.folder)}
        # to a file: what it starts in the background would hold a pipe open
        with tempfile.TemporaryFile("w+") as out:
            done = subprocess.run(command, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=_PATIENCE)
            out.seek(0)
            said = out.read()
        if done.returncode:
            raise RuntimeError(f"{program.name} {' '.join(words)}: {said.strip()[-2000:]}")
        return said

    # ------------------------------------------------------------------ ways in
    def kubeconfig(self) -> Path:
        return self._given or self.folder / "admin.kubeconfig"

    def client(self) -> httpx2.Client:
        """Plain HTTP as its administrator, who is known by a token."""
        if self._client is None:
            config = yaml.safe_load(self.kubeconfig().read_text())
            self._client = _client_of(config["clusters"][0]["cluster"], config["users"][0]["user"])
        return self._client

    def kubectl(self, *words: str, given: Json | None = None) -> str:
        """What it prints; AssertionError with its complaint."""
        done = subprocess.run(
            [str(self.assets() / "kubectl"), *words],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig())},
            input=None if given is None else json.dumps(given),
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr.strip()}"
        return done.stdout

    def assets(self) -> Path:
        """The folder with kubectl and helm."""
        found = re.search(r"KUBEBUILDER_ASSETS=(\S+)", self._program("env"))
        assert found is not None
        return Path(found[1])

    # ------------------------------------------------------------------ what tests begin with
    def namespace(self, **labels: str) -> str:
        """A new one, whose name no earlier run had; -> its name."""
        self._namespaces += 1
        name = f"test-{os.getpid()}-{self._namespaces}"
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        answer = self.client().post("/api/v1/namespaces", json=body)
        assert answer.status_code == 201, answer.text
        return name

    def install(self, definition: Json) -> None:
        """A custom resource definition, until its resources are served."""
        answer = self.client().post(_DEFINITIONS, json=definition)
        assert answer.status_code in (201, 409), answer.text
        path = f"{_DEFINITIONS}/{definition['metadata']['name']}"
        until(lambda: _is_established(self.found(path)), lambda: self.found(path))

    def found(self, path: str) -> Json | None:
        """One object; None where there is none."""
        answer = self.client().get(path)
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, answer.text
        document: Json = answer.json()
        return document

    def items(self, path: str, **query: str) -> list[Json]:
        """Of a list."""
        answer = self.client().get(path, params=query)
        assert answer.status_code == 200, answer.text
        listed: list[Json] = answer.json()["items"]
        return listed


def _is_established(definition: Json | None) -> bool:
    """It has no conditions at first, which `kubectl wait` takes for an error."""
    conditions = (definition or {}).get("status", {}).get("conditions") or []
    return "Established" in [one["type"] for one in conditions if one["status"] == "True"]


def _client_of(cluster: Json, user: Json) -> httpx2.Client:
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    headers = {"Authorization": f"Bearer {user['token']}"}
    return httpx2.Client(base_url=cluster["server"], headers=headers, verify=context, timeout=300, trust_env=False)
