"""What a job's status says of MLflow while that does not take what is to be sent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.home import wait_for
from support.launcher import Attempt, Stage, trains_on
from support.mlflow_server import MlflowServer
from support.turns import turns

from orchestrator.controller import keeping
from orchestrator.controller.mirror_process import MirrorProcess
from orchestrator.controller.sync import Mirror
from orchestrator.errors import Unavailable
from orchestrator.settings import Settings
from orchestrator.status import Condition, ConditionType, Phase, Reason
from orchestrator.store.base import StoredJob
from orchestrator.tracking import trouble
from orchestrator.tracking.mlflow import target
from orchestrator.tracking.reached import Reached
from orchestrator.why import why

AWAY = "MLflow at http://m:1: ConnectionError: nobody is there"


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(tmp_path, monkeypatch)
    yield made
    made.store.database.close()


def ends(attempt: Attempt) -> Iterator[object]:
    attempt.start(0)
    yield 1
    attempt.train(8)
    attempt.end("succeeded")


def tracking(stage: Stage) -> Condition | None:
    return stage.stored().status.condition(ConditionType.TRACKING)


def go_away(stage: Stage) -> None:
    path = stage.record.folder.tracking_trouble
    trouble.note(path, target(stage.settings.tracking_uri), AWAY, stage.clock.now)


def come_back(stage: Stage) -> None:
    """As the mirror's process does when it has sent all."""
    trouble.forget(stage.record.folder.tracking_trouble)
    whole = Reached(target=target(stage.settings.tracking_uri), experiment_id="1", parent="r")
    whole.save(stage.record.folder.tracking)


def test_a_run_that_trains_while_mlflow_is_away(stage: Stage) -> None:
    stage.stories.append(trains_on)
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert tracking(stage) is None, "nothing is known of it yet"
    go_away(stage)
    turns(stage, controller)
    found = tracking(stage)
    assert found is not None
    assert (found.status, found.reason) == ("False", Reason.SERVER_UNREACHABLE)
    assert found.message.startswith(f"{AWAY} (since 1970-01-12 13:46:")
    assert found.message.endswith("is sent as soon as MLflow answers, or by `fathom sync`")
    stored = stage.stored()
    assert stored.status.phase is Phase.RUNNING
    said = why(stored.wish.job, stored.status, datetime.fromtimestamp(stage.clock.now, UTC))
    assert said.sentence.startswith("tiny is training"), "that is what matters"
    assert any(line.startswith("Tracking ServerUnreachable: it cannot reach MLflow") for line in said.details)
    since = found.last_transition_time
    turns(stage, controller, 40)
    assert (again := tracking(stage)) is not None
    assert again.last_transition_time == since
    come_back(stage)
    turns(stage, controller)
    assert (back := tracking(stage)) is not None
    assert (back.status, back.reason, back.message) == ("True", Reason.LOGGED, "")
    controller.close()


def test_a_run_that_is_over_is_watched_until_mlflow_has_it_also_by_the_next_service(stage: Stage) -> None:
    stage.stories.append(ends)
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert stage.stored().status.phase is Phase.SUCCEEDED
    go_away(stage)
    turns(stage, controller, 3000)  # longer than one that says nothing is waited for
    assert (found := tracking(stage)) is not None
    assert found.reason is Reason.SERVER_UNREACHABLE
    stored = stage.stored()
    said = why(stored.wish.job, stored.status, datetime.fromtimestamp(stage.clock.now, UTC))
    assert said.sentence == "tiny has succeeded."
    version = stored.version
    turns(stage, controller, 100)
    assert stage.stored().version == version, "nothing is written where nothing is new"
    controller.close()
    second = stage.controller(only=False)
    stage.mirror.told.clear()
    turns(stage, second)
    assert stage.mirror.told, "the process that sends is started for it"
    come_back(stage)
    turns(stage, second, 30)
    status = stage.stored().status
    assert (condition := status.condition(ConditionType.TRACKING)) is not None
    assert (condition.status, condition.reason) == ("True", Reason.LOGGED)
    assert status.mlflow is not None
    assert status.phase is Phase.SUCCEEDED
    second.close()


def test_what_came_to_rest_when_a_controller_died_is_sent_though_no_job_is_open(stage: Stage) -> None:
    stage.run(ends)
    stage.mirror.told.clear()
    second = stage.controller(only=False)
    assert not stage.mirror.started, "before the first turn what lives is nobody's, and would count as over"
    assert stage.stored().status.mlflow is None
    turns(stage, second, 2)
    assert stage.mirror.told, "its status does not say yet where it is"
    assert stage.mirror.started == 1, "its process looks for what others have left, too"
    come_back(stage)
    turns(stage, second, 30)
    assert stage.stored().status.mlflow is not None
    second.close()


def test_a_store_that_does_not_answer_for_a_moment_makes_nobody_forget_a_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.stories.append(ends)
    controller = stage.controller(only=False)
    turns(stage, controller)
    go_away(stage)
    turns(stage, controller, 30)
    failing = [Unavailable("not now")]
    found = stage.store.by_uid

    def by_uid(uid: str) -> StoredJob | None:
        if failing:
            raise failing.pop()
        return found(uid)

    monkeypatch.setattr(stage.store, "by_uid", by_uid)
    come_back(stage)
    with pytest.raises(Unavailable):
        turns(stage, controller, 30)
    turns(stage, controller, 30)
    assert stage.stored().status.mlflow is not None
    controller.close()


def test_what_the_run_itself_is_to_blame_for_is_not_said_of_mlflow(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.stories.append(ends)
    controller = stage.controller(only=False)
    turns(stage, controller)
    controller.close()
    folder = stage.record.folder
    failing: list[Exception] = []

    def fail(*_: object, **__: object) -> None:
        raise failing[-1]

    monkeypatch.setattr(Mirror, "_send", fail)
    monkeypatch.setattr(Mirror, "_make_files", lambda *_, **__: None)
    for error, blamed in (
        (PermissionError(13, "denied", str(folder.artifacts / "x.csv")), False),
        (PermissionError(13, "denied", "/srv/mlflow/mlflow.db"), True),
        (ConnectionError("nobody"), True),
    ):
        failing.append(error)
        assert not Mirror(stage.record, stage.settings, stage.said.append).sync(live=False, now=True)
        assert folder.tracking_trouble.exists() is blamed, error
        trouble.forget(folder.tracking_trouble)


@pytest.mark.processes
def test_a_real_server_that_is_away_and_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = MlflowServer(tmp_path / "mlflow")
    uri = server.uri.replace("http://", "http://ann:secret@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(keeping, "_LINK_SECONDS", 1e9)  # the clock of the test runs faster than the process
    home = tmp_path / "home"
    home.mkdir()
    stage = Stage(home, monkeypatch)
    stage.settings = Settings.load({"FATHOM_HOME": str(home), "MLFLOW_TRACKING_URI": uri})
    mirror = MirrorProcess(stage.settings)
    stage.mirror = mirror  # type: ignore[assignment]
    stage.stories.append(ends)
    controller = stage.controller(only=False)

    def says(reason: Reason) -> Condition | None:
        controller.turn()
        stage.clock.sleep(1.0)
        found = tracking(stage)
        return found if found is not None and found.reason is reason else None

    try:
        found = wait_for(lambda: says(Reason.SERVER_UNREACHABLE))
        assert found.message.startswith(f"MLflow at {server.uri}: ")
        assert "secret" not in found.message
        assert stage.stored().status.phase is Phase.SUCCEEDED
        server.start()
        try:
            wait_for(lambda: says(Reason.LOGGED))
        finally:
            server.stop()
        assert stage.stored().status.mlflow is not None
        assert not stage.record.folder.tracking_trouble.exists()
    finally:
        child = mirror._process
        controller.close()
        stage.store.database.close()
        assert child is not None
        child.wait(120)
