"""The controller as the chart starts it, under the chart's account, on a real API server: it is forbidden nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support import operators
from support.apiserver import ApiServer
from support.controller_process import PRICES
from support.helm import IMAGES, Helm, find_helm, merged, pod_specs, the
from support.kube_people import KubePeople
from support.kuberay_player import RAY_JOBS, SUPPORTING
from support.shooting import wait_until
from support.store import small_document

pytestmark = pytest.mark.kube
TRAIN = {"images": {"train": "registry.example.com/fathom-train@sha256:" + "5f" * 32}}


class Started:
    """What the chart says of the controller's container, as a process of this machine."""

    def __init__(self, server: ApiServer, folder: Path, helm: Helm, home: str, values: dict[str, Any]) -> None:
        self.server, self._log = server, folder / "log"
        helm.done("upgrade", "--install", "fathom", "{}", "--namespace", home, values=values)
        objects = helm.rendered(values, home)
        [container] = pod_specs(objects)["fathom-controller"]["containers"]
        for mount in ("settings", "tables"):
            (folder / mount).mkdir(parents=True)
            for name, text in the(objects, "ConfigMap", f"fathom-{mount}")["data"].items():
                (folder / mount / name).write_text(text)
        (folder / "tables" / "prices.yaml").write_text(PRICES)
        here = {
            "/etc/fathom": str(folder),
            "/var/lib/fathom": str(folder / "home"),
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=8080": "--port=0",
        }
        downward = {"metadata.name": "one", "metadata.namespace": home}
        env = {
            one["name"]: _moved(one["value"], here) if "value" in one else downward[_field(one)]
            for one in container["env"]
        }
        env |= {"KUBECONFIG": str(self._kubeconfig(folder, home)), "MLFLOW_TRACKING_URI": "", "HOME": str(folder)}
        python, *command = [_moved(one, here) for one in container["command"]]
        assert python == "python3"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], env=os.environ | env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self._probe = container["readinessProbe"]["httpGet"]

    def _kubeconfig(self, folder: Path, home: str) -> Path:
        """Of the account, by a token as its pod has it."""
        token = KubePeople(self.server).token(home, "fathom-controller", "https://kubernetes.default.svc")
        config = json.loads(self.server.kubeconfig().read_text())
        config["users"][0]["user"] = {"token": token}
        path = folder / "kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def log(self) -> str:
        return self._log.read_text()

    def ready(self) -> bool:
        """As the kubelet asks."""
        assert self.process.poll() is None, self.log()
        port = re.search(r"port (\d+), with home", self.log())
        if port is None:
            return False
        headers = {one["name"]: one["value"] for one in self._probe["httpHeaders"]}
        url = f"http://127.0.0.1:{port[1]}{self._probe['path']}"
        return httpx2.get(url, headers=headers, trust_env=False, timeout=120).status_code == 200

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(240)


def _field(variable: dict[str, Any]) -> str:
    path: str = variable["valueFrom"]["fieldRef"]["fieldPath"]
    return path


def _moved(text: str, here: dict[str, str]) -> str:
    for there, place in here.items():
        text = text.replace(there, place)
    return text


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    """With the definitions of the operators; the chart brings ours."""
    from support.envtest import NOT_RUN, find_assets

    assets, definitions = find_assets(), operators.definitions()
    if assets is None or definitions is None:
        pytest.skip(NOT_RUN if assets is None else operators.NOT_RUN)
    made = ApiServer(tmp_path / "kube", assets)
    try:
        made.start()
        operators.installed(made, definitions)
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("scope", ["cluster", "namespaces"])
def test_a_job_comes_and_goes(server: ApiServer, helm: Helm, tmp_path: Path, scope: str) -> None:
    program = find_helm()
    assert program is not None
    home, team, client = server.namespace(), server.namespace(), server.client()
    values = merged(merged(IMAGES, TRAIN), {"watchNamespaces": [team]} if scope == "namespaces" else {})
    started = Started(server, tmp_path / "pod", Helm(program, tmp_path / "helm", server.kubeconfig()), home, values)
    try:
        wait_until(started.ready, started.log)
        data = {"source": "pvc://data/corpus", "sequenceLength": 32}
        queue, storage = {"name": "team-a"}, {"uri": "pvc://runs/one"}
        document = small_document("one", team, data=data, checkpoint=storage, queue=queue)
        jobs = f"/apis/fathom.dev/v1alpha1/namespaces/{team}/trainingjobs"
        body = {"apiVersion": "fathom.dev/v1alpha1", "kind": "TrainingJob", **document}
        assert client.post(jobs, json=body).status_code == 201

        def gated() -> bool | None:
            found = client.get(f"{RAY_JOBS.format(team)}/one-a1")
            if found.status_code != 200:
                return None
            return "kueue.x-k8s.io/admission-gated-by" in found.json()["metadata"].get("annotations", {})

        wait_until(lambda: gated() is False, lambda: client.get(f"{jobs}/one").text + started.log())
        made = [path for path in SUPPORTING if client.get(f"{path.format(team)}/one-a1").status_code == 200]
        assert made == list(SUPPORTING)

        assert client.delete(f"{jobs}/one").status_code == 200
        wait_until(lambda: client.get(f"{jobs}/one").status_code == 404, started.log)
        left = [
            path for path in (RAY_JOBS, *SUPPORTING) if client.get(f"{path.format(team)}/one-a1").status_code == 200
        ]
        assert left == []
    finally:
        started.end()
    assert not re.search(r"(?i)forbidden|may not|403", started.log()), started.log()
    lease = client.get(f"/apis/coordination.k8s.io/v1/namespaces/{home}/leases/fathom-controller").json()
    given_back = lease["spec"]["holderIdentity"] == ""
    assert given_back or "is not released, it runs out" in started.log(), "a server that is too busy is not waited for"
