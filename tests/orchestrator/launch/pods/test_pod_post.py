"""One delivery to a real server, whatever that does."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.certificates import certificate
from support.ear import Ear, fenced, listening
from support.receiver import receiver

from orchestrator.launch.base import RunFolder
from orchestrator.launch.delivery import Delivery
from orchestrator.launch.events import CheckpointAndStop
from orchestrator.launch.pods import post as post_module
from orchestrator.launch.pods.post import Fenced, Post, Undelivered

Make = Callable[..., Post]
SENT = Delivery(namespace="team-a", name="tiny", job="u", attempt=1, incarnation="i1", log="hello\n")


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    with listening(RunFolder(tmp_path / "controller")) as found:
        yield found


@pytest.fixture
def make() -> Iterator[Make]:
    """Posts that are closed in the end."""
    made: list[Post] = []

    def one(url: str, token: Path, authority: Path | None = None) -> Post:
        made.append(Post(url, token, authority))
        return made[-1]

    yield one
    for post in made:
        post.close()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("first\n")
    return tmp_path / "token"


def test_what_is_posted_and_what_comes_back(make: Make, ear: Ear, token: Path) -> None:
    ear.answer = CheckpointAndStop(deadline=50.0, reason="cancelled")
    receipt = make(f"{ear.url}/", token)(SENT)
    assert (receipt.seq, receipt.log_offset, receipt.answer) == (0, 6, ear.answer)
    assert ear.got == [SENT]


def test_a_token_that_was_renewed_is_used_at_once(make: Make, ear: Ear, token: Path) -> None:
    post = make(ear.url, token)
    post(SENT)
    token.write_text("second")
    post(SENT)
    assert ear.tokens == ["first", "second"]


@pytest.mark.parametrize("content", ["", " ", "two words", "a\nb", "\x01", "ü"])
def test_what_is_no_token_is_not_sent(make: Make, ear: Ear, token: Path, content: str) -> None:
    token.write_text(content)
    with pytest.raises(Undelivered, match="token"):
        make(ear.url, token)(SENT)
    token.unlink()
    with pytest.raises(Undelivered, match="cannot be read"):
        make(ear.url, token)(SENT)
    assert ear.got == []


def problem(code: str) -> bytes:
    return json.dumps({"code": code, "detail": "as it was told"}).encode()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (500, b"oops", "answered 500: oops"),
        (503, problem("standby"), "answered 503: as it was told"),
        (401, problem("unauthorized"), "answered 401: as it was told"),
        (403, problem("forbidden"), "answered 403: as it was told"),
        (409, problem("conflict"), "answered 409: as it was told"),
        (409, b"[]", r"answered 409: \[\]"),
        (200, b"{}", "no receipt: answer: Field required"),
        (200, b"<html>", "no receipt"),
        (200, b"x" * 65_537, "more than 65536 bytes"),
        (302, b"", "answered 302"),
    ],
)
def test_all_else_is_undelivered(make: Make, ear: Ear, token: Path, status: int, body: bytes, says: str) -> None:
    ear.refuse = lambda _: (status, body)
    with pytest.raises(Undelivered, match=says):
        make(ear.url, token)(SENT)


def test_fenced(make: Make, ear: Ear, token: Path) -> None:
    ear.refuse = lambda _: fenced("attempt 2 has begun")
    with pytest.raises(Fenced, match=r"^attempt 2 has begun$"):
        make(ear.url, token)(SENT)


def test_nobody_there(make: Make, token: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Undelivered, match="ConnectError"):
        make(f"http://127.0.0.1:{port}", token)(SENT)


def test_who_takes_it_and_says_nothing_is_left(make: Make, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post_module, "QUIET_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Undelivered, match="ReadTimeout"):
        make(f"http://127.0.0.1:{server.getsockname()[1]}", token)(SENT)


def test_who_answers_drop_by_drop_is_left(make: Make, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post_module, "ANSWER_SECONDS", 0.2)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                try:
                    while not over.wait(0.02):
                        connection.sendall(b" ")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(Undelivered, match="takes more than"):
            make(f"http://127.0.0.1:{server.getsockname()[1]}", token)(SENT)
        over.set()
        thread.join()


def test_the_token_goes_to_no_proxy_and_follows_no_redirect(
    make: Make, ear: Ear, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver() as other:
        monkeypatch.setenv("HTTP_PROXY", other.url("/"))
        monkeypatch.setenv("ALL_PROXY", other.url("/"))
        make(ear.url, token)(SENT)
        assert (len(ear.got), other.got) == (1, [])
        with receiver() as elsewhere:
            elsewhere.location, elsewhere.answer = other.url("/v1/deliveries"), lambda _: 307
            with pytest.raises(Undelivered, match="answered 307"):
                make(elsewhere.url(""), token)(SENT)
        assert other.got == []


def test_the_controller_is_known_by_the_authority_that_is_mounted(make: Make, tmp_path: Path, token: Path) -> None:
    own, key = certificate(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, key)
    with receiver(context) as there:
        url = there.url("", host="localhost", scheme="https")
        with pytest.raises(Undelivered, match="CERTIFICATE_VERIFY_FAILED"):
            make(url, token)(SENT)
        with pytest.raises(Undelivered, match="FileNotFoundError"):
            make(url, token, tmp_path / "none.crt")(SENT)
        assert there.got == []
        with pytest.raises(Undelivered, match="answered 204"):
            make(url, token, own)(SENT)
        assert len(there.got) == 1
