"""The controller as the chart starts it, under the chart's account, as a process of this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import httpx2

from support.controller_process import PRICES
from support.helm import Helm, pod_specs, the
from support.kube_people import KubePeople


class Server(Protocol):
    """Any Kubernetes."""

    def client(self) -> httpx2.Client:
        """Of its administrator."""

    def kubeconfig(self) -> Path:
        """JSON."""


class ChartProcess:
    """What the chart says of the controller's container."""

    def __init__(
        self, server: Server, folder: Path, helm: Helm, home: str, values: dict[str, Any], prices: str = PRICES
    ) -> None:
        self.server, self._log = server, folder / "log"
        helm.done("upgrade", "--install", "fathom", "{}", "--namespace", home, values=values)
        objects = helm.rendered(values, home)
        [container] = pod_specs(objects)["fathom-controller"]["containers"]
        for mount in ("settings", "tables"):
            (folder / mount).mkdir(parents=True)
            for name, text in the(objects, "ConfigMap", f"fathom-{mount}")["data"].items():
                (folder / mount / name).write_text(text)
        (folder / "tables" / "prices.yaml").write_text(prices)
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
        self._command, self._env = [sys.executable, *command], os.environ | env
        self.start()
        self._probe = container["readinessProbe"]["httpGet"]

    def start(self) -> None:
        """Once more, as the kubelet does with a container that has ended."""
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, env=self._env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

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

    def url(self) -> str:
        """ "" until it listens."""
        port = re.search(r"port (\d+), with home", self.log())
        return "" if port is None else f"http://127.0.0.1:{port[1]}"

    def ready(self) -> bool:
        """As the kubelet asks."""
        assert self.process.poll() is None, self.log()
        if not self.url():
            return False
        headers = {one["name"]: one["value"] for one in self._probe["httpHeaders"]}
        return (
            httpx2.get(self.url() + self._probe["path"], headers=headers, trust_env=False, timeout=120).status_code
            == 200
        )

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
