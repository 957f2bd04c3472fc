"""What stands before MLflow's own web application: it refuses what the page of runs does not need.

Loaded by uvicorn in a process of its own, with the environment that `tracking.server` made. Switched off are the
parts that make the server call other machines or start programs: webhooks (MLflow has no switch for them), jobs,
the gateway to language models, and the assistant; and MLflow's demo, which fills the database. Requests that
change something must come from our own page.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from orchestrator.tracking.page import FirstSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_OFF = frozenset({
    "webhooks", "jobs", "prompt-optimization", "gateway", "gateway-proxy", "assistant", "scorer", "demo", "issues",
    "genai",
})  # fmt: skip
_NOT_HERE = {
    # Both would let whoever reaches this server read and write the files of whoever started it.
    "experiments/create": "experiments are made by training, not here: their files could lie anywhere",
    "upload-artifact": "files are added by training, not here",
}
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_READING_BY_POST = frozenset({
    "experiments/search", "experiments/search-datasets", "runs/search", "logged-models/search", "graphql",
    "traces/search", "traces/metrics", "datasets/search", "model-versions/search", "registered-models/search",
})  # fmt: skip


class Gate:
    """An ASGI application around another."""

    def __init__(self, inner: Application, *, read_only: bool) -> None:
        self._inner, self._read_only = inner, read_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] != "http":
            await self._inner(scope, receive, send)
        elif (reason := self._refusal(scope)) is not None:
            await _refuse(send, reason)
        else:
            whole_page = scope["path"] == "/" and scope["method"] == "GET"
            await self._inner(scope, receive, FirstSettings(send) if whole_page else send)

    def _refusal(self, scope: Scope) -> str | None:
        parts = api_path(scope["path"])
        if parts and parts[0] in _OFF:
            return f"{parts[0]} are switched off on this server"
        if scope["method"] in _READING:
            return None
        if not _own_page(scope):
            return "requests from other web pages are refused"
        endpoint = "/".join(parts)
        if endpoint in _NOT_HERE:
            return _NOT_HERE[endpoint]
        if "traces" in parts[:2] and endpoint not in _READING_BY_POST:
            return "training leaves no traces: whoever writes one here could have any folder's files served"
        if self._read_only and endpoint not in _READING_BY_POST:
            return "this server only shows runs: log in to a server with passwords to change them"
        return None


def api_path(path: str) -> list[str]:
    """The parts of a path that say what is asked for: without empty ones, `api`, the version and `mlflow`."""
    parts = [part for part in path.split("/") if part]
    if parts and parts[0] in ("api", "ajax-api"):
        parts = parts[2:]
        if parts and parts[0] == "mlflow":
            parts = parts[1:]
    return parts


def create() -> Gate:
    """The application that uvicorn serves; its settings are in the environment, as for MLflow's own."""
    warnings.simplefilter("ignore")  # deprecations inside MLflow are not the reader's concern
    from mlflow.exceptions import MlflowException
    from mlflow.server import handlers

    uri, root = os.environ["_MLFLOW_SERVER_FILE_STORE"], os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"]
    try:
        handlers.initialize_backend_stores(uri, uri, root)
    except MlflowException as error:
        raise SystemExit(f"error: {uri} cannot be served: {error}") from None
    return Gate(_with_login() if "MLFLOW_AUTH_CONFIG_PATH" in os.environ else _without_login(), read_only=_read_only())


def _read_only() -> bool:
    return os.environ.get("FATHOM_MLFLOW_READ_ONLY") != "false"


def _without_login() -> Application:
    from mlflow.server import fastapi_app

    app: Application = fastapi_app.app
    return app


def _with_login() -> Application:
    from mlflow.server import auth

    app: Application = auth.create_app()
    if auth.store.authenticate_user("admin", "password1234"):
        raise SystemExit(
            "error: the user admin still has the password that older MLflow gave to everybody: "
            "set another in MLFLOW_AUTH_ADMIN_PASSWORD with MLflow 3.17, or delete the database of users"
        )
    return app


def _own_page(scope: Scope) -> bool:
    """Programs send no Origin; a browser's must be the address that it talks to."""
    headers = {name.lower(): value for name, value in scope["headers"]}
    origin = headers.get(b"origin")
    return origin is None or urlsplit(origin.decode("latin-1")).netloc == headers.get(b"host", b"").decode("latin-1")


async def _refuse(send: Send, reason: str) -> None:
    body = json.dumps({"error_code": "PERMISSION_DENIED", "message": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
