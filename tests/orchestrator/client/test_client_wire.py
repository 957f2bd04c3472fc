"""Both clients against a real server that answers badly: what is repeated, what is not, and what is said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.answered import planned, stored, submitted
from support.wire import Asked, Gone, Reply, Wire, as_json, problem, sse, wire

from orchestrator.client import AsyncClient, Client
from orchestrator.client import transport as ways
from orchestrator.errors import Conflict, FathomError, InvalidJob, NotFound, OverBudget, Unavailable, UsageError
from orchestrator.status import Phase

SECRET = "fathom-secret"


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return sum(self.slept)


class Hasty(Clock, ways.Blocking):
    """Blocking, without waiting."""

    def __init__(self) -> None:
        Clock.__init__(self)
        ways.Blocking.__init__(self, httpx2.Client(trust_env=False, timeout=60))

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class HastyLoop(Clock, ways.Asyncio):
    """On a loop, without waiting."""

    def __init__(self) -> None:
        Clock.__init__(self)
        ways.Asyncio.__init__(self, httpx2.AsyncClient(trust_env=False, timeout=60))

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def server() -> Iterator[Wire]:
    with wire() as running:
        yield running


Verb = Callable[..., Any]


def given(server: Wire | None) -> tuple[str, str] | tuple[()]:
    """None: the client is to find it by itself."""
    return () if server is None else (server.url, SECRET)


def blocking(server: Wire | None, verb: str, *arguments: object, **named: object) -> tuple[Any, list[float]]:
    """-> what the verb gives (a list of a stream), and what was slept."""
    hasty = Hasty()
    with Client(*given(server), transport=hasty) as client:
        found = getattr(client, verb)(*arguments, **named)
        return (list(found) if isinstance(found, Iterator) else found), hasty.slept


def looped(server: Wire | None, verb: str, *arguments: object, **named: object) -> tuple[Any, list[float]]:
    async def call() -> tuple[Any, list[float]]:
        hasty = HastyLoop()
        async with AsyncClient(*given(server), transport=hasty) as client:
            found = getattr(client, verb)(*arguments, **named)
            if hasattr(found, "__aiter__"):
                return [one async for one in found], hasty.slept
            return await found, hasty.slept

    return asyncio.run(call())


@pytest.fixture(params=[blocking, looped])
def way(request: pytest.FixtureRequest) -> Verb:
    found: Verb = request.param
    return found


@pytest.fixture
def call(way: Verb, server: Wire) -> Verb:
    return lambda *arguments, **named: way(server, *arguments, **named)


# ------------------------------------------------------------------ answers


def test_a_job_is_read(call: Verb, server: Wire) -> None:
    server.replies(as_json(stored("tiny", "Running", team="vision") | {"newer": 1}))
    job, slept = call("get", "vision/tiny")
    assert (job.key, job.phase, job.etag, slept) == ("vision/tiny", Phase.RUNNING, '"u-tiny-1"', [])
    assert job.wish().spec == job.spec
    [asked] = server.asked
    assert (asked.method, asked.path) == ("GET", "/v1/jobs/vision/tiny")
    assert asked.headers["authorization"] == f"Bearer {SECRET}"


def test_the_team_of_a_job_is_that_of_the_token(call: Verb, server: Wire) -> None:
    me = {"name": "bot", "role": "runner", "team": "vision"}
    server.script = lambda asked: as_json(me if asked.path == "/v1/me" else stored(team="vision"))
    call("get", "tiny")
    assert [asked.path for asked in server.asked] == ["/v1/me", "/v1/jobs/vision/tiny"]
    server.asked.clear()
    server.script = lambda asked: as_json(me if asked.path == "/v1/me" else planned())
    call("plan", submitted())
    assert server.asked[-1].json()["job"]["metadata"] == {"name": "tiny", "namespace": "vision"}


@pytest.mark.parametrize("name", ["../tokens", "A", "a/b/c", "", "a?x=1", "team/", "-a"])
def test_what_is_no_name_is_never_sent(call: Verb, server: Wire, name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a job"):
        call("get", name)
    assert server.asked == []


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (problem(404, "not-found", "there is no job a/b"), NotFound, "there is no job a/b"),
        (problem(409, "stale-plan", "prices changed"), Conflict, "prices changed"),
        (problem(412, "precondition-failed", "it is generation 3"), Conflict, "generation 3"),
        (problem(402, "over-budget", "12 of 10"), OverBudget, "12 of 10"),
        (problem(401, "unauthorized", "no such token"), FathomError, "no such token"),
        (problem(500, "internal", "a fault", requestId="r-7"), Unavailable, "request r-7"),
        (
            problem(422, "invalid-request", errors=[{"pointer": "", "parameter": "limit", "detail": "at most 500"}]),
            UsageError,
            "limit: at most 500",
        ),
        (problem(400, "usage", "the cursor is wrong"), UsageError, "the cursor is wrong"),
        (Reply(502, b"<html>bad gateway</html>"), Unavailable, "bad gateway"),
        (Reply(200, b"hello"), Unavailable, "is not JSON: 'hello'"),
        (as_json({"kind": "Pod"}), Unavailable, "is no Job as this client knows it"),
    ],
)
def test_an_answer_that_is_an_error_is_that_error(
    call: Verb, server: Wire, reply: Reply, kind: type[FathomError], words: str
) -> None:
    server.replies(reply)
    with pytest.raises(kind, match=words):
        call("get", "a/b")


def test_the_services_own_code_is_kept(call: Verb, server: Wire) -> None:
    server.replies(problem(409, "stale-plan"))
    with pytest.raises(Conflict) as raised:
        call("get", "a/b")
    assert raised.value.code == "stale-plan"


def test_all_problems_of_a_job_come_with_their_fields(call: Verb, server: Wire) -> None:
    errors = [
        {"pointer": "/spec/training/tokens", "detail": "too few"},
        {"pointer": "/spec/tracking/tags/a~1b", "detail": "too long"},
    ]
    server.replies(problem(422, "invalid-job", errors=errors))
    with pytest.raises(InvalidJob) as raised:
        call("plan", submitted(team="a"))
    assert str(raised.value) == "spec.training.tokens: too few\nspec.tracking.tags.a/b: too long"


def test_a_redirection_is_not_followed(call: Verb, server: Wire) -> None:
    with wire() as other:
        server.replies(Reply(307, b"", {"Location": f"{other.url}/v1/jobs/a/b"}))
        with pytest.raises(UsageError, match="redirection to"):
            call("get", "a/b")
        assert other.asked == []


# ------------------------------------------------------------------ once more


@pytest.mark.parametrize("bad", [Gone(), problem(503, "unavailable"), Reply(502), problem(429, "rate-limited")])
def test_a_read_is_repeated(call: Verb, server: Wire, bad: Reply | Gone) -> None:
    server.replies(bad, bad, as_json(stored()))
    job, slept = call("get", "a/tiny")
    assert (job.name, len(server.asked)) == ("tiny", 3)
    assert 0.125 <= slept[0] <= 0.25 <= slept[1] <= 0.5


def test_it_waits_as_long_as_it_is_asked_to(call: Verb, server: Wire) -> None:
    server.replies(Reply(429, b"", {"Retry-After": "7"}), as_json(stored()))
    assert call("get", "a/tiny")[1] == [7.0]


def test_an_hour_is_too_long(call: Verb, server: Wire) -> None:
    server.replies(Reply(429, b"slow down", {"Retry-After": "3600"}))
    with pytest.raises(Unavailable, match="slow down"):
        call("get", "a/tiny")
    assert len(server.asked) == 1


def test_a_post_is_repeated_with_the_same_key(call: Verb, server: Wire) -> None:
    server.replies(Gone(), problem(409, "idempotency-in-flight"), as_json(stored()))
    call("cancel", "a/tiny")
    keys = [asked.headers["idempotency-key"] for asked in server.asked]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    call("cancel", "a/tiny")
    assert server.asked[-1].headers["idempotency-key"] != keys[0]


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [("patch", ("a/b", {"suspend": True})), ("delete", ("a/b",)), ("create_token", ("ci", "runner"))],
)
def test_what_may_have_been_done_is_not_done_twice(
    call: Verb, server: Wire, verb: str, arguments: tuple[object, ...]
) -> None:
    server.replies(Gone(), as_json(stored()))
    with pytest.raises(Unavailable, match="whether it was done is not known"):
        call(verb, *arguments)
    assert len(server.asked) == 1


def test_a_change_that_was_refused_for_now_is_repeated(call: Verb, server: Wire) -> None:
    server.replies(problem(503, "unavailable"), as_json(stored()))
    call("patch", "a/tiny", {"suspend": True}, etag='"u-1"')
    assert [asked.headers["if-match"] for asked in server.asked] == ['"u-1"'] * 2
    assert server.asked[0].headers["content-type"] == "application/merge-patch+json"
    assert server.asked[0].json() == {"spec": {"suspend": True}}


def test_nobody_there_is_said_with_the_address(call: Verb, server: Wire) -> None:
    server.replies(Gone())
    with pytest.raises(Unavailable, match="does not answer"):
        call("get", "a/tiny")
    assert len(server.asked) == 5


# ------------------------------------------------------------------ streams


def test_a_log_goes_on_where_it_was_cut(call: Verb, server: Wire) -> None:
    server.replies(
        sse("retry: 1000", "id: 1.0\ndata: one\ndata:", "id: 1.4\ndata: two", cut=True),
        Gone(),
        problem(503, "unavailable"),
        sse(": heartbeat"),
        sse("retry: 1000", "id: 2.0\ndata: three", "id: 2.1\ndata:", "event: end\ndata: {}"),
    )
    lines, slept = call("logs", "a/b", follow=True, attempt=1, tail=5)
    assert lines == ["one", "", "two", "three", ""]
    assert server.asked[0].path == "/v1/jobs/a/b/logs?attempt=1&tail=5&follow=true"
    assert "last-event-id" not in server.asked[0].headers
    assert [asked.headers["last-event-id"] for asked in server.asked[1:]] == ["1.4"] * 4
    assert {asked.path for asked in server.asked[1:]} == {"/v1/jobs/a/b/logs?attempt=1&follow=true"}
    assert len(slept) == 4


def test_a_service_that_comes_back_elsewhere_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Wire, way: Verb
) -> None:
    """As after kill -9 and another `fathom serve`: a new port, the same home."""
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
    monkeypatch.delenv("FATHOM_URL", raising=False)
    (tmp_path / "admin.token").write_text("admin-secret")
    home = tmp_path / "service.json"
    with wire() as other:
        home.write_text(json.dumps({"url": server.url}))

        def dies(_: Asked) -> Reply:
            home.write_text(json.dumps({"url": other.url}))
            return sse("id: 1.4\ndata: one", cut=True)

        server.script = dies
        other.replies(sse("id: 1.8\ndata: two", "event: end\ndata: {}"))
        lines, _ = way(None, "logs", "a/b", follow=True)
    assert lines == ["one", "two"]
    [asked] = other.asked
    assert (asked.headers["last-event-id"], asked.headers["authorization"]) == ("1.4", "Bearer admin-secret")
    assert len(server.asked) == 1


def test_a_stream_that_is_refused_is_an_error(call: Verb, server: Wire) -> None:
    server.replies(problem(404, "not-found", "there is no job a/b"))
    with pytest.raises(NotFound, match="there is no job a/b"):
        call("logs", "a/b", follow=True)


def test_a_stream_that_never_opens_is_given_up(monkeypatch: pytest.MonkeyPatch, call: Verb, server: Wire) -> None:
    monkeypatch.setattr("orchestrator.client.connection.PATIENCE_SECONDS", 20.0)
    server.replies(problem(503, "unavailable", "starting"))
    with pytest.raises(Unavailable, match="starting"):
        call("events", "a/b", follow=True)
    assert 5 < len(server.asked) < 20


def test_a_text_is_not_told_twice(call: Verb, server: Wire) -> None:
    server.replies(Gone(), Reply(200, b"one\ntwo\n", {"Content-Type": "text/plain"}))
    assert call("logs", "a/b")[0] == ["one", "two"]
    server.replies(Reply(200, b"one\n", {"Content-Type": "text/plain"}, cut=True))
    with pytest.raises(Unavailable, match="does not answer"):
        call("logs", "a/b")


def test_events_come_page_by_page(call: Verb, server: Wire) -> None:
    pages = {"": ([{"seq": 1}, {"seq": 2}], "80"), "80": ([{"seq": 3}], "120")}

    def script(asked: Asked) -> Reply:
        items, after = pages[httpx2.URL(asked.path).params.get("after", "")]
        return as_json({"items": items, "next": after, "more": after == "80"})

    server.script = script
    assert call("metrics", "a/b")[0] == [{"seq": 1}, {"seq": 2}, {"seq": 3}]


def test_events_are_followed(call: Verb, server: Wire) -> None:
    server.replies(sse('id: 90\ndata: {"seq": 1}', "event: end\ndata:"))
    assert call("events", "a/b", follow=True, after="80")[0] == [{"seq": 1}]
    assert server.asked[0].headers["last-event-id"] == "80"


# ------------------------------------------------------------------ lists, waiting


def test_pages_are_turned(call: Verb, server: Wire) -> None:
    names = [f"job-{number}" for number in range(250)]

    def script(asked: Asked) -> Reply:
        query = httpx2.URL(asked.path).params
        begin, size = int(query.get("cursor", "0")), int(query["limit"])
        end = begin + size
        items = [stored(name) for name in names[begin:end]]
        return as_json({"items": items, "next": str(end) if end < len(names) else ""})

    server.script = script
    assert [job.name for job in call("list")[0]] == names
    assert len(server.asked) == 3
    assert [job.name for job in call("list", limit=101)[0]] == names[:101]
    call("list", phases=["Running", Phase.FAILED], team="vision", name="x", limit=1)
    assert server.asked[-1].path == "/v1/jobs?phase=Running&phase=Failed&namespace=vision&name=x&limit=1"


def test_waiting_ends_when_nothing_more_happens(call: Verb, server: Wire) -> None:
    phases = ["Queued", "Running", "Suspended"]
    server.replies(*(as_json(stored(phase=phase)) for phase in phases))
    job, slept = call("wait", "a/tiny")
    assert (job.phase, slept) == (Phase.SUSPENDED, [0.5, 0.75])


def test_waiting_for_what_cannot_come_says_why(call: Verb, server: Wire) -> None:
    message = "out of memory"
    complete = {"type": "Complete", "status": "True", "reason": "Failed", "message": message}
    status = {"conditions": [complete | {"lastTransitionTime": "2026-06-01T12:00:00Z"}]}
    server.replies(as_json(stored(phase="Failed", status=status)))
    with pytest.raises(FathomError, match=message):
        call("wait", "a/tiny", ["Running"])


def test_waiting_has_an_end(call: Verb, server: Wire) -> None:
    server.replies(as_json(stored(phase="Queued")))
    with pytest.raises(TimeoutError, match="a/tiny is still Queued after 3 s"):
        call("wait", "a/tiny", timeout=3)
    assert len(server.asked) == 5


# ------------------------------------------------------------------ applying


def test_a_new_job_is_made_by_its_plan(call: Verb, server: Wire) -> None:
    def script(asked: Asked) -> Reply:
        if asked.method == "GET":
            return problem(404, "not-found")
        return as_json(planned(team="a") if asked.path == "/v1/plans" else stored(team="a"), 201)

    server.script = script
    plan, _ = call("plan", submitted(team="a"))
    assert plan.forecast is None
    job, _ = call("apply", plan)
    assert job.key == "a/tiny"
    assert server.asked[-1].json() == {"job": submitted(team="a"), "plan": "plan-tiny"}
    call("apply", submitted(team="a"), dry_run=True)
    assert server.asked[-1].path == "/v1/jobs?dryRun=true"


def test_what_may_change_is_changed_and_only_that(call: Verb, server: Wire) -> None:
    live = stored(team="a", budget={"limit": "5"}, suspend=True)
    server.script = lambda _: as_json(live)
    call("apply", submitted(team="a", budget={"limit": "9"}))
    assert server.asked[-1].method == "PATCH"
    assert server.asked[-1].json() == {"spec": {"budget": {"limit": "9"}}}
    assert server.asked[-1].headers["if-match"] == '"u-tiny-1"'
    server.asked.clear()
    call("apply", submitted(team="a", budget={"limit": "5"}))
    assert [asked.method for asked in server.asked] == ["GET"]
    with pytest.raises(Conflict, match=r"training\.tokens: 100000 -> 200000"):
        call("apply", submitted(team="a", training={"tokens": 200_000, "globalBatchTokens": 256}))


# ------------------------------------------------------------------ the rest


def test_tokens(call: Verb, server: Wire) -> None:
    token = {"name": "ci", "role": "runner", "team": "vision"}
    server.replies(as_json(token | {"secret": "s"}, 201))
    made, _ = call("create_token", "ci", "runner", team="vision", days=30)
    assert made.secret == "s"
    assert "'s'" not in repr(made)
    assert server.asked[-1].json() == token | {"days": 30}
    server.replies(as_json({"items": [token], "next": ""}))
    [listed], _ = call("tokens")
    assert listed.secret is None
    server.replies(Reply(204))
    call("revoke_token", "ci")
    assert (server.asked[-1].method, server.asked[-1].path) == ("DELETE", "/v1/tokens/ci")


def test_a_metric_to_compare_is_passed_on(call: Verb, server: Wire) -> None:
    server.replies(as_json({}))
    call("compare", "a/b", "a/c", by="dollars", metric="train/loss")
    assert server.asked[-1].path == "/v1/compare?job=a%2Fb&job=a%2Fc&by=dollars&metric=train%2Floss"


@pytest.mark.parametrize(
    ("verb", "arguments", "path"),
    [
        ("cost", ("a/b",), "/v1/jobs/a/b/cost"),
        ("costs", ("vision",), "/v1/costs?namespace=vision"),
        ("capacity", (), "/v1/capacity"),
        ("compare", ("a/b", "a/c"), "/v1/compare?job=a%2Fb&job=a%2Fc&by=dollars"),
    ],
)
def test_documents_are_passed_on(call: Verb, server: Wire, verb: str, arguments: tuple[object, ...], path: str) -> None:
    server.replies(as_json({"spent": "1.5"}))
    assert call(verb, *arguments)[0] == {"spent": "1.5"}
    assert server.asked[-1].path == path
