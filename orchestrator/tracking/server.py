"""How the local MLflow page is served: options in, a command and its environment out; nothing is started here.

Called by `cli.mlflow`. Invariants: one uvicorn process around `tracking.gate`; a Host header must be one that
was named; of the caller's MLFLOW_* variables only those listed here reach the server, because others switch
its checks off.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.errors import UsageError
from orchestrator.settings import Settings
from orchestrator.tracking.hosts import host_headers, is_loopback
from orchestrator.tracking.login import Login
from orchestrator.tracking.view import VIEW_TAG

OLDEST = (3, 15)
"""First MLflow whose checks of who asks are worth relying on."""
_KEPT = ("MLFLOW_S3_", "MLFLOW_AUTH_ADMIN_", "MLFLOW_FLASK_SERVER_SECRET_KEY")
_DROPPED = ("MLFLOW_", "_MLFLOW_", "UVICORN_", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "PROMETHEUS_MULTIPROC_DIR")
_SOURCE = Path(__file__).parents[2]
_FIXED = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SERVER_X_FRAME_OPTIONS": "SAMEORIGIN",
    # No URL has this scheme, so that webhooks which are in the database already are not called either.
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "none",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # How `mlflow server` tells its own process that it runs under uvicorn.
    "_MLFLOW_SGI_NAME": "uvicorn",
}


@dataclass(frozen=True)
class Server:
    """A page to be served: `env` is its whole environment."""

    database: Path
    url: str
    argv: tuple[str, ...]
    env: Mapping[str, str]


def plan(
    settings: Settings,
    env: Mapping[str, str],
    *,
    host: str,
    port: int,
    allowed_hosts: Sequence[str] = (),
    login: Login | None = None,
    version: str | None = None,
) -> Server:
    """The server for these options; UsageError where it would not be safe. `env` is the caller's environment."""
    database = local_database(settings)
    require_version(installed() if version is None else version)
    headers = host_headers(host, port, allowed_hosts)
    ours = {
        **_FIXED,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(headers),
        # Names of `mlflow.server.constants`: what `mlflow server` hands to its processes. That artifacts are not
        # passed through is the absence of _MLFLOW_SERVER_SERVE_ARTIFACTS.
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": (database.parent / "mlartifacts").as_uri(),
        # Where anybody comes in without a password, nobody changes anything.
        "FATHOM_MLFLOW_READ_ONLY": "false" if is_loopback(host) or login is not None else "true",
        **(login.env if login is not None else {}),
    }
    return Server(database, f"http://{headers[0]}", _argv(host, port), _without_theirs(env) | ours)


def local_database(settings: Settings) -> Path:
    """The SQLite file; UsageError where MLflow is somewhere else."""
    parts = urlsplit(settings.tracking_uri)
    if parts.scheme in ("http", "https"):
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        raise UsageError(f"MLFLOW_TRACKING_URI names a server, which has the runs and their page already: {address}")
    if not settings.tracking_uri.startswith("sqlite:///"):
        raise UsageError(
            f"runs are tracked in {parts.scheme or 'files'}, but this command serves SQLite only: "
            "run `mlflow server` for it, or unset MLFLOW_TRACKING_URI"
        )
    return Path(settings.tracking_uri.removeprefix("sqlite:///")).absolute()


def installed() -> str:
    """Version of the installed MLflow."""
    try:
        return metadata.version("mlflow")
    except metadata.PackageNotFoundError:
        raise UsageError("MLflow is not installed: run `pip install 'fathom-train[train]'`") from None


def require_version(version: str) -> None:
    """UsageError for an MLflow without the checks that we count on."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        least = ".".join(map(str, OLDEST))
        raise UsageError(
            f"MLflow {version} is installed, but only {least} and newer check well enough who asks: "
            f"run `pip install 'mlflow>={least}'`"
        )


def experiments(database: Path) -> list[tuple[str, str]]:
    """Ids and names of the experiments that have our view; none where nothing was tracked yet."""
    query = (
        "select experiment_id, name from experiments join experiment_tags using (experiment_id) "
        "where lifecycle_stage = 'active' and key = ? order by experiment_id"
    )
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=1)
        try:
            return [(str(number), str(name)) for number, name in connection.execute(query, (VIEW_TAG,))]
        finally:
            connection.close()
    except sqlite3.Error:
        return []


def _argv(host: str, port: int) -> tuple[str, ...]:
    # -P and --app-dir: a folder named mlflow or model where the command is called must not be taken for the package.
    return (
        sys.executable, "-P", "-m", "uvicorn", "--factory", "orchestrator.tracking.gate:create",
        "--app-dir", str(_SOURCE), "--host", host, "--port", str(port), "--workers", "1",
        "--log-level", "warning", "--no-access-log", "--no-server-header", "--no-proxy-headers",
        "--timeout-graceful-shutdown", "3",
    )  # fmt: skip


def _without_theirs(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in env.items() if name.startswith(_KEPT) or not name.upper().startswith(_DROPPED)
    }
