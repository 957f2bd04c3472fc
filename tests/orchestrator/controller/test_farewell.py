"""What webhooks hear of a job that is deleted, also if the service is killed on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.launcher import Attempt, Stage, obeys
from support.receiver import Receiver, receiver
from support.runs import dataset, tiny_job
from support.turns import turns

from orchestrator.controller import outbox
from orchestrator.controller.record import Record
from orchestrator.launch.base import RunFolder
from orchestrator.settings import Settings
from orchestrator.spec import Notify
from orchestrator.status import Phase


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Receiver) -> Iterator[Stage]:
    job = tiny_job(str(dataset(tmp_path / "data")))
    spec = job.spec.model_copy(update={"notify": Notify(url=there.url(), when=["ended"])})
    made = Stage(tmp_path, monkeypatch, job.model_copy(update={"spec": spec}))
    made.settings = Settings.load({"FATHOM_HOME": str(tmp_path), "FATHOM_WEBHOOK_HOSTS": "127.0.0.1"})
    yield made
    made.store.database.close()


def ends(attempt: Attempt) -> Iterator[object]:
    attempt.start(0)
    yield 1
    attempt.end("succeeded")


def delete(stage: Stage, *, keep: bool = False) -> None:
    stage.wish(lambda wish: replace(wish, deleted_at=datetime.now(UTC), keep_files=keep))


def heard(there: Receiver) -> list[dict[str, Any]]:
    return [json.loads(one.body) for one in there.got]


@pytest.mark.parametrize("keep", [False, True])
def test_a_job_that_is_deleted_while_it_runs(stage: Stage, there: Receiver, keep: bool) -> None:
    stage.stories.append(obeys)
    controller = stage.controller(only=False)
    turns(stage, controller)
    delete(stage, keep=keep)
    turns(stage, controller)
    assert stage.store.by_uid(stage.job.uid) is None
    controller._notifier.deliver()
    controller.close()
    (note,) = heard(there)
    assert note["id"] == f"{stage.job.uid}-1-ended-cancelled"
    assert (note["phase"], note["attempt"], note["deleted"], note["sentence"]) == (
        "Cancelled", 1, True, "tiny was deleted."
    )  # fmt: skip
    assert float(note["spent"]) > 0
    if keep:
        status = Record.open(stage.record.folder.root).status()
        assert status is not None
        assert status.phase is Phase.CANCELLED, "nor do its files say that it still runs"


def test_one_that_never_started(stage: Stage, there: Receiver) -> None:
    delete(stage)
    controller = stage.controller(only=False)
    turns(stage, controller, 2)
    controller._notifier.deliver()
    controller.close()
    assert [(one["id"], one["deleted"]) for one in heard(there)] == [(f"{stage.job.uid}-0-ended-cancelled", True)]


def test_one_that_had_ended_is_not_told_twice(stage: Stage, there: Receiver) -> None:
    stage.stories.append(ends)
    controller = stage.controller(only=False)
    turns(stage, controller)
    controller.close()
    delete(stage)
    second = stage.controller(only=False)
    turns(stage, second)
    assert stage.store.by_uid(stage.job.uid) is None
    second._notifier.deliver()
    second.close()
    assert [(one["id"], one["deleted"]) for one in heard(there)] == [(f"{stage.job.uid}-1-ended-succeeded", False)]


def test_one_whose_record_is_broken(stage: Stage, there: Receiver) -> None:
    stage.record.folder.held.write_text("{")
    delete(stage)
    controller = stage.controller(only=False)
    turns(stage, controller, 2)
    assert stage.store.by_uid(stage.job.uid) is None
    controller._notifier.deliver()
    controller.close()
    assert [(one["phase"], one["deleted"]) for one in heard(there)] == [("Cancelled", True)]


class Killed(BaseException):
    """The process is gone."""


def _before(stage: Stage, folder: RunFolder) -> None:
    raise Killed


def _after(stage: Stage, folder: RunFolder) -> None:
    stage.launcher.__class__.remove(stage.launcher, folder)
    raise Killed


@pytest.mark.parametrize("dies", [_before, _after])
def test_a_service_that_dies_on_the_way_tells_it_once(
    stage: Stage, there: Receiver, monkeypatch: pytest.MonkeyPatch, dies: Callable[[Stage, RunFolder], None]
) -> None:
    stage.stories.append(obeys)
    first = stage.controller(only=False)
    turns(stage, first)
    delete(stage)
    with monkeypatch.context() as patch:
        patch.setattr(stage.launcher, "remove", lambda folder: dies(stage, folder))
        with suppress(Killed):
            turns(stage, first)
    first.close()
    assert stage.store.by_uid(stage.job.uid) is not None
    second = stage.controller(only=False)
    turns(stage, second)
    assert stage.store.by_uid(stage.job.uid) is None
    second._notifier.deliver()
    second.close()
    assert [one["id"] for one in heard(there)] == [f"{stage.job.uid}-1-ended-cancelled"]
    assert [one.done for one in outbox.read(outbox.outbox(stage.root, stage.job.uid))] == ["delivered"]
