"""Machines that do not answer, and the threads of the API."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.api import Service, problem
from support.runs import tiny_job

from orchestrator.api import far, jobs, plans
from orchestrator.api.far import Far
from orchestrator.errors import RateLimited
from orchestrator.store.access import Role

URL = {"data": {"source": "data", "sequenceLength": 32, "tokenizer": "https://far.example/tokenizer.json"}}


def test_machines_that_do_not_answer_take_a_part_of_the_threads_only(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, waiting = threading.Event(), threading.Semaphore(0)

    def stuck(*_: Any) -> Any:  # noqa: ANN401 - it is never asked for
        waiting.release()
        answers.wait(300)
        raise far.RateLimited("as good as any")

    monkeypatch.setattr(jobs, "check", stuck)
    monkeypatch.setattr(plans, "check", stuck)
    body, runner = {"job": service.document(**URL)}, service.of_team("default", Role.RUNNER)
    service.app.openapi()  # which is made once, by the one event loop that a server has
    with ThreadPoolExecutor() as threads:
        try:
            held = [threads.submit(runner.post, "/v1/jobs?dryRun=true", json=body) for _ in range(3)]
            held.append(threads.submit(runner.post, "/v1/plans", json=body))
            for _ in held:
                assert waiting.acquire(timeout=120)
            refused = runner.post("/v1/jobs", json=body)
            assert int(refused.headers["Retry-After"]) > 0
            assert "at most 4 of a token and 12 in all" in problem(refused, 429, "rate-limited")["detail"]
            assert runner.get("/v1/jobs").status_code == 200
        finally:
            answers.set()
    assert [one.result().status_code for one in held] == [429] * 4


def test_it_counts_whoever_is_done_no_more() -> None:
    one, job = Far(), tiny_job()
    data = job.spec.data.model_copy(update={"tokenizer": URL["data"]["tokenizer"]})
    elsewhere = job.model_copy(update={"spec": job.spec.model_copy(update={"data": data})})
    for _ in range(20):
        with one.read(elsewhere, "ann"):
            pass
    with one.read(elsewhere, "ann"), one.read(elsewhere, "ann"), one.read(elsewhere, "ann"), one.read(elsewhere, "ann"):
        with pytest.raises(RateLimited), one.read(elsewhere, "ann"):
            pass
        with one.read(elsewhere, "bob"), one.read(job, "ann"):
            pass
