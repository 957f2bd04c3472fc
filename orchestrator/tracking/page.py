"""First settings of MLflow's page in a browser that opens it for the first time. Used by `tracking.gate`.

MLflow keeps them in the browser and starts as a page for applications of language models, with a panel of its
assistant (which the gate refuses) over a third of the screen, and a notice that it reports how it is used (which
it does not here). What a reader has chosen is left alone. An MLflow
that calls these settings something else shows its own defaults again, nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

_SETTINGS = {
    "mlflow.workflowType_v1": json.dumps("machine_learning"),
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": json.dumps(True),
    "mlflow.settings.telemetry.enabled_v1": json.dumps(False),
    "mlflow.telemetry.info.alert.dismissed_v1": json.dumps(True),
}
SCRIPT = (
    f"<script>for(const[k,v]of Object.entries({json.dumps(_SETTINGS)}))"
    "try{localStorage.getItem(k)??localStorage.setItem(k,v)}catch{}</script>"
)
_OF_THE_BODY = frozenset({b"content-length", b"etag", b"last-modified"})
"""Headers that would be wrong; without the last two a browser does not ask whether its old copy is still good."""


class FirstSettings:
    """A `send` that puts the settings into the head of a page on its way to the browser."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] == 200:
                self._start = message
            else:
                await self._send(message)
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._finish(self._start)

    async def _finish(self, start: Message) -> None:
        body = self._body.replace(b"<head>", b"<head>" + SCRIPT.encode(), 1)
        headers = [(name, value) for name, value in start["headers"] if name.lower() not in _OF_THE_BODY]
        headers += [(b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
