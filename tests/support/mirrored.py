"""A run of two attempts as files, and all that an MLflow holds of a run, to be compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.controller.record import Record
from orchestrator.cost.timeline import Held
from orchestrator.launch.events import EventLog
from orchestrator.launch.resolve import TrackingTarget
from orchestrator.tracking import names
from orchestrator.tracking.client import connect
from orchestrator.tracking.desired import DatasetRef
from support.mlflow_server import MlflowServer
from support.runs import resolved, tiny_job

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T0 = 1_700_000_000.0
DATA = (
    DatasetRef("books", "a" * 64, "/data/books"),
    DatasetRef("books-heldout", "b" * 64, "/data/books", "evaluation"),
)
EXPERT_LOAD = '{"step": 4, "layers": ["1", "2"], "load": [[3, 1], [2, 2]]}'


class Story:
    """Writes what launcher, driver and workers would have written."""

    def __init__(self, root: Path, experiment: str) -> None:
        self.record = Record.create(root, tiny_job())
        self.experiment = experiment
        self._log = EventLog(self.record.folder.events)

    def attempt(self, number: int, start: float) -> None:
        tags = {"who": "me", "mlflow.parentRunId": "stolen"}
        target = TrackingTarget(experiment=self.experiment, tags=tags)
        text = resolved(attempt=number, tracking=target).model_dump_json()
        self.record.folder.resolved(number).write_text(text)
        self.record.save_held([*self.record.held(), Held(number, T0 + start, T0 + start)])

    def say(self, kind: str, at: float, attempt: int = 1, **fields: Any) -> None:  # noqa: ANN401
        keys = {"job": self.record.uid, "attempt": attempt, "incarnation": f"i{attempt}", "time": T0 + at}
        self._log.append(kind, **keys, **fields)

    def step(self, step: int, at: float, attempt: int = 1, **metrics: float) -> None:
        found = {"train/loss": 5.0 - step / 10} | metrics
        self.say("progress", at, attempt, step=step, tokens=step * 1_000_000, metrics=found)

    def load(self, at: float, attempt: int = 1, node: str = "here") -> None:
        self.say("machine-load", at, attempt, node=node, metrics={"cpu_utilization_percentage": at})

    def begin(self) -> None:
        """The first attempt, up to a checkpoint."""
        self.attempt(1, 0)
        self.say("started", 2, step=0, tokens=0, world_size=2, arithmetic="fp8: a")
        for step in range(1, 4):
            self.step(step, 2 + step)
            self.load(2.5 + step)
        self.say("checkpoint-committed", 6, step=2, uri="x", size_bytes=7, seconds=0.5)

    def fail(self) -> None:
        self.say("ended", 7, outcome="failed", failure_class="driver-lost", message="gone", step=3)
        self.record.save_held([Held(1, T0, T0 + 8)])

    def go_on(self) -> None:
        """The second attempt repeats a step."""
        self.attempt(2, 10)
        self.say("started", 12, 2, step=2, tokens=2_000_000, world_size=2, resumed_from="x", arithmetic="fp8: b")
        self.step(3, 13, 2)
        self.step(4, 14, 2, **{"eval/bits_per_byte": 2.5})
        self.load(15, 2)

    def succeed(self) -> None:
        self.say("ended", 16, 2, outcome="succeeded", step=4)
        folder = self.record.folder.artifacts
        folder.mkdir(exist_ok=True)
        (folder / "sample.txt").write_text("once upon a time")
        (folder / "expert_load.json").write_text(EXPERT_LOAD)

    def whole(self) -> Story:
        self.begin()
        self.fail()
        self.go_on()
        self.succeed()
        return self


def runs_of(client: MlflowClient, experiment: str) -> list[Run]:
    """Parent first, then attempts."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    runs = client.search_runs([found.experiment_id], max_results=100)
    return sorted(runs, key=lambda run: int(run.data.tags.get(names.TAG_ATTEMPT, "0")))


def content(server: MlflowServer, experiment: str) -> list[dict[str, Any]]:
    """All that is shown of each run, without the ids that a server makes up."""
    client = connect(server.database)
    runs = runs_of(client, experiment)
    ids = {run.info.run_id: f"run {at}" for at, run in enumerate(runs)}
    artifacts = [server.artifacts(run.info.experiment_id, run.info.run_id) for run in runs]
    return [_content(client, run, ids) | {"artifacts": names} for run, names in zip(runs, artifacts, strict=True)]


def close_databases() -> None:
    """Those that mlflow keeps open for the life of the process."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()


def _content(client: MlflowClient, run: Run, ids: dict[str, str]) -> dict[str, Any]:
    uid = run.data.tags[names.TAG_UID]
    info = run.info
    histories = {
        name: [(p.step, p.value, p.timestamp) for p in client.get_metric_history(info.run_id, name)]
        for name in sorted(run.data.metrics)
    }
    return {
        "name": info.run_name,
        "status": info.status,
        "times": (info.start_time, info.end_time),
        "tags": {k: ids.get(v, v.replace(uid, "uid")) for k, v in run.data.tags.items()},
        "params": run.data.params,
        "metrics": {name: sorted(points) for name, points in histories.items()},
        "inputs": sorted((i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs),
    }
