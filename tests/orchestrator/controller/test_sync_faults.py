"""A real MLflow behind a proxy that fails: whatever happens to a request, what is shown in the end is the same."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.fault_proxy import Fault, FaultProxy
from support.mirrored import DATA, Story, close_databases, content, runs_of
from support.mlflow_server import MlflowServer

from orchestrator.controller import sync, wanted
from orchestrator.controller.history import History
from orchestrator.controller.pictures import refresh_artifacts
from orchestrator.controller.record import Record
from orchestrator.controller.sync import Mirror, is_settled, sync_run
from orchestrator.settings import Settings
from orchestrator.tracking.client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.processes
MAX_REQUESTS = 80


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    close_databases()
    server.stop()


@pytest.fixture(scope="session")
def proxy(server: MlflowServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.port).serving() as proxy:
        yield proxy


@pytest.fixture
def client(server: MlflowServer) -> MlflowClient:
    return connect(server.uri)


@pytest.fixture
def settings(proxy: FaultProxy, tmp_path: Path) -> Settings:
    proxy.reset()
    return Settings.load({"FATHOM_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": proxy.uri})


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story's files for people, drawn once."""
    story = Story(tmp_path_factory.mktemp("pictures"), "pictures").whole()
    refresh_artifacts(story.record, History(story.record))
    return story.record.folder.artifacts


def make_quick(patch: pytest.MonkeyPatch, pictures: Path) -> None:
    """Data that need not exist, and pictures that are not drawn a hundred times."""

    def copied(record: Record, history: History) -> None:
        for name in ("expert_load.csv", "expert_load.png", "metrics.csv"):
            shutil.copy(pictures / name, record.folder.artifacts)

    patch.setattr(wanted, "_data", lambda *_: ({"data.license": "CC0"}, DATA))
    patch.setattr(sync, "refresh_artifacts", copied)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    make_quick(monkeypatch, pictures)


class Clock:
    """Runs only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def mirror(story: Story, settings: Settings, said: list[str] | None = None) -> Mirror:
    clock, heard = Clock(), [] if said is None else said
    return Mirror(story.record, settings, heard.append, clock=clock.time, sleep=clock.sleep)


def in_parts(story: Story, settings: Settings) -> Mirror:
    """As a launcher does: while the run goes on, and until all is there at its end."""
    one = mirror(story, settings)
    story.begin()
    one.sync(live=True, now=True)
    story.fail()
    story.go_on()
    story.succeed()
    assert one.finish(30), one.behind
    return one


@pytest.fixture(scope="session")
def undisturbed(server: MlflowServer, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What MLflow shows of the story where nothing fails."""
    root = tmp_path_factory.mktemp("undisturbed")
    settings = Settings.load({"FATHOM_HOME": str(root), "MLFLOW_TRACKING_URI": server.uri})
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch, pictures)
        in_parts(Story(root, "undisturbed"), settings)
    return content(server, "undisturbed")


def test_what_is_shown(undisturbed: list[dict[str, Any]]) -> None:
    parent, first, second = undisturbed
    assert [run["status"] for run in undisturbed] == ["FINISHED", "FAILED", "FINISHED"]
    assert [run["name"] for run in undisturbed] == ["tiny", "tiny #1", "tiny #2"]
    steps = {name: [step for step, _, _ in points] for name, points in parent["metrics"].items()}
    assert steps["train/loss"] == steps["cost/usd"] == [1, 2, 3, 4]
    assert steps["loss_by/tokens"] == [1_000_000, 2_000_000, 3_000_000, 4_000_000]
    assert steps["loss_by/micro_usd"] == [3_000_000, 4_000_000, 5_000_000, 11_000_000, 12_000_000]
    assert len(steps["loss_by/gflop"]) == 4
    assert steps["bits_per_byte_by/tokens"] == [4_000_000]
    assert steps["system/cpu_utilization_percentage"] == [1, 2, 3, 13]
    assert [value for _, value, _ in parent["metrics"]["best/step"]] == [4]
    assert [value for _, value, _ in parent["metrics"]["ledger/usd"]] == [14]
    assert [s for s, _, _ in second["metrics"]["train/loss"]] == [3, 4]
    assert second["tags"]["mlflow.parentRunId"] == "run 0"
    assert "mlflow.parentRunId" not in parent["tags"]
    assert parent["inputs"] == [("books", "a" * 36, "training"), ("books-heldout", "b" * 36, "evaluation")]
    assert {"sample.txt", "expert_load.png", "expert_load.csv", "metrics.csv"} <= set(parent["artifacts"])
    tags = parent["tags"]
    assert (tags["fathom.outcome"], tags["fathom.attempts"], tags["fathom.resumed"]) == ("succeeded", "2", "true")
    assert [run["tags"]["fathom.arithmetic"] for run in undisturbed] == ["fp8: b", "fp8: a", "fp8: b"]
    assert (tags["who"], tags["data.license"]) == ("me", "CC0")
    assert first["tags"]["fathom.failure"] == "driver-lost: gone"
    note = tags["mlflow.note.content"]
    for words in ("loss 4.6000", "2.5000 bits per byte", "4,000,000 tokens", "$14.00", "parameters active"):
        assert words in note
    assert int(parent["params"]["model.parameters_total"]) > 0
    assert parent["params"]["compute.accelerator"] == "cpu"


def _only(number: int, fault: Fault, at: int) -> Fault:
    return fault if at == number else "ok"


UNDONE_OR_DONE: tuple[Fault, ...] = ("refuse", "reset after", "500 before", "500 after")


@pytest.mark.timeout(1800)
def test_any_request_may_fail_once(
    undisturbed: list[dict[str, Any]],
    settings: Settings,
    proxy: FaultProxy,
    server: MlflowServer,
    tmp_path: Path,
) -> None:
    """Each number in turn, with what it asks for undone, or done and not answered; each kind is sent many times."""
    for number in range(MAX_REQUESTS):
        fault = UNDONE_OR_DONE[number % len(UNDONE_OR_DONE)]
        name = f"{fault}, {number}"
        proxy.reset(partial(_only, number, fault))
        (tmp_path / str(number)).mkdir()
        in_parts(Story(tmp_path / str(number), name), settings)
        assert content(server, name) == undisturbed, (number, proxy.requests[number])
        if len(proxy.requests) <= number:
            assert number > 15
            return
    raise AssertionError(f"more than {MAX_REQUESTS} requests")


def _from(number: int, at: int) -> Fault:
    return "reset after" if at >= number else "ok"


def test_a_launcher_that_crashes_after_any_request_is_continued(
    undisturbed: list[dict[str, Any]], settings: Settings, proxy: FaultProxy, server: MlflowServer, tmp_path: Path
) -> None:
    """The answer never comes and nothing of the process is left: another one has nothing but the files."""
    story = Story(tmp_path, "crashes").whole()
    for number in range(MAX_REQUESTS):
        proxy.reset(partial(_from, number % 5 + 1))
        if mirror(story, settings).sync(live=False, now=True):
            break
    assert number > 3
    assert content(server, "crashes") == undisturbed


@pytest.mark.parametrize("lost", ["nothing", "tracking.json", "torn"])
def test_the_state_file_is_not_needed(
    lost: str, undisturbed: list[dict[str, Any]], settings: Settings, server: MlflowServer, tmp_path: Path
) -> None:
    story = Story(tmp_path, f"without {lost}").whole()
    assert mirror(story, settings).sync(live=False)
    state = story.record.folder.tracking
    assert is_settled(story.record.folder, settings)
    if lost == "tracking.json":
        state.unlink()
    elif lost == "torn":
        state.write_text(state.read_text()[:50])
    assert mirror(story, settings).sync(live=False)
    assert content(server, f"without {lost}") == undisturbed


@pytest.mark.parametrize("away", ["start", "middle", "end"])
def test_a_server_that_is_away_for_a_while(
    away: str,
    undisturbed: list[dict[str, Any]],
    settings: Settings,
    proxy: FaultProxy,
    server: MlflowServer,
    tmp_path: Path,
) -> None:
    name, said = f"away at {away}", list[str]()
    story = Story(tmp_path, name)
    one = mirror(story, settings, said)

    def at(moment: str) -> None:
        proxy.plan = (lambda _: "refuse") if moment == away else (lambda _: "ok")

    at("start")
    story.begin()
    assert one.sync(live=True, now=True) == (away != "start")
    at("middle")
    story.fail()
    story.go_on()
    assert one.sync(live=True, now=True) == (away != "middle")
    at("end")
    story.succeed()
    assert one.finish(5) == (away != "end")
    proxy.plan = lambda _: "ok"
    assert len(said) == 1
    assert "MLflow at http://127.0.0.1" in said[0]
    assert is_settled(story.record.folder, settings) == (away != "end")
    assert sync_run(story.record, settings, said.append) is None
    assert content(server, name) == undisturbed


def test_a_server_that_is_restarted(undisturbed: list[dict[str, Any]], tmp_path: Path) -> None:
    server = MlflowServer(tmp_path / "server")
    server.start()
    try:
        settings = Settings.load({"FATHOM_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": server.uri})
        story = Story(tmp_path, "restarted")
        one = mirror(story, settings)
        story.begin()
        assert one.sync(live=True)
        server.stop()
        story.fail()
        story.go_on()
        assert not one.sync(live=True)
        server.start()
        story.succeed()
        assert one.finish(5)
        assert content(server, "restarted") == undisturbed
    finally:
        server.stop()


def test_an_answer_that_comes_too_late_leaves_one_run(
    settings: Settings, proxy: FaultProxy, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is slower than our patience when it makes the run."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    story, said = Story(tmp_path, "slow").whole(), list[str]()
    proxy.reset(lambda at: "slow" if proxy.requests[at].endswith("runs/create") else "ok")
    slow = threading.Thread(target=lambda: mirror(story, settings).sync(live=False, now=True))
    slow.start()
    assert proxy.held.wait(120)
    proxy.go_on.set()
    proxy.reset()
    slow.join(120)
    assert not slow.is_alive()
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    assert sync_run(story.record, settings, said.append) is None
    assert [run.info.status for run in runs_of(client, "slow")] == ["FINISHED", "FAILED", "FINISHED"]


def test_surplus_runs_are_removed_and_the_earliest_stays(
    settings: Settings, client: MlflowClient, tmp_path: Path
) -> None:
    """As they come to be where a server makes a run long after its client had given up and asked again."""
    story = Story(tmp_path, "surplus")
    story.begin()
    assert mirror(story, settings).sync(live=True)
    runs = runs_of(client, "surplus")
    for run in runs:
        tags = {k: v for k, v in run.data.tags.items() if k.startswith("fathom.")}
        client.create_run(run.info.experiment_id, start_time=run.info.start_time + 1, tags=tags)
    story.record.folder.tracking.unlink()
    assert mirror(story, settings).sync(live=True)
    assert [run.info.run_id for run in runs_of(client, "surplus")] == [run.info.run_id for run in runs]
    client.create_run(run.info.experiment_id, start_time=1, tags=tags)
    story.say("ended", 7, outcome="stopped", failure_class="interrupted", step=3)
    assert mirror(story, settings).sync(live=False)
    assert [run.info.run_id for run in runs_of(client, "surplus")] == [run.info.run_id for run in runs]


def test_another_database_in_the_same_place(settings: Settings, client: MlflowClient, tmp_path: Path) -> None:
    """Nothing is known of the ids that were reached: the run is shown anew."""
    story = Story(tmp_path, "replaced").whole()
    state = story.record.folder.tracking
    assert mirror(story, settings).sync(live=False)
    ids = [run.info.run_id for run in runs_of(client, "replaced")]
    text = state.read_text()
    for known in ids:
        text = text.replace(known, known[::-1])
    state.write_text(text.replace('"FINISHED', '"RUNNING'))
    one = mirror(story, settings)
    assert one.sync(live=False), one.behind
    assert sync.reference(sync.Reached.load(state, settings.tracking_uri)) is not None
    assert [run.info.run_id for run in runs_of(client, "replaced")] == ids
