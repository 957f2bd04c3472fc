"""A controller's ear on loopback: takes what a driver in a pod delivers, with the real types, into a run folder."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from orchestrator.launch.base import RunFolder
from orchestrator.launch.delivery import PATH, Delivery, Receipt
from orchestrator.launch.events import Answer, Continue, Event, read

Trouble = Callable[[Delivery], tuple[int, bytes] | None]
"""Says what is answered in place of a receipt, though it is stored; None: the receipt."""


@dataclass
class Ear:
    """What it hears, and what it says."""

    folder: RunFolder
    port: int
    answer: Answer = field(default_factory=Continue)
    got: list[Delivery] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    largest: int = 0
    """Bytes of a body."""
    refuse: Callable[[str], tuple[int, bytes] | None] = lambda token: None
    """Before anything is stored, by the token."""
    lose: Trouble = lambda delivery: None
    """After everything is stored."""
    answers: Callable[[Ear], Answer] = lambda ear: ear.answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def events(self) -> list[Event]:
        return read(self.folder.events)[0]

    @property
    def log(self) -> bytes:
        path = self.folder.log(1)
        return path.read_bytes() if path.exists() else b""

    def forget(self) -> None:
        """As a controller whose volume is gone."""
        self.folder.events.unlink(missing_ok=True)
        self.folder.log(1).unlink(missing_ok=True)

    def take(self, delivery: Delivery) -> Receipt:
        self.got.append(delivery)
        known = self.events[-1].seq if self.events else 0
        fits = not delivery.events or delivery.events[0].seq <= known + 1
        self.folder.events.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.events.open("ab") as file:
            for event in delivery.events if fits else ():  # otherwise it asks for what is missing
                if event.seq > known:
                    assert event.seq == known + 1, "nothing is left out"
                    known = event.seq
                    file.write(event.model_dump_json(by_alias=True).encode() + b"\n")
        log = self.folder.log(delivery.attempt)
        log.parent.mkdir(parents=True, exist_ok=True)
        if delivery.log_offset == len(self.log):
            with log.open("ab") as file:
                file.write(delivery.log.encode())
        self.folder.artifacts.mkdir(exist_ok=True)
        for one in delivery.artifacts:
            (self.folder.artifacts / one.name).write_bytes(one.content)
        return Receipt(seq=known, log_offset=len(self.log), answer=self.answers(self))


def fenced(detail: str = "attempt 2 has begun") -> tuple[int, bytes]:
    return 409, json.dumps({"code": "fenced", "detail": detail}).encode()


@contextmanager
def listening(folder: RunFolder) -> Iterator[Ear]:
    """On a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = self._answer(body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _answer(self, body: bytes) -> tuple[int, bytes]:
            assert self.path == PATH
            token = self.headers["Authorization"].removeprefix("Bearer ")
            with lock:
                ear.tokens.append(token)
                ear.largest = max(ear.largest, len(body))
                if (refused := ear.refuse(token)) is not None:
                    return refused
                delivery = Delivery.model_validate_json(body)
                receipt = ear.take(delivery)
                return ear.lose(delivery) or (200, receipt.model_dump_json(by_alias=True).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Not into the output of the tests."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """Clients that hang up are part of the tests, deliveries that are wrong are not."""
            error = sys.exc_info()[1]
            if error is not None and not isinstance(error, OSError):
                wrong.append(error)

    lock = threading.Lock()
    wrong: list[BaseException] = []
    with Server(("127.0.0.1", 0), Handler) as server:
        ear = Ear(folder, server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield ear
        finally:
            server.shutdown()
            thread.join()
    assert not wrong, wrong
