"""Server-sent events: what followers find reaches their readers once, over a real uvicorn on loopback."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from support.runs import event

from orchestrator.api.following import (
    LogFollower,
    Look,
    Message,
    Place,
    RecordFollower,
    Standing,
    beginning,
    read_offset,
    resumed,
)
from orchestrator.api.server import Server
from orchestrator.api.streams import Streams
from orchestrator.errors import NotFound, RateLimited, UsageError
from orchestrator.launch.archive import FolderArchive
from orchestrator.launch.base import RunFolder
from orchestrator.status import Phase

RUNNING, DONE = Standing(Phase.RUNNING, over=False), Standing(Phase.SUCCEEDED, over=True)


# ------------------------------------------------------------------ followers


@dataclass
class Job:
    """A run's folder, and where its job stands."""

    folder: RunFolder
    standing: Standing = RUNNING
    before_told: list[Callable[[], None]] = field(default_factory=list)
    """What happens just after the next question."""
    looks: int = 0

    @property
    def archive(self) -> FolderArchive:
        return FolderArchive(self.folder)

    def ask(self) -> Standing:
        told = self.standing
        for happen in self.before_told:
            happen()
        self.before_told.clear()
        return told

    def attempt(self, number: int) -> None:
        self.folder.resolved(number).write_text("{}")

    def say(self, attempt: int, text: str) -> None:
        self.folder.log(attempt).parent.mkdir(exist_ok=True)
        with self.folder.log(attempt).open("a") as file:
            file.write(text)

    def report(self, step: int) -> None:
        line = event("progress", float(step + 1), step=step, tokens=step, seq=step + 1).model_dump_json(by_alias=True)
        self.folder.events.parent.mkdir(exist_ok=True)
        with self.folder.events.open("a") as file:
            file.write(line + "\n")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(RunFolder(tmp_path))


def _drained(follower: Callable[[], Look]) -> tuple[list[Message], Standing | None]:
    """All that is there."""
    messages: list[Message] = []
    while True:
        look = follower()
        messages += look.messages
        if look.end is not None or not look.messages:
            return messages, look.end


def _text(messages: list[Message]) -> str:
    return "".join(message.data + "\n" for message in messages)


def test_a_log_is_followed_over_attempts_to_the_end_of_the_job(job: Job) -> None:
    follower = LogFollower(job.archive, job.ask, beginning(job.archive, None, None))
    assert _drained(follower) == ([], None)
    job.attempt(1)
    job.say(1, "one\ntwo\nbeg")
    messages, end = _drained(follower)
    assert (_text(messages), end) == ("one\ntwo\n", None)
    assert messages[-1].id == "1.8"
    job.say(1, "un")
    assert _drained(follower) == ([], None)
    job.attempt(2)  # the first has ended within a line; the second says nothing
    job.attempt(3)
    job.say(3, "three\n")
    assert _text(_drained(follower)[0]) == "begun\nthree\n"
    job.say(3, "last")
    job.standing = DONE
    messages, end = _drained(follower)
    assert (_text(messages), end) == ("last\n", DONE)


def test_what_a_job_writes_before_it_ends_is_sent_before_its_end_is_told(job: Job) -> None:
    job.attempt(1)
    job.say(1, "one\n")
    log = LogFollower(job.archive, job.ask, Place(1))
    records = RecordFollower(job.archive, job.ask, lambda entry: str(entry.event.seq), offset=0)
    _drained(log), _drained(records)

    def end() -> None:
        job.say(1, "the last words\n")
        job.report(1)
        job.standing = DONE

    job.before_told.append(end)  # just after the question
    assert log() == Look([Message("the last words", "1.19")])
    assert [message.data for message in records().messages] == ["2"]
    assert (log().end, records().end) == (DONE, DONE)


def test_one_attempt_alone_ends_with_it(job: Job) -> None:
    job.attempt(1)
    job.say(1, "one\n")
    follower = LogFollower(job.archive, job.ask, Place(1), alone=True)
    assert _drained(follower)[1] is None
    job.attempt(2)
    job.say(2, "two\n")
    job.say(1, "end")
    messages, end = _drained(follower)
    assert (_text(messages), end) == ("end\n", RUNNING)


def test_a_tail_begins_in_the_newest_attempt(job: Job) -> None:
    assert beginning(job.archive, None, 5) == Place(0)
    for attempt in (1, 2):
        job.attempt(attempt)
        job.say(attempt, "a\nb\nc\n")
    assert beginning(job.archive, None, 2) == Place(2, 2)
    assert beginning(job.archive, 1, None) == Place(1, 0)
    with pytest.raises(NotFound, match="there is no attempt 3: it has had 2"):
        beginning(job.archive, 3, None)


def test_places_that_are_not_there_are_refused(job: Job) -> None:
    job.attempt(1)
    job.say(1, "one\n")
    assert resumed(job.archive, "1.4") == Place(1, 4)
    for text, words in (("1.5", "beyond the end at 4"), ("2.0", "of attempt 2, and there are 1")):
        with pytest.raises(UsageError, match=words):
            resumed(job.archive, text)
    for text in ("1", "1.", "1.-1", "x.1", "1.1.1", "1.٣", "1." + "9" * 20, ""):
        with pytest.raises(UsageError, match=r"none of ours, which are ATTEMPT\.OFFSET"):
            resumed(job.archive, text)
    for text in ("-1", "1.5", "", "٣", "9" * 20):
        with pytest.raises(UsageError, match="is no offset"):
            read_offset(text)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_cut_and_wherever_nothing_is_lost_or_doubled(job: Job, seed: int) -> None:
    """Writer and reader take turns by chance; the reader forgets all but the last id."""
    chance = random.Random(seed)
    written, read, attempt, last = "", "", 0, None
    follower = LogFollower(job.archive, job.ask, beginning(job.archive, None, None))
    for _ in range(60):
        what = chance.random()
        if what < 0.05 or not attempt:
            written += "" if not written or written.endswith("\n") else "\n"
            attempt += 1
            job.attempt(attempt)
        elif what < 0.6:
            part = "".join(chance.choices("aö\n", k=chance.randint(1, 9)))
            job.say(attempt, part)
            written += part
        for message in follower().messages:
            read += message.data + "\n"
            last = message.id
            if chance.random() < 0.5:  # cut: what came after it is not read
                follower = LogFollower(job.archive, job.ask, resumed(job.archive, last))
                break
    job.standing = DONE
    follower = follower if last is None else LogFollower(job.archive, job.ask, resumed(job.archive, last))
    assert read + _text(_drained(follower)[0]) == written + ("" if written.endswith("\n") else "\n")


# ------------------------------------------------------------------ streams without sockets


class Time:
    """Goes on when somebody pauses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def _script(*looks: Look) -> Callable[[], Look]:
    left = list(looks)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


async def _chunks(answer: Any, count: int) -> list[bytes]:  # noqa: ANN401 - Starlette's
    found = []
    async for chunk in answer.body_iterator:
        found.append(chunk)
        if len(found) == count:
            break
    return found


def test_a_silent_stream_says_every_15_seconds_that_it_is_alive_and_looks_less_and_less_often() -> None:
    time = Time()
    streams = Streams(clock=time, pause=time.pause)
    chunks = asyncio.run(_chunks(streams.answer("me", _script(Look([]))), 4))
    assert chunks == [b": begun\n\n", *[b": ping\n\n"] * 3]
    assert 45 <= time.now < 48
    assert time.pauses[0] == 0.1
    assert max(time.pauses) == 1.0


def test_messages_and_the_end_are_in_the_format_of_events() -> None:
    looks = Look([Message("a\nb", "1.4"), Message("", "1.5")]), Look([], DONE)
    chunks = asyncio.run(_chunks(Streams().answer("me", _script(*looks)), 99))
    assert b"".join(chunks) == (
        b": begun\n\n"
        b"data: a\ndata: b\nid: 1.4\n\n"
        b"data: \nid: 1.5\n\n"
        b'event: end\ndata: {"phase": "Succeeded", "deleted": false}\n\n'
    )


def test_a_stream_that_is_old_ends_for_its_reader_to_come_back() -> None:
    time = Time()
    streams = Streams(clock=time, pause=time.pause, longest=40)
    chunks = asyncio.run(_chunks(streams.answer("me", _script(Look([]))), 99))
    assert chunks == [b": begun\n\n", *[b": ping\n\n"] * 2]
    assert 40 <= time.now < 42


def test_who_is_not_allowed_any_more_is_sent_nothing_more() -> None:
    time, allowed = Time(), [True, True, False]
    streams = Streams(clock=time, pause=time.pause)
    answer = streams.answer("me", _script(Look([])), allowed=lambda: allowed.pop(0))
    assert asyncio.run(_chunks(answer, 99)) == [b": begun\n\n", *[b": ping\n\n"] * 2]


def test_streams_of_a_token_and_of_all_are_counted() -> None:
    streams = Streams(per_token=2, total=3)
    for who in ("a", "a", "b"):
        streams.enter(who)
    with pytest.raises(RateLimited, match="this token has 2 streams open, and may have 2"):
        streams.enter("a")
    with pytest.raises(RateLimited, match="the service has 3 streams open"):
        streams.enter("c")
    streams.leave("a")
    streams.enter("c")
    assert streams.count == 3


# ------------------------------------------------------------------ on real sockets


def _app(job: Job, streams: Streams) -> FastAPI:
    """The streams alone, as the routers of the API give them."""
    app = FastAPI()
    app.state.streams = streams

    @app.exception_handler(RateLimited)
    async def refused(_: Request, error: RateLimited) -> Response:
        return JSONResponse({"detail": str(error)}, error.http_status)

    @app.get("/log", response_model=None)
    def log(request: Request) -> Response:
        last = request.headers.get("last-event-id")
        place = resumed(job.archive, last) if last else beginning(job.archive, None, None)
        return streams.answer("me", LogFollower(job.archive, job.ask, place))

    @app.get("/flood", response_model=None)
    def flood() -> Response:
        def look() -> Look:
            job.looks += 1
            return Look([Message("x" * 65536, "1.1")])

        return streams.answer("me", look)

    return app


@contextmanager
def served(app: FastAPI) -> Iterator[tuple[str, Server]]:
    """By a uvicorn in a thread, on a free port."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=30)
    server = Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join(120)
            assert not thread.is_alive()


def _until(true: Callable[[], bool], what: str) -> None:
    """A bounded wait for what another thread does."""
    wait = threading.Event()
    for _ in range(2400):
        if true():
            return
        wait.wait(0.05)
    raise AssertionError(f"waited in vain until {what}")


@asynccontextmanager
async def _opened(client: httpx2.AsyncClient, path: str, last: str | None) -> AsyncIterator[httpx2.EventSource]:
    headers = {"Last-Event-ID": last} if last else {}
    async with client.stream("GET", path, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield httpx2.EventSource(response)


@pytest.mark.parametrize("seed", range(3))
def test_readers_that_are_cut_at_random_places_read_every_line_once(job: Job, seed: int) -> None:
    chance = random.Random(seed)
    lines = [f"line {number} " + "ö" * chance.randint(0, 300) for number in range(400)]
    job.attempt(1)

    def write() -> None:
        for number, line in enumerate(lines):
            attempt = 1 + number // 150
            job.attempt(attempt)
            half = chance.randint(0, len(line))
            job.say(attempt, line[:half])
            job.say(attempt, line[half:] + "\n")
        job.standing = DONE

    async def read(url: str) -> tuple[list[str], int]:
        found: list[str] = []
        last, cuts = "1.0", -1
        async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
            while True:
                cuts += 1
                patience = chance.randint(1, 4)
                async with _opened(client, "/log", last) as events:
                    async for one in events:
                        if one.event == "end":
                            return found, cuts
                        found += one.data.split("\n")
                        last = one.id
                        patience -= 1
                        if not patience:
                            break

    with served(_app(job, Streams())) as (url, _):
        writer = threading.Thread(target=write)
        writer.start()
        found, cuts = asyncio.run(read(url))
        writer.join()
    assert found == lines
    assert cuts >= 1


def test_a_reader_that_leaves_ends_the_work_and_gives_its_place_back(job: Job) -> None:
    streams = Streams(per_token=1)
    with served(_app(job, streams)) as (url, _), httpx2.Client(base_url=url, timeout=120) as client:
        with client.stream("GET", "/log") as response:
            lines = response.iter_lines()
            next(lines)
            with client.stream("GET", "/log") as second:
                assert second.status_code == 429
                assert second.headers["content-type"] == "application/json"
            assert streams.count == 1
        _until(lambda: streams.count == 0, "the stream of a reader that left is over")
        with client.stream("GET", "/log") as response:
            assert response.status_code == 200


def test_who_does_not_read_holds_up_the_looks_of_its_own_stream(job: Job) -> None:
    streams = Streams()
    with served(_app(job, streams)) as (url, _), httpx2.Client(base_url=url, timeout=120) as client:
        with client.stream("GET", "/flood") as response:
            assert response.status_code == 200
            looks = -1

            def still() -> bool:
                nonlocal looks
                before, looks = looks, job.looks
                return before == looks > 1

            _until(still, "nothing more is looked for")
            assert looks * 65536 < 64 << 20  # what sockets hold, and no more
            with client.stream("GET", "/log") as other:  # others are served
                assert other.status_code == 200
        _until(lambda: streams.count == 0, "both are over")


def test_a_server_that_is_told_to_stop_ends_its_streams_at_once_and_without_their_end(job: Job) -> None:
    with (
        served(_app(job, Streams())) as (url, server),
        httpx2.Client(base_url=url, timeout=120) as client,
        client.stream("GET", "/log") as response,
    ):
        lines = response.iter_lines()
        assert next(lines) == ": begun"
        server.should_exit = True
        assert list(lines) == [""]
