"""What a replica answers until it leads: that it lives, that it is not ready, and nothing else.

Only the leader has the application, because only one process may use the home's files; the Service of a cluster leads
to what is ready, so that nobody but probes and those who go around the Service come here.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.api.problems import Refusal, refuse


class Standby:
    """An ASGI application with another one behind it, once there is one."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None

    def lead(self, app: ASGIApp) -> None:
        """Answer with this from now on. From any thread."""
        self._app = app

    @property
    def state(self) -> Any:  # noqa: ANN401 - of the application that leads, as `api.server` looks for it
        return getattr(self._app, "state", None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if app is not None and scope["type"] != "lifespan":
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await _answer(scope, receive, send)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/livez" and scope["method"] in ("GET", "HEAD"):
        await PlainTextResponse("ok\n")(scope, receive, send)
    elif scope["path"] == "/readyz" and scope["method"] in ("GET", "HEAD"):
        await PlainTextResponse("not ready: standby\n", 503)(scope, receive, send)
    else:
        detail = "this replica stands by, another one leads: ask the Service, which leads to it"
        await refuse(scope, receive, send, Refusal("unavailable", detail, headers={"Retry-After": "5"}))
