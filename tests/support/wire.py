"""A small HTTP server on loopback that answers as a test writes it: also badly, or not at all."""

from __future__ import annotations

import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request that arrived."""

    method: str
    path: str
    """With its query."""
    headers: Mapping[str, str]
    """By lower-case names."""
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - any JSON value
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    """Break off after the body, though more was promised."""
    hold: threading.Event | None = None
    """Keep the answer open until then."""


class Gone:
    """The connection is closed without an answer."""


Script = Callable[[Asked], Reply | Gone]


def as_json(content: object, status: int = 200, **headers: str) -> Reply:
    kind = "application/problem+json" if status >= 400 else "application/json"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(content).encode(), {"Content-Type": kind} | named)


def problem(status: int, code: str, detail: str = "no", **more: object) -> Reply:
    found = {"type": f"https://fathom.dev/problems/{code}", "title": code, "status": status, "code": code}
    return as_json(found | {"detail": detail} | more, status)


def sse(*events: str, cut: bool = False) -> Reply:
    """Each event as its lines, without the blank one."""
    body = "".join(f"{event}\n\n" for event in events).encode()
    return Reply(200, body, {"Content-Type": "text/event-stream"}, cut=cut)


class Wire:
    """The running server; `asked` holds all requests in their order."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[Asked] = []
        self.script: Script = lambda asked: problem(404, "not-found", f"nothing at {asked.path}")

    def replies(self, *replies: Reply | Gone) -> None:
        """One after the other, the last for ever."""
        left = list(replies)
        self.script = lambda _: left.pop(0) if len(left) > 1 else left[0]

    def routes(self, **replies: Reply | Sequence[Reply]) -> None:
        """By method and the end of the path without its query, e.g. `GET_jobs_default_tiny`, `POST_plans`; of several
        replies one after the other, the last for ever. All else is not found."""
        left = {name: list(found) if isinstance(found, Sequence) else [found] for name, found in replies.items()}

        def script(asked: Asked) -> Reply:
            path = asked.path.partition("?")[0].removeprefix("/v1/")
            found = left.get("_".join([asked.method, *re.split("[/:]", path)]))
            if found is None:
                return problem(404, "not-found", f"there is nothing at {path}")
            return found.pop(0) if len(found) > 1 else found[0]

        self.script = script

    @property
    def lines(self) -> list[str]:
        """What was asked, without who the token is."""
        return [f"{asked.method} {asked.path}" for asked in self.asked if asked.path != "/v1/me"]


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def wire() -> Iterator[Wire]:
    """While it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, self.rfile.read(length))
            served.asked.append(asked)
            reply = served.script(asked)
            if isinstance(reply, Gone):
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) + (10 if reply.cut or reply.hold else 0)))
            self.end_headers()
            self.wfile.write(reply.body)
            if reply.hold is not None:
                reply.hold.wait(60)
            self.close_connection = reply.cut or reply.hold is not None

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        host, port = server.server_address[:2]
        served = Wire(f"http://{host!s}:{port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
