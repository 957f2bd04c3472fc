"""Logs, events and metrics of a job over the API: text, pages and streams, and who may see them."""

from __future__ import annotations

import json
import re
import threading

import httpx2
import pytest
from support.api import problem
from support.served import running
from support.service import Runs, story

from orchestrator.api.archives import standing
from orchestrator.api.following import Standing
from orchestrator.cost.timeline import Held
from orchestrator.status import JobStatus, Phase
from orchestrator.store.access import Role
from orchestrator.store.base import StoredJob
from orchestrator.store.sqlite import SqliteStore

T = 1_750_000_000.0
PATH = "/v1/jobs/default/mini"
STREAM = {"accept": "text/event-stream"}


@pytest.fixture
def job(runs: Runs) -> StoredJob:
    """It has ended after two attempts."""
    stored = runs.job()
    events = story(1, T, 4, "failed") + story(2, T + 20, 3)
    runs.run(stored, events, [Held(1, T, T + 8), Held(2, T + 20, T + 30)], log="one\n\x1b[31mtwo\x1b[0m\nthree\n")
    runs.end(stored)
    return stored


def _sent(text: str) -> list[tuple[str, str, str]]:
    """Event, data and id of what a stream has sent."""
    found = []
    for block in re.sub(r"^:.*\n\n", "", text, flags=re.M).split("\n\n")[:-1]:
        fields: dict[str, list[str]] = {"event": [], "data": [], "id": []}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            fields[name].append(value)
        found.append(("".join(fields["event"]), "\n".join(fields["data"]), "".join(fields["id"])))
    return found


def test_a_log_is_text_of_the_newest_attempt_made_harmless(runs: Runs, job: StoredJob) -> None:
    runs.folder(job).log(2).write_text("second\nlast")
    answer = runs.get(f"{PATH}/logs")
    assert (answer.text, answer.headers["content-type"]) == ("second\nlast", "text/plain; charset=utf-8")
    assert runs.get(f"{PATH}/logs?attempt=1").text == "one\ntwo\nthree\n"
    assert runs.get(f"{PATH}/logs?attempt=1&tail=1").text == "three\n"
    assert runs.get(f"{PATH}/logs?tail=0").text == ""


def test_a_long_log_comes_whole(runs: Runs, job: StoredJob) -> None:
    text = "".join(f"line {number} ö\n" for number in range(60_000)) + "é" * 400_000
    runs.folder(job).log(2).write_text(text)
    assert runs.get(f"{PATH}/logs").text == text


def test_what_is_not_there_yet_is_empty_and_what_never_was_is_not_found(runs: Runs) -> None:
    runs.job()
    assert runs.get(f"{PATH}/logs").text == ""
    assert runs.get(f"{PATH}/events").json() == {"items": [], "next": "0", "more": False}
    answer = runs.get(f"{PATH}/logs?attempt=1")
    assert (answer.status_code, answer.json()["detail"]) == (404, "there is no attempt 1: it has had none yet")


def test_a_log_is_streamed_to_the_end_of_a_job_and_from_any_id(runs: Runs, job: StoredJob) -> None:
    first = _sent(runs.get(f"{PATH}/logs?follow=true&attempt=1").text)
    end = ("end", '{"phase": "Succeeded", "deleted": false}', "")
    size = runs.folder(job).log(1).stat().st_size
    assert first == [("", "one\ntwo\nthree", f"1.{size}"), end]
    resumed = runs.get(f"{PATH}/logs", **STREAM, **{"last-event-id": "1.4"})
    assert resumed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert resumed.headers["cache-control"] == "no-cache, no-store"
    assert _sent(resumed.text) == [("", "two\nthree", f"1.{size}"), ("", "one\ntwo\nthree", f"2.{size}"), end]
    for last, status in (("1.99", 400), ("3.0", 400), ("x", 400), ("1." + "9" * 50, 422)):
        answer = runs.get(f"{PATH}/logs", **STREAM, **{"last-event-id": last})
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_events_come_in_pages_and_times_are_dates(runs: Runs, job: StoredJob) -> None:
    found, after, pages = [], "", 0
    while True:
        page = runs.get(f"{PATH}/events?limit=4&after={after}").json()
        found += page["items"]
        after, pages = page["next"], pages + 1
        if not page["more"]:
            break
    assert pages == 3
    assert [one["kind"] for one in found] == [
        "started",
        *["progress"] * 4,
        "ended",
        "started",
        *["progress"] * 3,
        "ended",
    ]
    assert found[0]["time"] == "2025-06-15T15:06:41.000000Z"
    assert found[5]["failureClass"] == "stalled"
    assert runs.get(f"{PATH}/events?after={after}").json() == {"items": [], "next": after, "more": False}


def test_metrics_are_the_steps_and_nothing_else(runs: Runs, job: StoredJob) -> None:
    items = runs.get(f"{PATH}/metrics").json()["items"]
    assert [(one["attempt"], one["step"]) for one in items] == [(1, n) for n in range(1, 5)] + [
        (2, n) for n in range(1, 4)
    ]
    assert items[1] == {
        "attempt": 1,
        "step": 2,
        "tokens": 200,
        "time": "2025-06-15T15:06:43.000000Z",
        "metrics": {"train/loss": 2.5},
    }


@pytest.mark.parametrize("kind", ["events", "metrics"])
def test_records_are_streamed_as_pages_have_them_and_go_on_from_any_id(runs: Runs, job: StoredJob, kind: str) -> None:
    items = runs.get(f"{PATH}/{kind}").json()["items"]
    sent = _sent(runs.get(f"{PATH}/{kind}?follow=true").text)
    assert [json.loads(data) for event, data, _ in sent if not event] == items
    assert sent[-1][0] == "end"
    for index, (_, _, last) in enumerate(sent[:-1]):
        rest = _sent(runs.get(f"{PATH}/{kind}", **STREAM, **{"last-event-id": last}).text)
        assert rest == sent[index + 1 :]
        assert runs.get(f"{PATH}/{kind}?after={last}").json()["items"] == items[index + 1 :]


def test_an_offset_that_is_not_there_is_refused(runs: Runs, job: StoredJob) -> None:
    answer = runs.get(f"{PATH}/events?after=999999")
    assert (answer.status_code, answer.json()["code"]) == (400, "usage")
    assert runs.get(f"{PATH}/events?after=x").status_code == 422


def test_damaged_lines_are_left_out(runs: Runs, job: StoredJob) -> None:
    whole = runs.get(f"{PATH}/events").json()["items"]
    path = runs.folder(job).events
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"kind": "progress", tor\n\xff\xfe\n' + b"".join(lines[1:]) + b'{"kind": "warning"')
    assert runs.get(f"{PATH}/events").json()["items"] == whole


def test_everything_is_there_after_the_service_was_started_again(runs: Runs, job: StoredJob) -> None:
    before = [runs.get(f"{PATH}/{what}").text for what in ("logs", "events", "metrics", "cost")]
    runs.close()
    runs.store = SqliteStore(runs.home / "fathom.db")
    runs.start()
    assert [runs.get(f"{PATH}/{what}").text for what in ("logs", "events", "metrics", "cost")] == before


@pytest.mark.parametrize("what", ["logs", "events", "metrics", "cost", "logs?follow=true"])
def test_what_is_of_another_team_is_not_there(runs: Runs, job: StoredJob, what: str) -> None:
    assert runs.get(f"{PATH}/{what}", Role.READER, "default").status_code == 200
    foreign = runs.get(f"{PATH}/{what}", Role.READER, "others")
    missing = runs.get(f"/v1/jobs/default/none/{what}", Role.READER, "others")
    assert foreign.status_code == missing.status_code == 404
    assert foreign.json()["detail"].replace("mini", "none") == missing.json()["detail"]


def test_a_stream_ends_when_its_job_is_forgotten(runs: Runs) -> None:
    stored = runs.job()
    ask = standing(runs.app.state.desk, stored)
    assert ask() == Standing(Phase.PENDING, over=False)
    runs.store.set_status(stored.uid, JobStatus(phase=Phase.FAILED, observed_generation=1))
    assert ask() == Standing(Phase.FAILED, over=True)
    runs.admin.post(f"{PATH}:resume")  # the controller has not seen it yet
    assert ask() == Standing(Phase.FAILED, over=False)
    runs.store.remove(stored.uid)
    runs.job()  # another one of that name
    assert ask() == Standing(Phase.FAILED, over=True, gone=True)


def test_a_token_that_is_revoked_ends_its_stream(runs: Runs) -> None:
    runs.job()
    streams = runs.app.state.streams
    now = 0.0

    async def pause(seconds: float) -> None:
        nonlocal now
        now += 20
        if now == 40:
            runs.access.revoke("a-reader")

    streams.clock, streams.pause = lambda: now, pause
    assert runs.get(f"{PATH}/logs?follow=true", Role.READER).text == ": begun\n\n: ping\n\n"


def test_streams_of_the_whole_application_are_counted_and_seen_to_end(runs: Runs) -> None:
    """Through all that stands before the routes, on a real socket."""
    runs.job()
    streams = runs.app.state.streams
    streams.per_token = 1
    headers = {"Authorization": f"Bearer {runs.secrets[Role.READER]}"}
    with running(runs) as url, httpx2.Client(base_url=url, headers=headers, timeout=120) as client:
        with client.stream("GET", f"{PATH}/events?follow=true") as first:
            lines = first.iter_lines()
            assert next(lines) == ": begun"
            found = problem(client.get(f"{PATH}/logs?follow=true"), 429, "rate-limited")
            assert found["detail"] == "this token has 1 streams open, and may have 1: close one first"
        wait = threading.Event()
        for _ in range(2400):
            if not streams.count:
                break
            wait.wait(0.05)
        assert streams.count == 0
