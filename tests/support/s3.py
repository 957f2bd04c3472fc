"""A real S3 server on loopback, reached as a user would reach a server of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer


def start_server(port: int = 0) -> tuple[ThreadedMotoServer, int]:
    """-> the server and its port."""
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    return server, server.get_host_and_port()[1]


@contextmanager
def serving() -> Iterator[int]:
    """A server; -> its port. moto looks and then writes; S3 does both at once, so here they share a lock."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    lock, before = threading.Lock(), S3Response.put_object

    def atomic(self: S3Response) -> object:
        with lock:
            return before(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", atomic)
        server, port = start_server()
        yield port
        server.stop()


def use(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """As in a user's shell."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # a server that is down is found out at once
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
