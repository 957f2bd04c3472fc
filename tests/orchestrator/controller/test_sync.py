"""What MLflow is brought to by whoever has a run's folder; SQLite in place of a server, which is quicker."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.mirrored import EXPERT_LOAD, Story, close_databases, runs_of
from support.mlflow_tables import copied

from orchestrator.controller import mirror_process, sync
from orchestrator.controller.mirror_main import Mirrors
from orchestrator.controller.mirror_process import MirrorProcess
from orchestrator.controller.sync import Mirror, driver_lives, is_followed, is_settled, leftovers, sync_run
from orchestrator.launch import local
from orchestrator.settings import Settings
from orchestrator.tracking import cost_page, plots
from orchestrator.tracking.artifacts import write_expert_load
from orchestrator.tracking.client import connect
from orchestrator.tracking.reached import Reached

if TYPE_CHECKING:
    from mlflow import MlflowClient

EMPTY = {"png": b"\x89PNG", "svg": b"<svg ></svg>"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Path) -> Iterator[Path]:
    """One for all tests."""
    yield copied(mlflow_tables, tmp_path_factory.mktemp("mlflow") / "home" / "mlflow.db")
    close_databases()


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many files as ever, their pictures all the same: drawing them takes most of the time, and what is in them is
    for the tests of `tracking`. The first test has the real ones."""
    if request.function is not test_a_run_that_goes_on_and_ends:
        for module in (plots, cost_page):
            monkeypatch.setattr(module, "drawn", lambda figure, form="png": EMPTY[form])


@pytest.fixture
def settings(database: Path, tmp_path: Path) -> Settings:
    return Settings.load({"FATHOM_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": f"sqlite:///{database}"})


@pytest.fixture
def client(settings: Settings) -> MlflowClient:
    return connect(settings.tracking_uri)


@pytest.fixture
def nowhere(tmp_path: Path, settings: Settings) -> Settings:
    """An MLflow that cannot be reached."""
    (tmp_path / "file").write_text("")
    return settings.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/file/mlflow.db"})


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path, tmp_path.name)


def statuses(client: MlflowClient, story: Story) -> list[str]:
    return [run.info.status for run in runs_of(client, story.experiment)]


def steps(client: MlflowClient, story: Story, name: str, run: int = 0) -> list[int]:
    found = runs_of(client, story.experiment)[run].info.run_id
    return sorted(point.step for point in client.get_metric_history(found, name))


def nothing_said(message: str) -> None:
    raise AssertionError(message)


def test_a_run_that_goes_on_and_ends(story: Story, settings: Settings, client: MlflowClient) -> None:
    mirror = Mirror(story.record, settings, nothing_said)
    assert mirror.reference is None
    story.begin()
    assert mirror.sync(live=True)
    assert statuses(client, story) == ["RUNNING", "RUNNING"]
    story.fail()
    assert mirror.sync(live=True)
    assert statuses(client, story) == ["RUNNING", "FAILED"], "the launcher may start another attempt"
    story.go_on()
    assert mirror.sync(live=True)
    assert statuses(client, story) == ["RUNNING", "FAILED", "RUNNING"]
    assert not is_settled(story.record.folder, settings)
    story.succeed()
    assert mirror.sync(live=False)
    assert statuses(client, story) == ["FINISHED", "FAILED", "FINISHED"]
    assert is_settled(story.record.folder, settings)
    parent = runs_of(client, story.experiment)[0].info
    reference = mirror.reference
    assert reference is not None
    assert (reference.run_id, reference.url) == (parent.run_id, None)
    assert "mlruns" not in parent.artifact_uri


@pytest.mark.parametrize(("outcome", "status"), [("stopped", "KILLED"), ("failed", "FAILED")])
def test_a_run_that_is_resumed_runs_again(
    outcome: str, status: str, story: Story, settings: Settings, client: MlflowClient
) -> None:
    story.begin()
    story.say("ended", 7, outcome=outcome, failure_class="interrupted", step=3)
    assert Mirror(story.record, settings, nothing_said).sync(live=False)
    assert statuses(client, story) == [status, status]
    story.go_on()
    assert Mirror(story.record, settings, nothing_said).sync(live=True)
    assert statuses(client, story) == ["RUNNING", status, "RUNNING"]
    story.succeed()
    assert Mirror(story.record, settings, nothing_said).sync(live=False)
    assert statuses(client, story) == ["FINISHED", status, "FINISHED"]
    assert steps(client, story, "ledger/usd") == [1, 2]


def test_a_run_whose_processes_are_all_gone_has_failed(story: Story, settings: Settings, client: MlflowClient) -> None:
    story.begin()
    assert Mirror(story.record, settings, nothing_said).sync(live=True)
    assert sync_run(story.record, settings, nothing_said) is None
    assert statuses(client, story) == ["FAILED", "FAILED"]
    parent = runs_of(client, story.experiment)[0]
    assert parent.info.end_time == 1_700_000_006_000, "its last word"
    assert "driver-lost" in parent.data.tags["fathom.failure"]
    assert "ledger/usd" not in parent.data.metrics, "its end is not written yet: these may change"


def test_files_that_cannot_be_kept_do_not_keep_the_run_open(
    story: Story, settings: Settings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.whole()
    said: list[str] = []

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no keys for the store of files")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_artifact", refuse)
        patch.setattr("mlflow.MlflowClient.log_artifacts", refuse)
        assert not Mirror(story.record, settings, said.append).sync(live=False)
    assert "no keys for the store" in said[0]
    assert statuses(client, story)[0] == "FINISHED"
    assert "RUNNING" not in statuses(client, story)
    assert steps(client, story, "ledger/usd")
    assert not is_settled(story.record.folder, settings)
    assert sync_run(story.record, settings, nothing_said) is None
    assert client.list_artifacts(runs_of(client, story.experiment)[0].info.run_id)


def test_files_that_cannot_be_made_hold_nothing_else_up(story: Story, settings: Settings, client: MlflowClient) -> None:
    story.whole()
    blocked = story.record.folder.artifacts / "ledger.json"
    blocked.unlink(missing_ok=True)
    blocked.mkdir(parents=True)
    why = sync_run(story.record, settings, lambda message: None)
    assert why is not None
    assert "files of the run could not be made" in why
    assert statuses(client, story)[0] == "FINISHED"
    assert "RUNNING" not in statuses(client, story)
    blocked.rmdir()
    assert sync_run(story.record, settings, nothing_said) is None


def test_an_evaluation_long_after_the_end(story: Story, settings: Settings, client: MlflowClient) -> None:
    story.whole()
    assert Mirror(story.record, settings, nothing_said).sync(live=False)
    folder, said = story.record.folder, list[str]()
    cost = runs_of(client, story.experiment)[0].data.metrics["ledger/usd"]
    for bits in (2.75, 2.5):
        story.say("evaluated", 90_000, step=2, tokens=2000, metrics={"eval/bits_per_byte": bits})
        assert not is_settled(folder, settings)
        assert sync_run(story.record, settings, said.append) is None
        assert is_settled(folder, settings)
    assert said == ["step 2 has been evaluated before: MLflow keeps the first values of eval/bits_per_byte"]
    assert steps(client, story, "eval/bits_per_byte") == [2, 4]
    assert steps(client, story, "eval/bits_per_byte", 1) == [2]
    assert steps(client, story, "ledger/usd") == [2]
    assert sync_run(story.record, settings, nothing_said) is None, "said once"
    parent = runs_of(client, story.experiment)[0]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["ledger/usd"] == cost, "nobody paid for the days in between"


def test_a_launcher_that_died_after_sending_and_before_writing_it_down(
    story: Story, settings: Settings, client: MlflowClient
) -> None:
    story.attempt(1, 0)
    mirror = Mirror(story.record, settings, nothing_said)
    for step in range(1, 300):
        story.step(step, step)
    assert mirror.sync(live=True)
    saved = story.record.folder.tracking.read_bytes()
    for step in range(300, 500):
        story.step(step, step)
    assert mirror.sync(live=True)
    story.record.folder.tracking.write_bytes(saved)
    assert mirror.sync(live=True), "the same process, after another has written an older state"
    story.record.folder.tracking.write_bytes(saved)
    assert Mirror(story.record, settings, nothing_said).sync(live=False)
    for run in (0, 1):
        for name in ("train/loss", "cost/usd", "progress/hours"):
            assert steps(client, story, name, run) == list(range(1, 500))


def test_runs_that_were_removed_are_shown_anew_and_whole(
    story: Story, settings: Settings, client: MlflowClient
) -> None:
    """By the same process: what it has sent once is not sent for ever."""
    story.begin()
    mirror = Mirror(story.record, settings, nothing_said)
    assert mirror.sync(live=True)
    for run in runs_of(client, story.experiment):
        client.delete_run(run.info.run_id)
    story.record.folder.tracking.unlink()
    assert mirror.sync(live=True)
    assert steps(client, story, "train/loss") == [1, 2, 3]


def test_trouble_is_told_once_and_left_alone_for_a_while(story: Story, nowhere: Settings, settings: Settings) -> None:
    now, said = [0.0], list[str]()
    story.begin()
    mirror = Mirror(story.record, nowhere, said.append, clock=lambda: now[0])
    assert not mirror.sync(live=True)
    state = sync.Reached.peek(story.record.folder.tracking)
    assert state is not None
    assert state.target == nowhere.tracking_uri, "whoever finds the run knows where it belongs"
    tries = mirror._not_before
    now[0] = 9.0
    assert not mirror.sync(live=True)
    assert mirror._not_before == tries
    now[0] = 11.0
    assert not mirror.sync(live=True)
    assert mirror._not_before > tries
    assert len(said) == 1
    assert said[0].startswith("MLflow at sqlite")
    assert mirror.behind is not None


def test_damaged_files_are_named(story: Story, settings: Settings) -> None:
    story.begin()
    story.record.folder.held.write_text("{")
    assert "held.json cannot be read" in (sync_run(story.record, settings, lambda _: None) or "")


def test_a_run_that_never_began_has_nothing_to_show(story: Story, settings: Settings) -> None:
    assert is_settled(story.record.folder, settings)
    assert sync_run(story.record, settings, nothing_said) is None
    assert not story.record.folder.tracking.exists()


def test_two_do_not_send_at_once(story: Story, settings: Settings, client: MlflowClient) -> None:
    story.begin()
    with story.record.folder.tracking_lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        mirror = Mirror(story.record, settings, nothing_said)
        assert not mirror.sync(live=True)
        assert mirror.behind == "another process is sending"
        assert runs_of(client, story.experiment) == []
    assert mirror.sync(live=True)


def test_the_map_of_the_experts_is_refreshed_when_it_changed(
    story: Story, settings: Settings, client: MlflowClient
) -> None:
    story.begin()
    folder = story.record.folder.artifacts
    folder.mkdir()
    mirror = Mirror(story.record, settings, nothing_said)

    def shown() -> set[str]:
        run = runs_of(client, story.experiment)[0].info.run_id
        return {file.path for file in client.list_artifacts(run)}

    (folder / "expert_load.json").write_text(EXPERT_LOAD)
    assert mirror.sync(live=True)
    assert shown() == {"expert_load.csv", "expert_load.json", "expert_load.png"}
    first = (folder / "expert_load.csv").read_text()
    drawn = (folder / "expert_load.png").stat().st_mtime_ns
    assert mirror.sync(live=True)
    assert (folder / "expert_load.png").stat().st_mtime_ns == drawn
    (folder / "expert_load.json").write_text(EXPERT_LOAD.replace("[3, 1]", "[2, 2]"))
    os.utime(folder / "expert_load.json", ns=(drawn + 10**9, drawn + 10**9))
    assert mirror.sync(live=True)
    assert (folder / "expert_load.csv").read_text() != first
    (folder / "expert_load.json").write_text("torn")
    os.utime(folder / "expert_load.json", ns=(drawn + 10**12, drawn + 10**12))
    assert mirror.sync(live=True), "it is only a picture"


# Leftovers


def test_leftovers_are_those_of_nobody(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = settings.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/file/x.db"})
    (tmp_path / "file").write_text("")
    found: dict[str, Story] = {}
    for name in ("mine", "left", "followed", "driven", "settled", "elsewhere", "never"):
        found[name] = story = Story(tmp_path / "make" / name, "home")
        story.begin()
        story.say("ended", 7, outcome="stopped", failure_class="interrupted", step=3)
        if name != "never":
            with monkeypatch.context() as patch:
                patch.setattr(sync.requests, "connect", lambda uri: nothing_said("away"))
                Mirror(story.record, elsewhere if name == "elsewhere" else settings, lambda _: None).sync(live=False)
        new = tmp_path / f"run-{name}"
        story.record.folder.root.rename(new)
        found[name].record = sync.Record.open(new)
    assert Mirror(found["settled"].record, settings, nothing_said).sync(live=False)
    driven, followed = found["driven"].record.folder, found["followed"].record.folder
    with local.hold_lock(driven.lock), local.hold_lock(followed.launcher_lock):
        assert is_followed(followed)
        assert driver_lives(driven)
        names = [one.folder.root.name for one in leftovers(settings, but=found["mine"].record.folder.root)]
        assert names == ["run-left"]
    assert not is_followed(followed)
    assert not driver_lives(driven)


def test_the_process_beside_a_controller_sends_what_an_earlier_one_has_left(
    tmp_path: Path, settings: Settings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Story(tmp_path / "a", f"{tmp_path.name}-left")
    left.whole()
    root = left.record.folder.root
    mirrors = Mirrors(settings.model_copy(update={"home": root.parent}))
    with monkeypatch.context() as patch:
        patch.setattr(sync.requests, "connect", lambda uri: nothing_said("away"))
        assert not mirrors.sync(root.name)
    assert list(mirrors.leftovers()) == [root.name]
    monkeypatch.setattr(sync, "RETRY_SECONDS", 0.0)
    mirrors = Mirrors(settings.model_copy(update={"home": root.parent}))
    assert mirrors.sync(root.name)
    assert is_settled(left.record.folder, settings)
    assert list(mirrors.leftovers()) == []
    assert statuses(client, left) == ["FINISHED", "FAILED", "FINISHED"]
    assert mirrors.sync("nothing-of-that-name"), "a run that was removed is no news"


def test_at_the_end_nobody_waits_for_ever(settings: Settings) -> None:
    process = MirrorProcess(settings)
    assert process.finish(lambda: True, 60.0)
    assert not process.finish(lambda: False, 0.3)
    assert not process.finish(lambda: False, 60.0, lambda: True), "a person has had enough"


def test_a_machine_that_starts_no_process_for_it_now_stops_no_controller(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    def full(*_: object, **__: object) -> None:
        nonlocal tried
        tried += 1
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(mirror_process.subprocess, "Popen", full)
    now = [0.0]
    process = MirrorProcess(settings, lambda: now[0])
    for _ in range(3):
        process.tell("a-run")
    now[0] += mirror_process.RESTART_SECONDS
    process.tell("a-run")
    process.close()
    assert tried == 2, "and not too often"


def test_leftovers_make_way_for_the_end_of_the_run(
    tmp_path: Path, settings: Settings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(tmp_path, f"{tmp_path.name}-way").whole()
    mirror = Mirror(story.record, settings, nothing_said, give_way=lambda: True)
    assert not mirror.sync(live=False)
    assert mirror.behind == "not all is sent yet"
    assert sync_run(story.record, settings, nothing_said) is None


def test_artifacts_lie_beside_the_database(story: Story, settings: Settings, database: Path) -> None:
    story.whole()
    assert sync_run(story.record, settings, nothing_said) is None
    connection = sqlite3.connect(database)
    query = "select artifact_location from experiments where name = ?"
    place = connection.execute(query, (story.experiment,)).fetchone()
    connection.close()
    assert place == ((database.parent / "mlartifacts").as_uri(),)


def test_a_run_that_is_removed_while_it_is_sent_stays_removed(
    story: Story, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.whole()
    folder, send = story.record.folder, Mirror._send

    def removes(self: Mirror, reached: Reached, *, live: bool) -> None:
        shutil.rmtree(folder.root)
        send(self, reached, live=live)

    monkeypatch.setattr(Mirror, "_send", removes)
    assert Mirror(story.record, settings, nothing_said).sync(live=False), "nothing is missing of what nobody wants"
    assert not folder.root.exists()
    with pytest.raises(FileNotFoundError):
        write_expert_load(folder.artifacts, EXPERT_LOAD)
    with pytest.raises(FileNotFoundError):
        Reached(target="anywhere").save(folder.tracking)
    assert not folder.root.exists()
