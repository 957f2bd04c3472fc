"""`fathom mlflow` as a process: what it refuses, what its server answers, and that nothing of it is left."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.home import wait_for
from support.ports import free_ports

ROOT = Path(__file__).parents[3]
HOSTILE = {
    "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "true",
    "MLFLOW_TRACKING_URI": "",
    "FATHOM_TRACKING_URI": "",
}


def start(home: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from orchestrator.cli.main import main; main()", "mlflow", *options]
    environment = os.environ | HOSTILE | {"PYTHONPATH": str(ROOT), "FATHOM_HOME": str(home)} | variables
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home.parent, env=environment,
        start_new_session=True,
    )  # fmt: skip


@contextmanager
def serving(home: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """A server that answers; killed if the test did not end it."""
    process = start(home, "--port", str(port))

    def up() -> bool | None:
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        try:
            return ask(port, "GET", "/health")[0] == 200 or None
        except OSError:
            return None

    try:
        wait_for(up)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ask(port: int, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        kind = {} if body is None else {"content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), kind | headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("options", "variables", "words"),
    [
        ([], {"MLFLOW_TRACKING_URI": "http://mlflow.example.org"}, "already: http://mlflow.example.org"),
        (["--host", "0.0.0.0"], {}, "--allowed-host"),
        (["--allowed-host", "*"], {}, "--allowed-host *"),
        (["--port", "70000"], {}, "65535"),
    ],
)
def test_refusals(tmp_path: Path, options: list[str], variables: dict[str, str], words: str) -> None:
    process = start(tmp_path / "runs", *options, **variables)
    out, err = process.communicate(timeout=180)
    assert (process.returncode, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(tmp_path / "runs", "--port", str(port))
        _, err = process.communicate(timeout=180)
    assert process.returncode == 2
    assert f"port {port} of 127.0.0.1" in err
    assert "try --port" in err


@pytest.mark.processes
def test_a_server_answers_us_only_and_ends_without_a_trace(tmp_path: Path) -> None:
    [port] = free_ports(1)
    with serving(tmp_path / "runs", port) as process:
        assert ask(port, "GET", "/")[0] == 200
        assert ask(port, "GET", "/", host="evil.example.org")[0] == 403
        assert ask(port, "POST", "/api/2.0/mlflow/runs/search", {"experiment_ids": ["0"]}, host="evil")[0] == 403
        hook: Any = {"name": "x", "url": "https://example.org", "events": []}
        assert ask(port, "POST", "/api/2.0/mlflow/webhooks", hook)[0] == 403
        assert ask(port, "POST", "/ajax-api/3.0/jobs/", {"job_name": "x", "params": {}})[0] == 403
        assert_pictures_are_shown(port)
        assert psutil.Process(process.pid).children() == []
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=180)
    assert process.returncode in (0, 130, -signal.SIGINT)
    assert f"MLflow: http://127.0.0.1:{port}" in out
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    with socket.create_server(("127.0.0.1", port)):
        pass


def assert_pictures_are_shown(port: int) -> None:
    """The server reads a run's files itself, but takes and passes through none."""
    status, answer = ask(port, "POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0"})
    assert status == 200, answer
    run = json.loads(answer)["run"]["info"]
    folder = Path(run["artifact_uri"].removeprefix("file://"))
    folder.mkdir(parents=True)
    (folder / "loss.png").write_bytes(b"a picture")
    assert ask(port, "GET", f"/get-artifact?path=loss.png&run_uuid={run['run_id']}") == (200, b"a picture")
    assert ask(port, "GET", "/api/2.0/mlflow-artifacts/artifacts?path=x")[0] == 503
    assert ask(port, "POST", "/api/2.0/mlflow/experiments/create", {"name": "x"})[0] == 403
