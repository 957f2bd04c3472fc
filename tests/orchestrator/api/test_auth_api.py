from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from fastapi.routing import APIRoute
from support.api import URL, Service, problem

from orchestrator.api.app import ROUTERS
from orchestrator.api.auth import OPEN, RoleNeeded
from orchestrator.api.capacity import Capacity, Holder, Slots
from orchestrator.errors import Unavailable
from orchestrator.store.access import Role
from orchestrator.store.audit import Audit
from orchestrator.store.base import Query, TextPage
from orchestrator.store.database import Database

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "FOO")


def operations(service: Service) -> Iterator[tuple[str, str, str]]:
    """Path, method and operation of the whole document, with examples in the paths."""
    for path, item in service.app.openapi()["paths"].items():
        for method, operation in item.items():
            yield re.sub(r"{(\w+)}", r"a-\1", path), method.upper(), operation["operationId"]


def test_nothing_answers_without_a_token(service: Service) -> None:
    paths = {path for path, _, _ in operations(service)} | {"/", "/openapi.json", "/docs", "/nope", "/v1/jobs/"}
    nobody, wrong = service.client(None), service.client("fathom_" + "x" * 43)
    for path in sorted(paths - OPEN):
        for method in METHODS:
            for client in (nobody, wrong):
                answer = client.request(method, path)
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                if method != "HEAD":
                    problem(answer, 401, "unauthorized")


def test_what_is_open_tells_nothing(service: Service) -> None:
    for path in sorted(OPEN):
        answer = service.client(None).get(path)
        assert (answer.status_code, answer.text) == (200, "ok\n")


@pytest.mark.parametrize("path", ["/livez/", "//livez", "/livez%2f", "/LIVEZ", "/livez%00", "/livez;x", "/v1/livez"])
def test_paths_near_the_open_ones_are_closed(service: Service, path: str) -> None:
    problem(service.client(None).get("http://localhost:8470" + path), 401, "unauthorized")


def test_a_reader_reads_and_no_more(service: Service) -> None:
    service.create("a-name", "a-namespace")
    admins = {"listTokens", "listAudit"}
    for path, method, operation in operations(service):
        answer = service.reader.request(method, path)
        allowed = answer.status_code != 403
        reads = operation == "createPlan" or (method == "GET" and operation not in admins)
        assert allowed == reads, (method, path, answer.status_code)


def test_each_route_says_whom_it_is_for(service: Service) -> None:
    routes = [route for router in ROUTERS for route in router.routes]
    assert len(routes) == len(list(operations(service)))
    for route in routes:
        assert isinstance(route, APIRoute)
        roles = [one.call for one in route.dependant.dependencies if isinstance(one.call, RoleNeeded)]
        assert roles or route.path in OPEN, route.path


@pytest.mark.parametrize(
    "header",
    [
        "", "Bearer", "Bearer ", "Basic {secret}", "{secret}", "Bearer {secret}x", "Bearer{secret}", "Bearer {secret},",
        "Bearer \xff",
    ],
)  # fmt: skip
def test_headers_that_are_no_token(service: Service, header: str) -> None:
    value = header.format(secret=service.secrets[Role.ADMIN]).encode("latin-1")
    problem(service.client(None).get("/v1/me", headers={b"Authorization": value}), 401, "unauthorized")


def test_two_tokens_are_none(service: Service) -> None:
    headers = [("Authorization", f"Bearer {service.secrets[role]}") for role in (Role.READER, Role.ADMIN)]
    problem(service.client(None).get("/v1/me", headers=headers), 401, "unauthorized")


def test_the_scheme_may_be_in_small_letters(service: Service) -> None:
    headers = {"Authorization": f"bearer  {service.secrets[Role.READER]} "}
    assert service.client(None).get("/v1/me", headers=headers).json() == {"name": "a-reader", "role": "reader"}


def test_tokens_end(service: Service) -> None:
    soon = datetime.now(UTC) + timedelta(milliseconds=1)
    _, secret = service.access.make("brief", Role.READER, by="test", expires_at=soon)
    while datetime.now(UTC) < soon:
        pass
    assert "expired" in problem(service.client(secret).get("/v1/me"), 401, "unauthorized")["detail"]
    assert service.admin.delete("/v1/tokens/a-reader").json()["revoked"]
    assert "revoked" in problem(service.reader.get("/v1/me"), 401, "unauthorized")["detail"]


def test_a_broken_store_lets_nobody_in(service: Service) -> None:
    _break(service.store.database)
    found = problem(service.admin.get("/v1/jobs"), 503, "unavailable")
    assert str(service.home) not in found["detail"], "whoever asks is not known"
    assert service.client(None).get("/readyz").text == "not ready: store\n"
    assert service.client(None).get("/livez").text == "ok\n"


def _break(database: Database) -> None:
    database.close()
    database.path.write_bytes(b"\xa5" * 100_000)
    for log in database.path.parent.glob("fathom.db-*"):
        log.unlink()


def test_requests_that_take_long_keep_nobody_out(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, on = threading.Semaphore(0), threading.Event()
    texts = service.store.texts

    def slow(query: Query) -> TextPage:
        inside.release()
        assert on.wait(300)
        return texts(query)

    monkeypatch.setattr(service.store, "texts", slow)
    headers = {"Authorization": f"Bearer {service.secrets[Role.READER]}"}

    async def scenario() -> None:
        transport = httpx2.ASGITransport(service.app)
        async with httpx2.AsyncClient(transport=transport, base_url=URL, headers=headers, timeout=300) as client:
            waiting = [asyncio.create_task(client.get("/v1/jobs")) for _ in range(60)]
            for _ in range(40):  # as many as run at once
                while not inside.acquire(blocking=False):
                    await asyncio.sleep(0)
            assert (await asyncio.wait_for(client.get("/v1/me"), 120)).json()["name"] == "a-reader"
            on.set()
            assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}

    asyncio.run(scenario())


# ------------------------------------------------------------------ tokens over REST


def test_a_token_is_made_listed_and_revoked(service: Service) -> None:
    made = service.admin.post("/v1/tokens", json={"name": "ann", "role": "runner", "team": "vision", "days": 1})
    assert made.status_code == 201
    assert made.headers["location"] == "/v1/tokens/ann"
    found = made.json()
    secret = found.pop("secret")
    lasts = datetime.fromisoformat(found["expires"]) - datetime.fromisoformat(found["created"])
    assert abs(lasts - timedelta(days=1)) < timedelta(minutes=1)
    listed = service.admin.get("/v1/tokens")
    assert found in listed.json()["items"]
    assert secret not in listed.text
    ann = service.client(secret)
    assert ann.get("/v1/me").json() == {
        "name": "ann", "role": "runner", "team": "vision", "expires": found["expires"],
    }  # fmt: skip
    assert service.admin.delete("/v1/tokens/ann").status_code == 200
    problem(ann.get("/v1/me"), 401, "unauthorized")
    problem(service.admin.delete("/v1/tokens/nobody"), 404, "not-found")


def test_names_of_tokens_are_given_once_whatever_the_key(service: Service) -> None:
    key = {"Idempotency-Key": "k"}
    body = {"name": "ann", "role": "reader"}
    secret = service.admin.post("/v1/tokens", json=body, headers=key).json()["secret"]
    again = service.admin.post("/v1/tokens", json=body, headers=key)
    problem(again, 409, "conflict")
    assert secret not in again.text


@pytest.mark.parametrize(
    "body",
    [
        {}, {"name": "ann"}, {"name": "Ann", "role": "reader"}, {"name": "ann\n", "role": "reader"},
        {"name": "ann", "role": "root"}, {"name": "ann", "role": "reader", "days": 0},
        {"name": "ann", "role": "reader", "days": 1e300}, {"name": "ann", "role": "reader", "secret": "mine"},
        {"name": "ann", "role": "reader", "team": "../x"}, [], "x", None,
    ],
)  # fmt: skip
def test_wrong_tokens_are_refused(service: Service, body: object) -> None:
    problem(service.admin.post("/v1/tokens", json=body), 422, "invalid-request")


def test_an_admin_is_of_no_team_and_does_not_lock_itself_out(service: Service) -> None:
    refused = service.admin.post("/v1/tokens", json={"name": "ann", "role": "admin", "team": "vision"})
    assert "an admin is one of all teams" in problem(refused, 400, "usage")["detail"]
    problem(service.admin.delete("/v1/tokens/a-admin"), 409, "conflict")


# ------------------------------------------------------------------ audit


def test_every_change_is_recorded_denied_ones_too(service: Service) -> None:
    service.create()
    service.runner.patch("/v1/jobs/default/mini?x=%0d%0a", json={"spec": {"suspend": 1}})
    service.reader.delete("/v1/jobs/default/mini")
    service.client(None).post("/v1/jobs/default/mini:cancel")
    service.client(None).delete("/v1/tokens/a-admin", headers={"Host": "evil.example"})
    service.admin.post("/v1/plans", json={"job": service.document()})
    service.admin.get("/v1/jobs")
    found = [(one["principal"], one["method"], one["path"], one["outcome"], one["status"]) for one in service.audited()]
    assert found == [
        ("", "DELETE", "/v1/tokens/a-admin", "denied", 421),
        ("", "POST", "/v1/jobs/default/mini:cancel", "denied", 401),
        ("a-reader", "DELETE", "/v1/jobs/default/mini", "denied", 403),
        ("a-runner", "PATCH", "/v1/jobs/default/mini?x=%0d%0a", "refused", 422),
        ("a-admin", "POST", "/v1/jobs", "done", 201),
    ]


def test_the_record_has_the_id_of_the_request(service: Service) -> None:
    answer = service.runner.post("/v1/jobs", json={}, headers={"X-Request-ID": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert service.audited()[0]["requestId"] == "mine-1"


def test_the_record_says_what_was_sent_and_about_what(service: Service) -> None:
    body = json.dumps({"job": service.document("mine", "team-a")}).encode()
    headers = {"Content-Type": "application/json"}
    assert service.of_team("team-b").post("/v1/jobs", content=body, headers=headers).status_code == 403
    assert service.runner.post("/v1/jobs", content=body, headers=headers).status_code == 201
    service.runner.delete("/v1/jobs/team-a/mine")
    gone, done, denied = service.audited()
    digest = hashlib.sha256(body).hexdigest()
    assert [(one["job"], one["digest"]) for one in (done, denied)] == [("team-a/mine", digest)] * 2
    assert not {"job", "digest", "groups"} & set(gone), "its path says it, and it has no body"


def test_audit_pages(service: Service) -> None:
    for _ in range(5):
        service.runner.delete("/v1/jobs/default/none")
    first = service.admin.get("/v1/audit?limit=3").json()
    second = service.admin.get("/v1/audit", params={"limit": 3, "cursor": first["next"]}).json()
    assert [len(first["items"]), len(second["items"]), second["next"]] == [3, 2, ""]
    problem(service.admin.get("/v1/audit?cursor=x"), 400, "usage")


def test_unknown_callers_leave_a_bounded_trail(service: Service) -> None:
    nobody = service.client(None)
    for _ in range(120):
        assert nobody.post("/v1/jobs").status_code == 401
    assert 100 <= len(service.admin.get("/v1/audit?limit=1000").json()["items"]) <= 110


def test_without_a_record_nothing_is_changed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise Unavailable("the disk is full")

    monkeypatch.setattr(Audit, "begin", full)
    problem(service.runner.post("/v1/jobs", json={"job": service.document()}), 503, "unavailable")
    assert service.store.open_jobs() == ()


def test_capacity_shows_a_team_its_own(service: Service) -> None:
    service.capacity = Capacity(Slots(8, 2), (Holder("a", "one", Slots(2)), Holder("b", "two", Slots(1, 1))))
    found = service.reader.get("/v1/capacity").json()
    assert (found["total"], found["used"]) == ({"cpus": 8, "gpus": 2}, {"cpus": 3, "gpus": 1})
    assert [one["name"] for one in found["holders"]] == ["one", "two"]
    team = service.of_team("b", Role.READER).get("/v1/capacity").json()
    assert team["used"] == found["used"]
    assert team["holders"] == [{"namespace": "b", "name": "two", "cpus": 1, "gpus": 1}]
