"""How MLflow's page is served: what is refused, and what command and environment come out."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UsageError
from orchestrator.settings import Settings
from orchestrator.tracking import login
from orchestrator.tracking.gate import Gate, api_path
from orchestrator.tracking.hosts import host_headers, is_loopback, require_free
from orchestrator.tracking.login import Login, read_login
from orchestrator.tracking.page import SCRIPT
from orchestrator.tracking.server import Server, experiments, plan

SECRET = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "0123456789abcdef"}


def served(home: Path, env: Mapping[str, str] | None = None, **options: Any) -> Server:  # noqa: ANN401 - options of plan
    settings = Settings.load({"FATHOM_HOME": str(home), "MLFLOW_TRACKING_URI": options.pop("tracking", "")})
    wanted: dict[str, Any] = {"host": "127.0.0.1", "port": 5000, "version": "3.17.2"} | options
    return plan(settings, env or {}, **wanted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tracking": "https://me:secret@mlflow.example.org/x"}, ["https://mlflow.example.org/x", "already"]),
        ({"tracking": "postgresql://db/x"}, ["postgresql", "mlflow server"]),
        ({"version": "3.14.1"}, ["3.14.1", "pip install 'mlflow>=3.15'"]),
        ({"version": "2.22"}, ["2.22"]),
        ({"host": "0.0.0.0"}, ["0.0.0.0", "--allowed-host"]),
        ({"host": "::"}, ["--allowed-host"]),
        ({"allowed_hosts": ["*"]}, ["--allowed-host *"]),
        ({"host": "0.0.0.0", "allowed_hosts": ["a.example.org", "*.example.org"]}, ["*.example.org"]),
        ({"allowed_hosts": ["http://a.example.org"]}, ["http://a.example.org", "leave out"]),
        ({"allowed_hosts": ["a,b"]}, ["a,b"]),
    ],
)
def test_what_is_not_safe_is_refused(tmp_path: Path, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        served(tmp_path, **options)
    for word in words:
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("version", ["3.15.0", "3.17.2", "4.0rc1", "3.100"])
def test_new_enough(tmp_path: Path, version: str) -> None:
    assert served(tmp_path, version=version).database == tmp_path / "mlflow.db"


def test_the_command_is_one_uvicorn_around_the_gate(tmp_path: Path) -> None:
    argv = served(tmp_path, port=5017).argv
    assert argv[1:6] == ("-P", "-m", "uvicorn", "--factory", "orchestrator.tracking.gate:create")
    pairs = dict(itertools.pairwise(argv))
    assert (pairs["--host"], pairs["--port"], pairs["--workers"]) == ("127.0.0.1", "5017", "1")


def test_the_environment_holds_the_settings_and_nothing_that_weakens_them(tmp_path: Path) -> None:
    hostile = {
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "*",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "true",
        "MLFLOW_ENABLE_REMOTE_ASSISTANT": "true",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "prometheus_multiproc_dir": "x",
        "UVICORN_HOST": "0.0.0.0",
        "MLFLOW_S3_ENDPOINT_URL": "http://minio",
        "PATH": "/bin",
    }
    env = served(tmp_path, hostile).env
    ours = {
        "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:5000,127.0.0.1,localhost:5000,localhost,[::1]:5000,[::1]",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_X_FRAME_OPTIONS": "SAMEORIGIN",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "none",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": (tmp_path / "mlartifacts").as_uri(),
        "FATHOM_MLFLOW_READ_ONLY": "false",
    }
    assert env == ours | {"MLFLOW_S3_ENDPOINT_URL": "http://minio", "PATH": "/bin"}


def test_the_names_are_those_that_mlflow_reads() -> None:
    from mlflow import environment_variables as mlflow
    from mlflow.server import constants

    assert constants.BACKEND_STORE_URI_ENV_VAR == "_MLFLOW_SERVER_FILE_STORE"
    assert constants.ARTIFACT_ROOT_ENV_VAR == "_MLFLOW_SERVER_ARTIFACT_ROOT"
    assert constants.SERVE_ARTIFACTS_ENV_VAR == "_MLFLOW_SERVER_SERVE_ARTIFACTS"
    assert mlflow._MLFLOW_SGI_NAME.name == "_MLFLOW_SGI_NAME"
    for name in ("SERVER_ALLOWED_HOSTS", "SERVER_ENABLE_JOB_EXECUTION", "SERVER_X_FRAME_OPTIONS", "DISABLE_TELEMETRY"):
        assert getattr(mlflow, f"MLFLOW_{name}").name == f"MLFLOW_{name}"
    assert mlflow._MLFLOW_WEBHOOK_ALLOWED_SCHEMES.name == "MLFLOW_WEBHOOK_ALLOWED_SCHEMES"


def test_others_only_look_unless_they_log_in(tmp_path: Path) -> None:
    options: dict[str, Any] = {"host": "0.0.0.0", "allowed_hosts": ["m.example.org"]}
    shown = served(tmp_path, **options)
    assert shown.env["FATHOM_MLFLOW_READ_ONLY"] == "true"
    assert shown.env["MLFLOW_SERVER_ALLOWED_HOSTS"] == "m.example.org:5000,m.example.org"
    assert shown.url == "http://m.example.org:5000"
    asked = served(tmp_path, **options, login=Login({"MLFLOW_AUTH_CONFIG_PATH": "/x"}))
    assert asked.env["FATHOM_MLFLOW_READ_ONLY"] == "false"
    assert asked.env["MLFLOW_AUTH_CONFIG_PATH"] == "/x"


def test_hosts() -> None:
    assert [is_loopback(host) for host in ("localhost", "127.0.0.9", "::1", "10.0.0.1", "example.org")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert host_headers("::1", 7, [])[0] == "[::1]:7"
    assert host_headers("127.0.0.1", 7, ["tunnel:8080"])[-1] == "tunnel:8080"


def test_a_port_in_use_is_named_and_another_suggested() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} of 127.0.0.1 .*try --port \d+"):
            require_free("127.0.0.1", port)
    require_free("127.0.0.1", port)


@pytest.mark.parametrize(
    ("password", "env", "words"),
    [
        ("password1234", SECRET, "everybody knows"),
        ("admin", SECRET, "everybody knows"),
        ("", SECRET, "no password"),
        ("short", SECRET, "5 characters"),
        ("a long password", SECRET | {"MLFLOW_AUTH_ADMIN_PASSWORD": "password1234"}, "everybody knows"),
        ("a long password", {}, "MLFLOW_FLASK_SERVER_SECRET_KEY"),
    ],
)
def test_a_password_that_keeps_nobody_out_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str, env: dict[str, str], words: str
) -> None:
    monkeypatch.setattr(login.importlib.util, "find_spec", lambda name: object())
    config = tmp_path / "basic_auth.ini"
    config.write_text(f"[mlflow]\nadmin_username = admin\nadmin_password = {password}\n")
    with pytest.raises(UsageError, match=words):
        read_login(config, env)
    good = env | SECRET | {"MLFLOW_AUTH_ADMIN_PASSWORD": "another long password"}
    assert read_login(config, good).env == {"MLFLOW_AUTH_CONFIG_PATH": str(config)}


def test_a_login_needs_its_packages_and_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"mlflow\[auth\]"):
        read_login(tmp_path / "x", SECRET)
    monkeypatch.setattr(login.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match="cannot be read"):
        read_login(tmp_path / "x", SECRET)
    (tmp_path / "x").write_text("nonsense")
    with pytest.raises(UsageError, match="needs a section"):
        read_login(tmp_path / "x", SECRET)


def test_no_experiments_where_nothing_was_tracked(tmp_path: Path) -> None:
    assert experiments(tmp_path / "none.db") == []
    assert not os.listdir(tmp_path)


def ask(
    method: str, path: str, *, read_only: bool = False, page: bytes = b"", **headers: str
) -> tuple[int, dict[bytes, bytes], bytes]:
    """What comes back through the gate from an application that answers everything with `page`."""
    sent: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        start = [(b"content-length", b"1"), (b"etag", b"x"), (b"x-kept", b"y")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        for part in (page[:5], page[5:]):
            await send({"type": "http.response.body", "body": part, "more_body": part == page[:5]})

    async def send(message: Any) -> None:  # noqa: ANN401
        sent.append(message)

    async def receive() -> Any:  # noqa: ANN401
        return {}

    pairs = [(name.encode(), value.encode()) for name, value in ({"host": "here:1"} | headers).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    asyncio.run(Gate(inner, read_only=read_only)(scope, receive, send))
    start, *rest = sent
    return start["status"], dict(start["headers"]), b"".join(one["body"] for one in rest)


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/api/2.0/mlflow/webhooks", {}),
        ("GET", "//ajax-api//2.0/mlflow/webhooks/7/", {}),
        ("POST", "/ajax-api/3.0/jobs/", {}),
        ("GET", "/ajax-api/3.0/mlflow/jobs/7", {}),
        ("POST", "/api/3.0/mlflow/prompt-optimization/jobs", {}),
        ("POST", "/gateway/mine/mlflow/invocations", {}),
        ("POST", "/ajax-api/2.0/mlflow/gateway-proxy", {}),
        ("PATCH", "/api/3.0/mlflow/traces/tr-1/tags", {}),
        ("POST", "/v1/traces", {}),
        ("POST", "/ajax-api/3.0/mlflow/issues/invoke", {}),
        ("POST", "/ajax-api/3.0/mlflow/genai/evaluate/invoke", {}),
        ("GET", "/ajax-api/3.0/mlflow/assistant/config", {}),
        ("POST", "/ajax-api/3.0/mlflow/demo/generate", {}),
        ("POST", "/api/2.0/mlflow/experiments/create", {}),
        ("POST", "/ajax-api/2.0/mlflow/upload-artifact", {}),
        ("POST", "/api/2.0/mlflow/runs/delete", {"origin": "http://localhost:3000"}),
        ("POST", "/api/2.0/mlflow/runs/delete", {"origin": "null"}),
    ],
)
def test_the_gate_refuses(method: str, path: str, headers: dict[str, str]) -> None:
    status, _, body = ask(method, path, **headers)
    assert status == 403
    assert json.loads(body)["error_code"] == "PERMISSION_DENIED"


def test_the_gate_lets_the_page_work() -> None:
    assert ask("POST", "/ajax-api/2.0/mlflow/runs/search", read_only=True, origin="http://here:1")[0] == 200
    assert ask("POST", "/ajax-api/2.0/mlflow/runs/delete", read_only=True, origin="http://here:1")[0] == 403
    assert ask("POST", "/ajax-api/2.0/mlflow/runs/delete", origin="http://here:1")[0] == 200
    assert ask("POST", "/api/2.0/mlflow/runs/update")[0] == 200
    assert ask("GET", "/get-artifact", origin="http://elsewhere")[0] == 200
    assert api_path("/static-files/jobs/webhooks.js") == ["static-files", "jobs", "webhooks.js"]


def test_the_page_gets_its_first_settings_and_nothing_else_does() -> None:
    page = b"<html><head><title>x</title></head></html>"
    status, headers, body = ask("GET", "/", page=page)
    assert status == 200
    assert body == page.replace(b"<head>", b"<head>" + SCRIPT.encode())
    assert headers == {b"x-kept": b"y", b"content-length": str(len(body)).encode(), b"cache-control": b"no-store"}
    assert ask("GET", "/static-files/x.js", page=page)[2] == page
