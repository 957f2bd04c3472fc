from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect
from support.api import Service, problem

from orchestrator.api import strict_json
from orchestrator.api.limits import Buckets, Limits
from orchestrator.store.access import Role


def post(service: Service, body: bytes, kind: str = "application/json") -> Any:  # noqa: ANN401
    return service.runner.post("/v1/jobs", content=body, headers={"Content-Type": kind})


# ------------------------------------------------------------------ bodies


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not JSON: Expecting property name"),
        (b"\xff\xfe{}", "not UTF-8 text (byte 0)"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"job": NaN}', "NaN is no JSON"),
        (b'{"job": -Infinity}', "-Infinity is no JSON"),
        (b'{"job": 1e999}', "1e999 is too large"),
        (b'{"job": ' + b"9" * 5000 + b"}", "a number that cannot be read"),
        (b'{"job": {}, "job": {}}', "field 'job' is given twice"),
        (b'{"job": {"a": 1, "\\u0061": 2}}', "field 'a' is given twice"),
        (b'{"job": "\\ud800"}', "half a character"),
        (b'{"\\udfff": 1}', "half a character"),
        (b"[" * 21 + b"]" * 21, "more than 20 levels"),
        (b"[" * 100_000, "more than 20 levels"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "more than 20 levels"),
        (b"[" + b"1," * 10_001 + b"1]", "more than 10000 values"),
        (b"{}{}", "not JSON: Extra data"),
        (b"\x00", "not JSON"),
        (b" ", "not JSON"),
    ],
)
def test_bodies_that_are_no_json(service: Service, body: bytes, says: str) -> None:
    assert says in problem(post(service, body), 400, "invalid-json")["detail"]


def test_twenty_levels_are_read(service: Service) -> None:
    problem(post(service, b"[" * 20 + b"]" * 20), 422, "invalid-request")


@pytest.mark.parametrize("body", [b"null", b"[]", b'"x"', b"0", b"{}", b'{"job": null}', b'{"job": []}', b'{"job": 1}'])
def test_json_that_is_no_request(service: Service, body: bytes) -> None:
    problem(post(service, body), 422, "invalid-request")


def test_an_empty_body_is_no_job(service: Service) -> None:
    problem(service.runner.post("/v1/jobs"), 422, "invalid-request")


def test_unknown_fields_of_a_request_are_named(service: Service) -> None:
    body = {"job": service.document(), "force": True}
    [fault] = problem(service.runner.post("/v1/jobs", json=body), 422, "invalid-request")["errors"]
    assert fault["pointer"] == "/force"


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/merge-patch+json", "application/jsonx"]
)
def test_other_types_of_bodies_are_refused(service: Service, kind: str) -> None:
    assert "send application/json" in problem(post(service, b"{}", kind), 415, "unsupported-media")["detail"]


def test_a_compressed_body_is_refused(service: Service) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    problem(service.runner.post("/v1/jobs", content=b"\x1f\x8b", headers=headers), 415, "unsupported-media")


def test_types_may_have_parameters_and_patches_their_own(service: Service) -> None:
    service.create()
    one = "/v1/jobs/default/mini"
    for kind in ("application/json; charset=utf-8", "application/merge-patch+json", "APPLICATION/JSON"):
        answer = service.runner.patch(one, content=b"{}", headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text


def test_a_large_body_is_refused_by_its_length_and_by_its_size(service: Service) -> None:
    large = b'"' + b"x" * (1 << 20) + b'"'
    assert "1048578 bytes, at most 1048576" in problem(post(service, large), 413, "too-large")["detail"]
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"x" * (1 << 16)

    headers = {"Content-Type": "application/json"}
    answer = service.runner.post("/v1/jobs", content=pieces(), headers=headers)
    problem(answer, 413, "too-large")


def raw(service: Service, messages: list[Message], headers: list[tuple[bytes, bytes]]) -> tuple[list[Message], int]:
    """One request by hand; -> what was sent, and how many messages were received."""
    sent, taken = list[Message](), 0

    async def receive() -> Message:
        nonlocal taken
        taken += 1
        if taken > len(messages):
            await asyncio.sleep(3600)
        return messages[taken - 1]

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/jobs", "raw_path": b"/v1/jobs", "query_string": b"",
        "root_path": "", "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1), "server": ("a", 1),
        "headers": [
            (b"host", b"localhost"), (b"authorization", f"Bearer {service.secrets[Role.RUNNER]}".encode()), *headers,
        ],
    }  # fmt: skip
    asyncio.run(service.app(scope, receive, send))
    return sent, taken


def test_a_large_body_is_not_read_to_its_end(service: Service) -> None:
    piece: Message = {"type": "http.request", "body": b"x" * (1 << 18), "more_body": True}
    sent, taken = raw(service, [piece] * 100, [(b"content-type", b"application/json")])
    assert (sent[0]["status"], taken) == (413, 5)
    sent, taken = raw(service, [piece] * 100, [(b"content-length", b"9" * 30)])
    assert (sent[0]["status"], taken) == (413, 0)


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    service = Service(tmp_path, limits=Limits(body_seconds=0.05))
    piece: Message = {"type": "http.request", "body": b"{", "more_body": True}
    sent, _ = raw(service, [piece], [(b"content-type", b"application/json")])
    assert sent[0]["status"] == 408


def test_the_application_begins_and_ends(service: Service) -> None:
    sent = list[Message]()
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(service.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_there_are_no_web_sockets(service: Service) -> None:
    with pytest.raises(WebSocketDisconnect) as refused, service.client(None).websocket_connect("/v1/jobs"):
        pass
    assert refused.value.code == 1008


def test_who_goes_away_gets_nothing_done(service: Service) -> None:
    piece: Message = {"type": "http.request", "body": b"{", "more_body": True}
    sent, _ = raw(service, [piece, {"type": "http.disconnect"}], [(b"content-type", b"application/json")])
    assert sent == []
    assert service.store.open_jobs() == ()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(JSON_VALUES)
def test_what_is_json_is_read_as_it_is(value: object) -> None:
    assert strict_json.read(json.dumps(value, ensure_ascii=False).encode()) == value
    assert strict_json.read(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(strict_json.NotJson):  # and nothing else
        json.dumps(strict_json.read(body), ensure_ascii=False, allow_nan=False).encode()


# ------------------------------------------------------------------ hosts and origins


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8470", "127.0.0.1:1", "[::1]:8470"])
def test_our_names(service: Service, host: str) -> None:
    assert service.client(None).get("/livez", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "localhost:x", "", "localhost, evil", "127.0.0.1.nip.io", "a@localhost"],
)  # fmt: skip
def test_foreign_names(service: Service, host: str) -> None:
    problem(service.admin.get("/livez", headers={"Host": host}), 421, "foreign-host")


def test_two_names_are_none(service: Service) -> None:
    sent, _ = raw(service, [], [(b"host", b"localhost")])
    assert sent[0]["status"] == 421


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:3000", "http://localhost:84701", ""]
)
def test_foreign_pages(service: Service, origin: str) -> None:
    problem(service.admin.get("/v1/jobs", headers={"Origin": origin}), 403, "foreign-origin")


def test_our_own_page(service: Service) -> None:
    assert service.admin.get("/v1/jobs", headers={"Origin": "http://localhost:8470"}).status_code == 200


def test_no_answer_lets_other_pages_in(service: Service) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = service.client(None).options("/v1/jobs", headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control")]


# ------------------------------------------------------------------ rates


def test_a_token_has_its_rate(tmp_path: Path) -> None:
    service = Service(tmp_path, limits=Limits(rate=0.1, burst=3))
    statuses = [service.reader.get("/v1/me").status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    refused = service.reader.get("/v1/me")
    problem(refused, 429, "rate-limited")
    assert 9 <= int(refused.headers["retry-after"]) <= 10
    assert service.admin.get("/v1/me").status_code == 200, "others are not concerned"
    assert service.client(None).get("/livez").status_code == 200


def test_a_bucket_fills_with_time() -> None:
    now = 0.0
    buckets = Buckets(2.0, 3, lambda: now)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b") == 0
    now = 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0, 0.5]
    now = 1000.0
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]


def test_buckets_are_bounded() -> None:
    buckets = Buckets(1.0, 1, lambda: 0.0)
    for number in range(20_000):
        buckets.take(str(number))
    assert len(buckets._filled) <= 10_000


# ------------------------------------------------------------------ the envelope


def test_every_answer_has_its_id_and_headers_of_safety(service: Service) -> None:
    for client in (service.admin, service.client(None)):
        for path in ("/livez", "/v1/jobs", "/nope", "/openapi.json"):
            answer = client.get(path)
            assert len(answer.headers["x-request-id"]) == 32
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("given", "taken"), [("a.B-1_", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("", False)]
)
def test_ids_of_the_caller(service: Service, given: str, taken: bool) -> None:
    answer = service.admin.get("/v1/me", headers={"X-Request-ID": given})
    assert (answer.headers["x-request-id"] == given) == taken


def test_our_own_fault_tells_nothing_of_the_inside(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(service.store, "texts", broken)
    with caplog.at_level(logging.ERROR):
        answer = service.admin.get("/v1/jobs")
    found = problem(answer, 500, "internal")
    assert "secret" not in answer.text
    assert found["requestId"] in caplog.text
    assert "secret of the inside" in caplog.text
    assert "Traceback" in caplog.text


def test_addresses_that_are_none_and_methods_that_are_not_for_them(service: Service) -> None:
    problem(service.admin.get("/v1/nothing"), 404, "not-found")
    problem(service.admin.get("/v1/jobs/"), 404, "not-found")
    answer = service.admin.put("/v1/jobs/default/mini")
    assert "PUT is not for this address, but DELETE, GET, PATCH" in problem(answer, 405, "method-not-allowed")["detail"]
    assert answer.headers["allow"] == "DELETE, GET, PATCH"
    assert service.admin.options("/v1/jobs").headers["allow"] == "GET, POST"
    assert service.admin.head("/v1/jobs").status_code == 405


def test_a_message_is_of_bounded_length(service: Service) -> None:
    document = service.document()
    document["spec"] |= {f"x{number}": number for number in range(3000)}
    answer = service.runner.post("/v1/jobs", json={"job": document})
    found = problem(answer, 422, "invalid-job")
    assert len(found["errors"]) == 100
    assert len(answer.content) < 1 << 16
