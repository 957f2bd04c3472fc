"""MLflow's server as the chart starts it, in a folder of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from support.helm import Helm, pod_specs
from support.ports import free_ports

pytestmark = pytest.mark.processes
SERVICE = "fathom-mlflow.fathom-system.svc:5000"


@pytest.fixture(scope="module")
def server(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """Its command and its environment, but on a free port of this machine."""
    folder = tmp_path_factory.mktemp("mlflow")
    [port] = free_ports(1)
    [container] = pod_specs(helm.rendered({"mlflow": {"allowedHosts": ["runs.example.com"]}}))["fathom-mlflow"][
        "containers"
    ]
    python, *command = [one.replace("/var/lib/mlflow", str(folder)) for one in container["command"]]
    assert (python, "--host=0.0.0.0" in command, "--port=5000" in command) == ("python3", True, True)
    here = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}"}
    env = {one["name"]: one["value"] for one in container["env"]} | {"HOME": str(folder), "PATH": os.environ["PATH"]}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *(here.get(one, one) for one in command)], env=env, cwd=folder, stdout=log, stderr=log
        )
    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False)
    try:
        _wait(client, process, folder / "log")
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(240)


def _wait(client: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (SERVICE, 200),
        ("fathom-mlflow:5000", 200),
        ("localhost:5000", 200),  # a forwarded port
        ("runs.example.com", 200),
        ("elsewhere.example.com", 403),
        ("fathom-mlflow.other.svc:5000", 403),
    ],
)
def test_it_answers_under_its_names_only(server: httpx2.Client, host: str, status: int) -> None:
    body = {"max_results": 10}
    answer = server.post("/api/2.0/mlflow/experiments/search", json=body, headers={"Host": host})
    assert answer.status_code == status, answer.text


def test_probes_ask_under_the_address_of_the_pod(server: httpx2.Client) -> None:
    assert server.get("/health", headers={"Host": "10.1.2.3:5000"}).status_code == 200


def test_runs_and_their_files_are_kept_by_the_server(server: httpx2.Client) -> None:
    """So that the controller needs no volume of MLflow's."""
    headers = {"Host": SERVICE}
    made = server.post("/api/2.0/mlflow/experiments/create", json={"name": "a"}, headers=headers)
    assert made.status_code == 200, made.text
    number = made.json()["experiment_id"]
    found = server.get("/api/2.0/mlflow/experiments/get", params={"experiment_id": number}, headers=headers).json()
    assert found["experiment"]["artifact_location"].startswith("mlflow-artifacts:/")
