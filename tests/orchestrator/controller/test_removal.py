"""Jobs that are deleted: what stays of them, and what goes wrong meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from support.launcher import Stage, obeys
from support.turns import condition, turns

from orchestrator.controller import service
from orchestrator.controller.departed import Departed
from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.controller.teams import accounts
from orchestrator.errors import Unavailable
from orchestrator.launch.base import RunFolder
from orchestrator.status import ConditionType, Reason

ROOT = Path(__file__).parents[3]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(tmp_path, monkeypatch)
    yield made
    made.store.database.close()


def fails_with(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("keep", [True, False])
def test_a_deleted_job_leaves_nothing_unless_its_files_are_wanted(stage: Stage, keep: bool) -> None:
    stage.stories.append(obeys)
    controller = stage.controller(only=False)
    turns(stage, controller)
    stage.wish(lambda wish: replace(wish, deleted_at=datetime.now(UTC), keep_files=keep))
    turns(stage, controller)
    assert stage.store.by_uid(stage.job.uid) is None
    assert stage.launcher.lives == {}
    assert stage.record.folder.root.exists() is keep
    assert not controller._keeper._kept, "it takes no memory any more"
    assert stage.mirror.told[-1] == stage.record.folder.root.name, "nor does MLflow's process keep its events"
    counted = list(accounts(stage.settings.home, "default"))
    assert [(one.spent > 0, one.name.endswith("deleted)")) for one in counted] == [(True, not keep)], (
        "its team gets no money back"
    )
    controller.close()


@pytest.mark.parametrize("answers", [True, False])
def test_a_deleted_run_is_ended_in_mlflow_first_if_that_answers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    settled: list[bool] = []
    monkeypatch.setattr(service, "is_settled", lambda folder, settings: bool(settled))
    stage.stories.append(obeys)
    controller = stage.controller(only=False)
    turns(stage, controller)
    stage.record.folder.tracking.write_text("{}")
    stage.wish(lambda wish: replace(wish, deleted_at=datetime.now(UTC)))
    turns(stage, controller, 8)
    assert stage.launcher.lives == {}
    assert stage.store.by_uid(stage.job.uid) is not None, "MLflow has not heard of its end"
    if answers:
        settled.append(True)
        turns(stage, controller, 1)
    else:
        turns(stage, controller, 40)
    assert stage.store.by_uid(stage.job.uid) is None
    assert not stage.record.folder.root.exists()
    controller.close()


def test_a_broken_job_can_be_deleted(stage: Stage) -> None:
    stage.record.folder.held.write_text("{")
    stage.wish(lambda wish: replace(wish, deleted_at=datetime.now(UTC)))
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert stage.store.by_uid(stage.job.uid) is None
    assert not stage.record.folder.root.exists()
    controller.close()


def test_a_deletion_that_is_cut_off_forgets_no_money(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what was spent since the status was written, nor what was written down before."""
    stage.stories.append(obeys)
    controller = stage.controller(only=False)
    turns(stage, controller, 20)
    stage.wish(lambda wish: replace(wish, deleted_at=datetime.now(UTC)))
    remove, spent = stage.launcher.remove, list[Decimal]()

    def fails(folder: RunFolder) -> None:
        known = Departed.model_validate_json((stage.root / "departed" / f"{stage.job.uid}.json").read_bytes())
        assert known.spent >= History(Record.open(folder.root)).charged() > 0
        spent.append(known.spent)
        monkeypatch.setattr(stage.launcher, "remove", remove)
        raise PermissionError(1, "not now")

    monkeypatch.setattr(stage.launcher, "remove", fails)
    turns(stage, controller, 40)
    assert stage.store.by_uid(stage.job.uid) is None
    assert [one.spent for one in accounts(stage.settings.home, "default")] == spent
    controller.close()


def test_a_store_that_fails_for_a_moment_ends_no_driver_of_a_deleted_job_by_force(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.stories.append(obeys)
    controller = stage.controller(only=False)
    turns(stage, controller)
    stage.wish(lambda wish: replace(wish, deleted_at=datetime.now(UTC)))
    with monkeypatch.context() as patch:
        patch.setattr(stage.store, "set_status", fails_with(Unavailable("locked")))
        turns(stage, controller, 1)
    assert stage.stored().wish.deleted_at, "it is tried again"
    turns(stage, controller, 40)
    assert stage.killed == []
    assert stage.store.by_uid(stage.job.uid) is None
    controller.close()


def test_the_folder_of_another_job_is_not_removed(stage: Stage) -> None:
    other = replace(stage.record, uid="another")
    other.with_job(stage.record.job)
    stage.wish(lambda wish: replace(wish, deleted_at=datetime.now(UTC)))
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert stage.store.by_uid(stage.job.uid) is None
    assert Record.open(stage.record.folder.root) == other
    controller.close()


def test_whatever_is_wrong_with_a_deleted_job_the_controller_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    Record.take(stage.record.folder.root, stage.job.uid, stage.record.job)
    stage.record.folder.resolved(1).write_text("{}")
    stage.wish(lambda wish: replace(wish, deleted_at=datetime.now(UTC)))
    monkeypatch.setattr(stage.launcher, "look", fails_with(ValueError("a mistake of ours")))
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert condition(stage.stored().status, ConditionType.RUNNING).reason is Reason.CONTROLLER_ERROR
    controller.close()
