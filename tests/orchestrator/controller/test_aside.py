"""The controller and what jobs read from machines that do not answer."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from support.launcher import Attempt, Stage
from support.runs import dataset, tiny_job

from orchestrator.controller import aside, drafting
from orchestrator.controller.aside import Aside, urls
from orchestrator.errors import InvalidJob, Problem
from orchestrator.spec import TrainingJob
from orchestrator.status import ConditionType, Phase, Reason

URL = "memory://tokenizer.json"


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def with_tokenizer(root: Path) -> TrainingJob:
    text = b"the tokenizer"
    with fsspec.open(URL, "wb") as file:
        file.write(text)
    job = tiny_job(str(dataset(root / "data", sha256=hashlib.sha256(text).hexdigest())))
    data = job.spec.data.model_copy(update={"tokenizer": URL})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"data": data})})


def works(attempt: Attempt) -> Iterator[object]:
    attempt.start(0)
    yield 1
    attempt.end("succeeded")


def test_a_machine_that_does_not_answer_holds_up_its_own_job_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, with_tokenizer(tmp_path))
    other = stage.store.create(tiny_job(str(dataset(tmp_path / "other")), name="other"), by="test")
    answers, resolve = threading.Event(), drafting.resolve_next

    def slow(record: Any, *rest: Any, **more: Any) -> Any:  # noqa: ANN401 - as it comes
        assert record.job.metadata.name != "tiny" or answers.wait(300)
        return resolve(record, *rest, **more)

    monkeypatch.setattr(drafting, "resolve_next", slow)
    stage.stories.append(works)
    controller = stage.controller(only=False)

    def turn() -> Phase:
        controller.turn()
        stage.clock.sleep(0.5)
        return stage.stored().status.phase

    for _ in range(12):
        turn()
    found = stage.store.by_uid(other.uid)
    assert found is not None
    assert found.status.phase is Phase.SUCCEEDED
    assert stage.stored().status.phase is Phase.QUEUED
    waits = stage.stored().status.condition(ConditionType.ADMITTED)
    assert waits is not None
    assert (waits.reason, waits.message) == (
        Reason.WAITING_FOR_QUEUE,
        f"it waits for what it reads from another machine: {URL}",
    )
    stage.stories.append(works)
    answers.set()
    until(lambda: turn() is Phase.SUCCEEDED)
    controller.close()
    stage.store.database.close()


def test_a_machine_that_is_away_for_a_while_fails_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever submitted it could read what it names; the job waits until that can be read again."""
    stage = Stage(tmp_path, monkeypatch, with_tokenizer(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.move("/tokenizer.json", "/elsewhere")
    monkeypatch.setattr(aside, "KEPT_SECONDS", 0.0)
    stage.stories.append(works)
    controller = stage.controller(only=False)

    def admitted() -> str:
        controller.turn()
        stage.clock.sleep(3)
        found = stage.stored().status.condition(ConditionType.ADMITTED)
        return "" if found is None else found.message

    until(lambda: "it is tried again" in admitted())
    assert URL in admitted()
    assert stage.stored().status.phase is Phase.QUEUED
    memory.move("/elsewhere", "/tokenizer.json")
    until(lambda: admitted() == "" and stage.stored().status.phase is Phase.SUCCEEDED)
    controller.close()
    stage.store.database.close()


def test_what_is_read() -> None:
    job = tiny_job()
    assert urls(job) == []
    data = job.spec.data.model_copy(update={"tokenizer": "file:///t.json"})
    model = job.spec.model.model_copy(update={"init_from": "s3://bucket/weights"})
    found = job.model_copy(update={"spec": job.spec.model_copy(update={"data": data, "model": model})})
    assert urls(found) == ["s3://bucket/weights"]


def test_a_call_is_made_once_and_again_for_another_key_or_after_a_while() -> None:
    now, calls = [0.0], list[str]()
    one = Aside[str](lambda: now[0])

    def call(word: str) -> Callable[[], str]:
        def called() -> str:
            calls.append(word)
            return word

        return called

    until(lambda: one.get("a", call("a")) == "a")
    assert one.get("a", call("a")) == "a"
    until(lambda: one.get("b", call("b")) == "b")
    now[0] += aside.KEPT_SECONDS
    until(lambda: one.get("b", call("c")) == "c")
    assert calls == ["a", "b", "c"]


def test_one_that_does_not_end_is_not_joined_by_others() -> None:
    ends, one = threading.Event(), Aside[int]()

    def stuck() -> int:
        ends.wait(300)
        return 1

    before = threading.active_count()
    assert [one.get(key, stuck) for key in range(5)] == [None] * 5
    assert threading.active_count() == before + 1
    ends.set()
    until(lambda: one.get(7, lambda: 2) == 2)


def test_what_it_raises_is_raised_where_it_is_asked_for() -> None:
    one = Aside[int]()

    def fails() -> int:
        raise InvalidJob([Problem("spec.data.tokenizer", "is none")])

    def raised() -> bool:
        try:
            return one.get("a", fails) is not None
        except InvalidJob:
            return True

    until(raised)
