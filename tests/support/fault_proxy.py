"""Stands between a client and a server, and fails as networks and servers do."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["ok", "refuse", "500 before", "500 after", "reset after", "slow"]
_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class FaultProxy:
    """Forwards each request, numbered from 0; `plan` says what becomes of it."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.plan: Callable[[int], Fault] = lambda number: "ok"
        self.requests: list[str] = []
        self.go_on = threading.Event()
        """Slow answers come when this is set."""
        self.held = threading.Event()
        """Set as soon as a slow answer is being held back."""
        self._count = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def reset(self, plan: Callable[[int], Fault] = lambda number: "ok") -> None:
        """Count from 0 again."""
        self.requests, self.plan = [], plan
        self.go_on.clear()
        self.held.clear()

    @contextmanager
    def serving(self) -> Iterator[FaultProxy]:
        self._thread.start()
        try:
            yield self
        finally:
            self.go_on.set()
            self._server.shutdown()
            self._server.server_close()

    def take(self, name: str) -> Fault:
        with self._count:
            self.requests.append(name)
            number = len(self.requests) - 1
        return self.plan(number)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: otherwise each answer waits for an acknowledgement
            disable_nagle_algorithm = True

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.take(f"{self.command} {self.path.partition('?')[0]}")
                if fault == "refuse":
                    return self._cut()
                if fault == "500 before":
                    return self._answer(500, [], b"the server is ill")
                status, headers, content = self._forward(body)
                if fault == "500 after":
                    return self._answer(500, [], b"the server is ill")
                if fault == "reset after":
                    return self._cut()
                if fault == "slow":
                    proxy.held.set()
                    proxy.go_on.wait(60)
                return self._answer(status, headers, content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

            def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                upstream = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=120)
                try:
                    kept = {k: v for k, v in self.headers.items() if k.lower() not in _HOP | {"host"}}
                    kept["Host"] = f"127.0.0.1:{proxy.target}"
                    upstream.request(self.command, self.path, body or None, kept)
                    answer = upstream.getresponse()
                    return answer.status, answer.getheaders(), answer.read()
                except OSError:
                    return 502, [], b"nobody is there"
                finally:
                    upstream.close()

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _cut(self) -> None:
                """Close with RST rather than FIN."""
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                # the base class flushes what cannot be sent any more
                self.wfile = type("Gone", (), {"flush": lambda _: None, "close": lambda _: None, "closed": True})()

            def handle(self) -> None:
                with suppress(OSError):  # the client went away first
                    super().handle()

            def log_message(self, *_: object) -> None: ...

        return Handler
