"""Jobs that share the GPUs of one machine, started by one process or by several of the same home."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.launcher import Stage, obeys

from orchestrator.controller.lending import BUSY, LOCK
from orchestrator.controller.service import Controller
from orchestrator.launch.base import Capacity, RunFolder
from orchestrator.launch.locks import locked
from orchestrator.launch.resolve import read_resolved
from orchestrator.spec import TrainingJob
from orchestrator.status import ConditionType, Phase
from orchestrator.store.base import StoredJob


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A machine of two GPUs, all of whose drivers train until they are told to stop."""
    made = Stage(tmp_path, monkeypatch)
    made.launcher.machine = Capacity(16, 2)
    made.stories += [obeys] * 20
    made.wish(lambda wish: replace(wish, cancelled_at=datetime.now(UTC)))  # the one that every stage has
    yield made
    made.store.database.close()


def submit(stage: Stage, name: str, gpus: int = 1) -> StoredJob:
    body = stage.job.wish.job.model_dump(mode="json", by_alias=True, exclude_none=True)
    body["spec"]["compute"] = {"accelerator": "H100", "gpus": gpus} if gpus else {"accelerator": "cpu", "workers": 1}
    body["metadata"]["name"] = name
    return stage.store.create(TrainingJob.model_validate(body), by="test")


def train(stage: Stage, job: StoredJob) -> Controller:
    """As `fathom train` has it."""
    mirror: Any = stage.mirror
    return Controller(stage.store, stage.launcher, stage.settings, stage.said.append, only=job.uid, mirror=mirror)


def turns(stage: Stage, *controllers: Controller) -> None:
    for _ in range(6):
        for controller in controllers:
            controller.turn()
        stage.clock.sleep(0.5)


def folder(stage: Stage, job: StoredJob) -> RunFolder:
    return RunFolder(stage.root / job.folder)


def given(stage: Stage, job: StoredJob) -> tuple[str, ...] | None:
    """By what stands in its newest attempt, if its driver lives."""
    run = folder(stage, job)
    return read_resolved(run.resolved(run.last_attempt())).gpus if run.root in stage.launcher.lives else None


def admitted(stage: Stage, job: StoredJob) -> str:
    found = stage.store.by_uid(job.uid)
    assert found is not None
    condition = found.status.condition(ConditionType.ADMITTED)
    assert condition is not None
    return condition.message


def cancel(stage: Stage, job: StoredJob) -> None:
    stage.store.change(job.namespace, job.name, lambda wish: replace(wish, cancelled_at=datetime.now(UTC)))


def test_two_run_at_once_and_the_third_has_what_is_given_back_also_after_a_restart(stage: Stage) -> None:
    jobs = [submit(stage, name) for name in ("one", "two", "three")]
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert [given(stage, job) for job in jobs] == [("0",), ("1",), None]
    assert admitted(stage, jobs[1]) == "it has GPU 1 of this machine"
    assert admitted(stage, jobs[2]) == "it needs 1 CPUs and 1 GPUs; 14 of 16 CPUs and 0 of 2 GPUs are free for it"
    controller.close()  # as the kernel closes its files
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert len(stage.started) == 2, "they are the same, and there is no room for another"
    cancel(stage, jobs[0])
    turns(stage, controller)
    assert [given(stage, job) for job in jobs] == [None, ("1",), ("0",)]
    assert any("attempt 1 has GPU 0 of this machine" in words for words in stage.said)
    controller.close()


def test_a_job_on_cpus_has_no_gpu_and_needs_none(stage: Stage) -> None:
    large, small = submit(stage, "large", 2), submit(stage, "small", 0)
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert (given(stage, large), given(stage, small)) == (("0", "1"), ())
    assert admitted(stage, large) == "it has GPUs 0,1 of this machine"
    assert admitted(stage, small) == ""
    controller.close()


def test_a_driver_of_an_earlier_version_has_them_all(stage: Stage) -> None:
    old, new = submit(stage, "old"), submit(stage, "new")
    first = train(stage, old)
    turns(stage, first)
    first.close()
    path = folder(stage, old).resolved(1)
    body = json.loads(path.read_text())
    assert body.pop("gpus") == ["0"]
    path.write_text(json.dumps(body))
    second = stage.controller(only=False)
    turns(stage, second)
    assert given(stage, new) is None
    assert admitted(stage, old) == "it has GPUs of this machine, and nobody knows which"
    assert "0 of 2 GPUs are free" in admitted(stage, new)
    cancel(stage, old)
    turns(stage, second)
    assert given(stage, new) == ("0",)
    second.close()


def test_several_processes_of_a_home_give_none_twice(stage: Stage) -> None:
    """As `fathom train` in three terminals; then a service beside two of them."""
    jobs = [submit(stage, name) for name in ("one", "two", "three")]
    trains = [train(stage, job) for job in jobs]
    turns(stage, *trains)
    assert [given(stage, job) for job in jobs] == [("0",), ("1",), None]
    trains.pop().close()
    service = stage.controller(only=False)
    turns(stage, service, *trains)
    assert given(stage, jobs[2]) is None
    cancel(stage, jobs[1])
    turns(stage, service, *trains)
    turns(stage, service, *trains)
    assert [given(stage, job) for job in jobs] == [("0",), None, ("1",)]
    for controller in (service, *trains):
        controller.close()


def test_whoever_cannot_have_the_lock_waits_and_stops_no_job_on_cpus(stage: Stage) -> None:
    job, cpu = submit(stage, "one"), submit(stage, "cpu", 0)
    controller = stage.controller(only=False)
    with locked(stage.root / LOCK) as mine:
        assert mine
        turns(stage, controller)
        assert (given(stage, job), given(stage, cpu)) == (None, ())
        assert admitted(stage, job) == BUSY
    (stage.root / LOCK).unlink()
    (stage.root / LOCK).mkdir()
    turns(stage, controller)
    assert admitted(stage, job) == f"{stage.root / LOCK} cannot be locked: Is a directory"
    (stage.root / LOCK).rmdir()
    turns(stage, controller)
    assert given(stage, job) == ("0",)
    with locked(stage.root / LOCK) as mine:
        assert mine, "it is held while something starts, and no longer"
    controller.close()


def test_what_a_dead_driver_has_left_keeps_its_gpus(stage: Stage) -> None:
    """Its workers may still be on them; the process that follows it ends them, and another waits for that."""
    one, two, three = (submit(stage, name) for name in ("one", "two", "three"))
    dead, other = train(stage, one), train(stage, three)
    turns(stage, dead)
    stage.launcher.lives.clear()
    look = stage.launcher.look
    stage.launcher.look = lambda run, last: replace(look(run, last), left=run.root.name == one.folder)  # type: ignore[method-assign]
    dead.close()
    controllers = train(stage, two), other
    turns(stage, *controllers)
    assert (given(stage, two), given(stage, three)) == (("1",), None)
    stage.launcher.look = look  # type: ignore[method-assign]
    turns(stage, *controllers)
    assert given(stage, three) == ("0",)
    for controller in controllers:
        controller.close()


def test_a_run_that_cannot_be_read_may_have_any(stage: Stage) -> None:
    one, two = submit(stage, "one"), submit(stage, "two")
    first = train(stage, one)
    turns(stage, first)
    folder(stage, one).resolved(1).write_text("{")
    other = train(stage, two)
    turns(stage, other)
    assert given(stage, two) is None
    assert stage.store.by_uid(two.uid).status.phase is Phase.QUEUED  # type: ignore[union-attr]
    first.close()
    other.close()
