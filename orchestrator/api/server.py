"""The uvicorn of the service: told to stop, it ends its streams, for which uvicorn would wait until they end."""

from __future__ import annotations

import socket

import uvicorn


class Server(uvicorn.Server):
    """Serves an app whose `state.streams` are the streams to end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if (streams := getattr(getattr(app, "state", None), "streams", None)) is not None:
            streams.close()
        await super().shutdown(sockets)
