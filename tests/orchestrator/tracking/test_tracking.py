from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.runs import RATE

from orchestrator.cost.ledger import Held, build_ledger
from orchestrator.cost.meter import Spent, spent
from orchestrator.launch.events import CheckpointCommitted, Event, Progress, Started
from orchestrator.tracking import names
from orchestrator.tracking.mlflow import DatasetRef, Outcome, RunTracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One database for all tests: making its tables is most of the time."""
    path = tmp_path_factory.mktemp("mlflow") / "home" / "mlflow.db"
    yield f"sqlite:///{path}"
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()


@pytest.fixture
def client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@pytest.fixture
def make(uri: str, tmp_path: Path) -> Callable[..., RunTracker]:
    """A tracker of this test's job; the same state file each time, as after a restart of the launcher."""

    def build(
        place: str = uri,
        complaints: list[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> RunTracker:
        heard = [] if complaints is None else complaints
        return RunTracker(place, "demo", tmp_path / "tracking.json", heard.append, clock=clock)

    return build


def job(tmp_path: Path) -> dict[str, str]:
    return {"name": "mini", "namespace": "team-a", "uid": f"uid-{tmp_path.name}"}


def begin(tracker: RunTracker, tmp_path: Path, attempt: int = 1) -> None:
    tracker.open(
        job=job(tmp_path),
        params={f"p{number:03}": "x" * 7000 for number in range(3)} | {"attempt.number": str(attempt)},
        attempt=attempt,
        dataset=DatasetRef("stdlib", "f" * 64, "/data/stdlib"),
        tags={"who": "me", "mlflow.parentRunId": "stolen"},
        commit="abc123",
    )


def step(seq: int, at: int, attempt: int = 1, incarnation: str = "a", **metrics: float) -> Progress:
    return Progress(
        job="u",
        attempt=attempt,
        incarnation=incarnation,
        seq=seq,
        time=1_700_000_000 + seq + 1000 * attempt,
        step=at,
        tokens=at * 1000,
        metrics={"train/loss": 5.0 - at / 10} | metrics,
    )


def spent_at(moment: float) -> Spent:
    return spent(moment - 1_700_000_000, RATE)


def history(client: MlflowClient, run: str, name: str = "train/loss") -> list[int]:
    return sorted(metric.step for metric in client.get_metric_history(run, name))


def runs(client: MlflowClient, tmp_path: Path) -> list[Run]:
    experiment = client.get_experiment_by_name("demo")
    if experiment is None:
        return []
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`{names.TAG_UID}` = '{job(tmp_path)['uid']}'", max_results=100
    )
    return sorted(found, key=lambda run: run.data.tags.get(names.TAG_ATTEMPT, "0"))


def test_parent_child_metrics_parameters_dataset_and_end(
    make: Callable[..., RunTracker],
    client: MlflowClient,
    tmp_path: Path,
) -> None:
    complaints: list[str] = []
    tracker = make(complaints=complaints)
    begin(tracker, tmp_path)
    saved = CheckpointCommitted(
        job="u", attempt=1, incarnation="a", seq=4, time=1.7e9, step=2, uri="x", size_bytes=7, seconds=0.5
    )
    start = Started(job="u", attempt=1, incarnation="a", seq=1, time=1.7e9, step=0, tokens=0, world_size=2)
    events: list[Event] = [start, step(2, 1), step(3, 2), saved]
    tracker.replay(events, spent_at)
    folder = tmp_path / "artifacts"
    folder.mkdir()
    (folder / "sample.txt").write_text("once upon a time")
    tracker.log_artifacts(folder)
    ledger = build_ledger(events, [Held(1, 1_700_000_990, 1_700_001_010)], RATE)
    assert tracker.close("succeeded", ledger)
    assert complaints == []

    parent, child = runs(client, tmp_path)
    assert tracker.reference is not None
    assert (tracker.reference.run_id, tracker.reference.url) == (parent.info.run_id, None)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert "mlflow.parentRunId" not in parent.data.tags
    assert (parent.info.run_name, child.info.run_name) == ("mini", "mini #1")
    for run in (parent, child):
        assert run.info.status == "FINISHED"
        assert history(client, run.info.run_id) == [1, 2]
        assert run.data.params["p000"].startswith("xxx")
        assert len(run.data.params["p000"]) == names.MAX_PARAM_VALUE
        assert run.data.tags["who"] == "me"
        assert run.data.tags["mlflow.source.git.commit"] == "abc123"
        dataset = run.inputs.dataset_inputs[0].dataset
        assert (dataset.name, dataset.digest) == ("stdlib", "f" * 36)
        assert "f" * 64 in dataset.source
        metrics = run.data.metrics
        assert metrics["progress/tokens"] == 2000
        assert metrics["cost/usd"] == 1003
        assert metrics["cost/usd_per_billion_tokens"] == 1003 * 10**9 / 2000
        assert metrics["cost/hours"] == pytest.approx(1003 * 2 / 3600)
        assert metrics["checkpoint/seconds"] == 0.5
    assert parent.data.metrics["ledger/usd"] == 20
    assert "$20.00" in parent.data.tags["mlflow.note.content"]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["sample.txt"]
    assert "mlruns" not in parent.info.artifact_uri


def test_steps_repeated_by_a_restart_are_shown_once(
    make: Callable[..., RunTracker],
    client: MlflowClient,
    tmp_path: Path,
) -> None:
    tracker = make()
    begin(tracker, tmp_path)
    tracker.replay([step(1, 1), step(2, 2), step(3, 3), step(4, 2), step(5, 3), step(6, 4)])
    tracker.close("failed")
    begin(tracker, tmp_path, attempt=2)
    assert [run.info.status for run in runs(client, tmp_path)] == ["RUNNING", "FAILED", "RUNNING"]
    tracker.replay([step(1, 3, 2), step(2, 4, 2), step(3, 5, 2)])
    tracker.close("stopped")
    parent, first, second = runs(client, tmp_path)
    assert history(client, parent.info.run_id) == [1, 2, 3, 4, 5]
    assert history(client, first.info.run_id) == [1, 2, 3, 4]
    assert history(client, second.info.run_id) == [3, 4, 5]
    assert [run.info.status for run in (parent, first, second)] == ["KILLED", "FAILED", "KILLED"]
    assert second.data.params["attempt.number"] == "2"
    assert parent.data.params["attempt.number"] == "1"


def test_metrics_of_one_step_may_come_in_two_events(
    make: Callable[..., RunTracker],
    client: MlflowClient,
    tmp_path: Path,
) -> None:
    tracker = make()
    begin(tracker, tmp_path)
    late = step(2, 1).model_copy(update={"metrics": {"eval/bits_per_byte": 2.5}})
    tracker.replay([step(1, 1), late])
    tracker.close("succeeded")
    parent = runs(client, tmp_path)[0]
    assert parent.data.metrics["eval/bits_per_byte"] == 2.5
    assert history(client, parent.info.run_id, "progress/tokens") == [1]


def test_a_killed_launcher_goes_on_in_the_same_runs(
    make: Callable[..., RunTracker],
    client: MlflowClient,
    tmp_path: Path,
) -> None:
    events = [step(number, number) for number in range(1, 500)]
    before = make()
    begin(before, tmp_path)
    before.replay(events[:300], spent_at)
    saved = (tmp_path / "tracking.json").read_text()
    before.replay(events[:400], spent_at)
    (tmp_path / "tracking.json").write_text(saved)  # killed after sending, before saving
    after = make()
    begin(after, tmp_path, attempt=2)
    after.replay(events, spent_at)
    parent, first, second = runs(client, tmp_path)
    for run in (parent, first):
        assert history(client, run.info.run_id) == list(range(1, 500))
        assert history(client, run.info.run_id, "cost/usd") == list(range(1, 500))
    assert [run.info.status for run in (parent, first, second)] == ["RUNNING", "FAILED", "RUNNING"]
    make().close("failed")  # a third process, which only cleans up
    assert {run.info.status for run in runs(client, tmp_path)} == {"FAILED"}


@pytest.mark.parametrize("damage", ["lost", "torn"])
def test_without_its_state_file_no_run_is_made_twice(
    make: Callable[..., RunTracker],
    client: MlflowClient,
    tmp_path: Path,
    damage: str,
) -> None:
    first = make()
    begin(first, tmp_path)
    first.replay([step(1, 1), step(2, 2), step(3, 1), step(4, 2), step(5, 3)], spent_at)
    if damage == "lost":
        (tmp_path / "tracking.json").unlink()
    else:
        (tmp_path / "tracking.json").write_text('{"version": 1, "par')
    complaints: list[str] = []
    again = make(complaints=complaints)
    begin(again, tmp_path)
    again.replay([step(1, 1), step(2, 2), step(3, 1), step(4, 2), step(5, 3)], spent_at)
    again.close("succeeded")
    found = runs(client, tmp_path)
    assert len(found) == 2
    assert [history(client, run.info.run_id) for run in found] == [[1, 2, 3], [1, 2, 3]]
    assert len(complaints) == (damage == "torn")


def test_trouble_is_told_once_and_made_good_later(
    make: Callable[..., RunTracker],
    client: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    now, complaints = [100.0], []
    tracker = make(complaints=complaints, clock=lambda: now[0])
    with monkeypatch.context() as patch:
        calls = []

        def away(*_: object, **__: object) -> None:
            calls.append(1)
            raise ConnectionError("cannot reach https://user:secret@host/mlflow")

        patch.setattr(MlflowClient, "log_batch", away)
        begin(tracker, tmp_path)
        tracker.replay([step(1, 1)], spent_at)
        assert len(calls) == 1  # left alone for a while
        now[0] += 11
        tracker.replay([step(2, 2)], spent_at)
        assert len(calls) == 2
        assert not tracker.close("succeeded")
    assert len(complaints) == 1
    assert "ConnectionError" in complaints[0]
    assert "secret" not in complaints[0]
    now[0] += 11
    tracker.replay([], spent_at)
    parent, child = runs(client, tmp_path)
    assert history(client, parent.info.run_id) == history(client, child.info.run_id) == [1, 2]
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_a_place_that_cannot_be_written_never_raises(make: Callable[..., RunTracker], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    complaints: list[str] = []
    tracker = make(f"sqlite:///{tmp_path}/file/mlflow.db", complaints=complaints)
    begin(tracker, tmp_path)
    tracker.replay([step(1, 1)])
    assert not tracker.close("succeeded")
    assert len(complaints) == 1
    assert tracker.reference is None


def test_more_metrics_than_fit_one_batch_and_names_that_mlflow_refuses(
    make: Callable[..., RunTracker],
    client: MlflowClient,
    tmp_path: Path,
) -> None:
    complaints: list[str] = []
    tracker = make(complaints=complaints)
    begin(tracker, tmp_path)
    many = {f"m/{number}": float(number) for number in range(40)}
    tracker.replay([step(number, number, **many, **{"bad(name)": 1.0}) for number in range(1, 31)])
    tracker.close("succeeded")
    parent = runs(client, tmp_path)[0]
    assert history(client, parent.info.run_id, "m/39") == list(range(1, 31))
    assert complaints == ["MLflow takes no metric named 'bad(name)'; it is left out"]


@pytest.mark.parametrize(
    ("outcome", "status"), [("succeeded", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED")]
)
def test_close_may_be_repeated(
    make: Callable[..., RunTracker],
    client: MlflowClient,
    tmp_path: Path,
    outcome: Outcome,
    status: str,
) -> None:
    tracker = make()
    begin(tracker, tmp_path)
    assert tracker.close(outcome)
    ended = [run.info.end_time for run in runs(client, tmp_path)]
    assert tracker.close(outcome)
    assert [run.info.end_time for run in runs(client, tmp_path)] == ended
    assert [run.info.status for run in runs(client, tmp_path)] == [status, status]


def test_quotes_in_a_uid_are_refused(make: Callable[..., RunTracker], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no quotes"):
        make().open(job=job(tmp_path) | {"uid": "x' or '1"}, params={}, attempt=1)


def test_a_database_is_made_beside_its_artifacts(uri: str, make: Callable[..., RunTracker], tmp_path: Path) -> None:
    begin(make(), tmp_path)
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        place = connection.execute("select artifact_location from experiments where name = 'demo'").fetchone()
    connection.close()
    assert place == ((Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri(),)


@pytest.mark.parametrize("name", ["", "/a", "../a", "a//b", "a(b)", "a/../b", ".", "x" * 251])
def test_names_that_mlflow_refuses(name: str) -> None:
    assert not names.is_metric_name(name)
