"""What is posted, and above all what is not reached, on a real server."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.certificates import certificate
from support.receiver import receiver

from orchestrator.controller import posting
from orchestrator.controller.posting import Reach, Undelivered, is_public, post

LISTED = Reach(("127.0.0.1",))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2001:db8::1", "192.0.2.1",
    ],
)  # fmt: skip
def test_addresses_that_not_everybody_reaches(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def resolved(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name is at these addresses; -> the names that were asked for."""
    asked: list[str] = []

    def found(host: str, port: int, *_: Any, **__: Any) -> list[Any]:  # noqa: ANN401
        is_name = not host[0].isdigit()  # connecting to an address asks, too
        asked.extend([host] * is_name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in (addresses if is_name else [host])]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    return asked


def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    def connect(address: Any, **_: Any) -> socket.socket:  # noqa: ANN401
        made.append(address)
        raise OSError("not in this test")

    monkeypatch.setattr(socket, "create_connection", connect)
    return made


def test_a_listed_host_gets_what_is_posted() -> None:
    with receiver() as there:
        post(there.url("/a?b=c"), b'{"x": 1}', {"webhook-id": "n"}, LISTED)
    (got,) = there.got
    assert (got.path, got.body) == ("/a?b=c", b'{"x": 1}')
    assert got.headers["webhook-id"] == "n"
    assert got.headers["host"] == f"127.0.0.1:{there.port}"


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("127.0.0.1", "127.0.0.1 is at 127.0.0.1, which is no public address"),
        ("localhost", "no public address"),
        ("127.1", "no public address"),
        ("2130706433", "no public address"),
        ("0x7f.1", "no public address"),
    ],
)
def test_this_machine_is_not_called_unless_it_is_listed(host: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = connections(monkeypatch)
    with pytest.raises(Undelivered, match=says):
        post(f"https://{host}/", b"", {}, Reach())
    assert made == []


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    made = connections(monkeypatch)
    resolved(monkeypatch, "8.8.8.8", "10.0.0.1")
    with pytest.raises(Undelivered, match=r"is at 10\.0\.0\.1"):
        post("https://hooks.example.org/", b"", {}, Reach())
    assert made == []


def test_what_was_looked_at_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    made = connections(monkeypatch)
    asked = resolved(monkeypatch, "8.8.8.8")
    with pytest.raises(Undelivered, match="not in this test"):
        post("https://hooks.example.org/", b"", {}, Reach())
    assert asked == ["hooks.example.org"]
    assert made == [("8.8.8.8", 443)]


def test_plain_http_and_unlisted_hosts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = connections(monkeypatch), resolved(monkeypatch, "8.8.8.8")
    with pytest.raises(Undelivered, match="use https"):
        post("http://hooks.example.org/", b"", {}, Reach())
    with pytest.raises(Undelivered, match="none of the hosts that FATHOM_WEBHOOK_HOSTS names"):
        post("https://hooks.example.org/", b"", {}, Reach(("other.example.org", "hooks.example.org:8443")))
    assert (made, asked) == ([], [])
    for url in ("ftp://x/", "https://u:p@x/", "https:///x", "https://x:99999/"):
        with pytest.raises(Undelivered, match="address"):
            post(url, b"", {}, Reach(trusted=True))


def test_redirects_are_not_followed() -> None:
    with receiver() as there, receiver() as inside:
        there.answer, there.location = (lambda _: 307), inside.url()
        with pytest.raises(Undelivered, match="answered 307: redirects are not followed"):
            post(there.url(), b"", {}, LISTED)
    assert inside.got == []


def test_other_answers_are_none() -> None:
    with receiver() as there:
        there.answer = lambda _: 500
        with pytest.raises(Undelivered, match=r"127\.0\.0\.1 answered 500"):
            post(there.url("/secret-path"), b"", {}, LISTED)
        port = there.port
    with pytest.raises(Undelivered, match="refused"):
        post(f"http://127.0.0.1:{port}/secret-path", b"", {}, LISTED)


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as there, receiver() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url(""))
        monkeypatch.setenv("HTTP_PROXY", proxy.url(""))
        post(there.url(), b"", {}, LISTED)
    assert (len(there.got), proxy.got) == (1, [])


def test_who_answers_drop_by_drop_is_left() -> None:
    """A timeout of each read alone would never end."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.")
                while not over.wait(0.05):  # until the limit of a line, in an hour
                    connection.sendall(b"1")

        over, thread = threading.Event(), threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(Undelivered):
                post(f"http://127.0.0.1:{server.getsockname()[1]}/", b"", {}, LISTED, seconds=0.5)
        finally:
            over.set()
            thread.join()


def test_tls_is_of_the_name_though_the_address_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, key = certificate(tmp_path, "hooks.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, key)
    with receiver(context) as there:
        resolved(monkeypatch, "127.0.0.1")
        reach = Reach(("hooks.test", "other.test"))
        with pytest.raises(Undelivered, match="CERTIFICATE_VERIFY_FAILED"):
            post(there.url(host="hooks.test", scheme="https"), b"", {}, reach)
        monkeypatch.setattr(posting, "_context", lambda: ssl.create_default_context(cafile=own))
        post(there.url(host="hooks.test", scheme="https"), b"hello", {}, reach)
        with pytest.raises(Undelivered, match="Hostname mismatch"):
            post(there.url(host="other.test", scheme="https"), b"", {}, reach)
    (got,) = there.got
    assert (got.body, got.headers["host"]) == (b"hello", f"hooks.test:{there.port}")
