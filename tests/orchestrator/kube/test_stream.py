"""Lines of a watch, from a server that says exactly what the test wants."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kube_objects import CONFIG_MAPS, until

from orchestrator.errors import Unavailable
from orchestrator.kube.client import Kube, Timeouts

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


class Raw:
    """One connection, answered by hand."""

    def __init__(self, folder: Path) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        cluster = {"server": f"http://127.0.0.1:{self._listening.getsockname()[1]}"}
        context = {"cluster": "a", "user": "a"}
        config = {
            "clusters": [{"name": "a", "cluster": cluster}],
            "users": [{"name": "a", "user": {"token": "t"}}],
            "contexts": [{"name": "a", "context": context}],
            "current-context": "a",
        }
        path = folder / "config"
        path.write_text(json.dumps(config))
        self.kube = Kube.from_kubeconfig(path, timeouts=Timeouts(60.0, 60.0))
        self.told: list[bytes] = []
        self.error: list[Exception] = []

    def answer(self, *pieces: bytes) -> socket.socket:
        """To the next request."""
        made, _ = self._listening.accept()
        made.recv(65536)
        made.sendall(HEAD + b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in pieces))
        return made

    def read(self, silence: float = 20.0) -> threading.Thread:
        """In a thread, until it ends."""

        def work() -> None:
            try:
                stream = self.kube.watch(CONFIG_MAPS.at("a"), query=[], silence=silence)
                try:
                    self.told += stream.lines()
                finally:
                    stream.close()
            except Unavailable as error:
                self.error.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def end(self) -> None:
        self.kube.close()
        self._listening.close()


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[Raw]:
    made = Raw(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize(
    "pieces", [(b"one\ntwo\nthr",), (b"o", b"ne\ntw", b"o\n", b"thr"), (b"\n\none\n \n", b"two\n")]
)
def test_lines_are_whole_however_they_come(raw: Raw, pieces: tuple[bytes, ...]) -> None:
    thread = raw.read()
    raw.answer(*pieces).close()
    thread.join(120)
    assert raw.told == [b"one", b"two"]
    assert len(raw.error) == 1, "it was cut, which is not an end"


def test_a_server_that_ends_is_no_failure(raw: Raw) -> None:
    thread = raw.read()
    made = raw.answer(b"one\ntwo\nhalf")
    made.sendall(b"0\r\n\r\n")
    thread.join(120)
    assert raw.told == [b"one", b"two"]
    assert raw.error == []
    made.close()


def test_a_watch_that_does_not_begin_is_given_up_soon(raw: Raw) -> None:
    """However long its silence may be afterwards."""
    raw.kube.timeouts = Timeouts(60.0, 0.2)
    raw.read(silence=1000).join(120)
    assert "no answer" in str(raw.error[0])


def test_silence_ends_it(raw: Raw) -> None:
    thread = raw.read(silence=0.3)
    made = raw.answer(b"one\n")
    thread.join(120)
    assert "the connection was cut" in str(raw.error[0])
    made.close()


def test_silence_is_longer_than_the_limit_of_other_requests(raw: Raw) -> None:
    raw.kube.timeouts = Timeouts(60.0, 0.7)
    while not raw.told:  # a busy machine may not answer so soon
        began, thread = time.monotonic(), raw.read(silence=1.5)
        with raw.answer(b"one\n"):
            thread.join(120)
    assert time.monotonic() - began > 1.4


def test_a_line_without_end_is_given_up(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.kube.stream._LONGEST_LINE", 1000)
    thread = raw.read()
    made = raw.answer(b"x" * 600, b"x" * 600)
    thread.join(120)
    assert "a line of more than 1000 bytes" in str(raw.error[0])
    made.close()


def test_any_thread_may_end_it(raw: Raw) -> None:
    opened: list[float] = []

    def serve() -> None:
        made = raw.answer(b"one\n")
        until(lambda: opened)
        made.recv(10)  # until the other side hangs up
        made.close()

    server = threading.Thread(target=serve)
    server.start()
    stream = raw.kube.watch(CONFIG_MAPS.at("a"), query=[], silence=1000)
    lines = stream.lines()
    assert next(lines) == b"one"
    threading.Timer(0.1, stream.abort).start()
    opened.append(time.monotonic())
    with pytest.raises(Unavailable):
        next(lines)
    assert time.monotonic() - opened[0] < 120
    stream.close()
    stream.abort()
    stream.close()
    server.join(120)
