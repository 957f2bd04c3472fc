"""Stands between our client and an API server, and fails as networks and servers do; watches pass line by line."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from support.apiserver import ApiServer

_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}
_IDLE = 20.0
"""Seconds after which the server may have closed a connection."""


@dataclass(frozen=True)
class Call:
    """One request."""

    number: int
    method: str
    path: str
    query: dict[str, str]
    body: bytes = b""

    @property
    def watch(self) -> bool:
        return self.query.get("watch") == "true"

    @property
    def writes(self) -> bool:
        return self.method != "GET"


@dataclass(frozen=True)
class Say:
    """Answered by the proxy itself. `after`: once the server has done it."""

    status: int
    reason: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    after: bool = False
    body: bytes | None = None

    @property
    def content(self) -> bytes:
        status = {
            "kind": "Status",
            "code": self.status,
            "reason": self.reason,
            "message": f"the proxy says {self.status}",
        }
        return json.dumps(status).encode() if self.body is None else self.body


Fault = Say | Literal["ok", "cut before", "cut after", "hold"]
Line = bytes | Literal["cut"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with 5, a busy machine turns connections away


class KubeProxy:
    """Forwards each request; `plan` says what becomes of it, `lines` what becomes of an event of a watch; `answered`
    hears what the server has said, before the client does."""

    def __init__(self, server: ApiServer) -> None:
        self._upstream = urlsplit(server.url)
        self._context = ssl.create_default_context(cafile=str(server.ca))
        self.plan: Callable[[Call], Fault] = lambda call: "ok"
        self.lines: Callable[[bytes], list[Line]] = lambda line: [line]
        self.answered: Callable[[Call, int], None] = lambda call, status: None
        self.calls: list[Call] = []
        self.go_on = threading.Event()
        """Answers that are held come when this is set."""
        self.away = False
        """Every request is cut, and so is every watch at its next line."""
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def kubeconfig(self, server: ApiServer, folder: Path, user: str = "admin") -> Path:
        """Through this proxy."""
        config = json.loads(server.kubeconfig(user).read_text())
        config["clusters"][0]["cluster"] = {"server": self.url}
        path = folder / f"{user}-proxy.kubeconfig"
        path.write_text(json.dumps(config))
        return path

    @contextmanager
    def serving(self) -> Iterator[KubeProxy]:
        self._thread.start()
        try:
            yield self
        finally:
            self.go_on.set()
            self._server.shutdown()
            self.hang_up()
            self._server.server_close()

    def leave(self) -> None:
        """The server is away: what is open breaks."""
        self.away = True
        self.hang_up()

    def hang_up(self) -> None:
        """On everybody."""
        with self._lock:
            sockets = list(self._sockets)
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _take(self, method: str, target: str, body: bytes) -> tuple[Call, Fault]:
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        with self._lock:
            call = Call(len(self.calls), method, parts.path, query, body)
            self.calls.append(call)
        return call, "cut before" if self.away else self.plan(call)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 0
            disable_nagle_algorithm = True
            _upstream: http.client.HTTPSConnection | None = None
            _used = 0.0

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                call, fault = proxy._take(self.command, self.path, body)
                if fault == "cut before":
                    return self._cut()
                if isinstance(fault, Say) and not fault.after:
                    return self._answer(fault.status, list(fault.headers), fault.content)
                upstream = self._connection()
                kept = {k: v for k, v in self.headers.items() if k.lower() not in _HOP | {"host"}}
                upstream.request(self.command, self.path, body or None, kept)
                answer = upstream.getresponse()
                if call.watch and answer.status == 200:
                    try:
                        return self._stream(answer, upstream)
                    finally:
                        upstream.close()
                status, headers, content = answer.status, answer.getheaders(), answer.read()
                proxy.answered(call, status)
                if fault == "cut after":
                    return self._cut()
                if isinstance(fault, Say):
                    return self._answer(fault.status, list(fault.headers), fault.content)
                if fault == "hold":
                    proxy.go_on.wait(120)
                return self._answer(status, headers, content)

            def _connection(self) -> http.client.HTTPSConnection:
                """To the server; one for as long as the client keeps its own and something is asked now and then."""
                now, known = time.monotonic(), self._upstream
                if known is None or now - self._used > _IDLE:
                    if known is not None:
                        known.close()
                    known = self._upstream = http.client.HTTPSConnection(
                        proxy._upstream.hostname or "", proxy._upstream.port, timeout=120, context=proxy._context
                    )
                self._used = now
                return known

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

            def _stream(self, answer: http.client.HTTPResponse, upstream: http.client.HTTPSConnection) -> None:
                assert upstream.sock is not None
                # a descriptor of its own: shut down from another thread, beneath TLS
                own = socket.socket(fileno=os.dup(upstream.sock.fileno()))
                with proxy._lock:
                    proxy._sockets.add(own)
                try:
                    self._relay(answer)
                finally:
                    with proxy._lock:
                        proxy._sockets.discard(own)
                    own.close()

            def _relay(self, answer: http.client.HTTPResponse) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                while (line := answer.readline()) and not proxy.away:
                    for piece in proxy.lines(line):
                        if isinstance(piece, str):
                            self._cut()
                            return
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                if proxy.away:
                    self._cut()
                    return
                self.wfile.write(b"0\r\n\r\n")

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

            def handle(self) -> None:
                with proxy._lock:
                    proxy._sockets.add(self.connection)
                try:
                    with suppress(OSError, ValueError, http.client.HTTPException):  # somebody went away first
                        super().handle()
                finally:
                    with proxy._lock:
                        proxy._sockets.discard(self.connection)
                    if self._upstream is not None:
                        self._upstream.close()

            def finish(self) -> None:
                if self._upstream is not None:
                    self._upstream.close()
                with suppress(OSError, ValueError):
                    super().finish()

            def log_message(self, *_: object) -> None: ...

        return Handler
