"""`fathom controller` as a process of its own, against a real API server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from support.apiserver import ApiServer
from support.shooting import wait_until

PRICES = """
- {accelerator: cpu, priceClass: on-demand, amount: "0.05", currency: USD,
   unit: cpu-hour, source: test, date: 2026-01-01}
"""


class ControllerProcess:
    """One replica; it looks after one namespace, where its Lease is, too."""

    def __init__(
        self,
        server: ApiServer,
        folder: Path,
        namespace: str,
        name: str = "one",
        host: str = "127.0.0.1",
        kubeconfig: Path | None = None,
    ) -> None:
        """`kubeconfig`: of another way to the server."""
        folder.mkdir(exist_ok=True)
        self.home, self._log = folder / "home", folder / f"{name}.log"
        settings, prices = folder / "cluster.json", folder / "prices.yaml"
        settings.write_text(json.dumps({"images": {"train": "registry.example.com/train@sha256:" + "a" * 64}}))
        prices.write_text(PRICES)
        arguments = {"cluster-settings": settings, "host": host, "port": 0, "namespace": namespace}
        arguments |= {"lease-namespace": namespace, "lease-name": "lease"}
        environment = os.environ | {
            "KUBECONFIG": str(kubeconfig or server.kubeconfig()), "POD_NAME": name, "FATHOM_HOME": str(self.home),
            "FATHOM_PRICES": str(prices), "MLFLOW_TRACKING_URI": "",
        }  # fmt: skip
        command = [sys.executable, "-m", "orchestrator.cli", "controller"]
        command += [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
        self.port = self._port()
        self.url = f"http://127.0.0.1:{self.port}"

    def _port(self) -> int:
        found: list[str] = []

        def told() -> bool:
            found[:] = re.findall(r"port (\d+), with home", self.log())
            assert self.process.poll() is None, self.log()
            return bool(found)

        wait_until(told, self.log)
        return int(found[0])

    def log(self) -> str:
        return self._log.read_text()

    def ask(self, method: str, path: str, token: str = "", body: Any = None) -> httpx2.Response:  # noqa: ANN401
        headers = {"X-Fathom-Authorization": f"Bearer {token}"} if token else {}
        return httpx2.request(method, self.url + path, headers=headers, json=body, timeout=120, trust_env=False)

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log()
            return self.ask("GET", "/readyz").status_code == 200

        wait_until(ready, self.log)

    def end(self) -> int:
        """As a pod is ended; -> its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(240)

    def kill(self) -> None:
        """Whatever is left."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
