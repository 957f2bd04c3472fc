"""The real application on a real uvicorn, at a port of its own on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from orchestrator.api.server import Server
from support.api import Service


@contextmanager
def running(service: Service) -> Iterator[str]:
    """-> its address, while it runs."""
    config = uvicorn.Config(service.app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=2)
    server = Server(config)
    socket = config.bind_socket()
    socket.listen()  # who comes before the thread does waits
    thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        socket.close()
        assert not thread.is_alive()
