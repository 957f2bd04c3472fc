"""One MLflow run for a TrainingJob, a child run for each attempt; every step shown once.

Called by the local launcher (later the controller) from one thread; workers never come here. Invariants:
- An MLflow failure never reaches the caller. It is reported once through `warn`; what was to be written is
  kept and tried again by the next call.
- Exactly once: the state file holds the highest `seq` sent of each (attempt, incarnation) and the highest
  step of each metric of each run. A crash between sending and saving sends the same key, step, time and value
  again, which MLflow's SQL store recognises; so `spent_at` must depend on nothing but the time.
- No run stays RUNNING: `close` may be repeated, and `open` closes what a killed launcher left open. Runs are
  found by their tags, so that a lost state file makes no second run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from orchestrator.cost.ledger import Ledger
from orchestrator.cost.meter import Spent, money
from orchestrator.launch.events import CheckpointCommitted, Event, Progress
from orchestrator.tracking import names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

Outcome = Literal["succeeded", "stopped", "failed"]
_STATUS: dict[Outcome, str] = {"succeeded": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_EVENTS_AT_ONCE = 200
_LATEST = 1e11
"""Unix seconds; a worker with a mad clock must not leave the range of the database."""
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True)
class DatasetRef:
    """The data of a run: a name, a digest of its content, and where it lies."""

    name: str
    digest: str
    source: str


@dataclass(frozen=True)
class Reference:
    """Where the job is to be found in MLflow; `url` only where a server shows it."""

    experiment_id: str
    run_id: str
    url: str | None


@dataclass(frozen=True)
class _Opening:
    """What `open` was called with."""

    job: Mapping[str, str]
    params: Mapping[str, str]
    attempt: int
    dataset: DatasetRef | None
    tags: Mapping[str, str]
    commit: str | None


@dataclass
class _Wanted:
    """What has not reached MLflow yet."""

    events: list[tuple[Event, Spent | None]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    outcome: Outcome | None = None
    ledger: Ledger | None = None


class _State(BaseModel):
    """What has reached MLflow; the state file."""

    version: Literal[1] = 1
    experiment_id: str | None = None
    parent: str | None = None
    children: dict[int, str] = Field(default_factory=dict)
    described: set[str] = Field(default_factory=set)
    """Runs whose parameters and dataset are written."""
    running: set[str] = Field(default_factory=set)
    seen: dict[str, int] = Field(default_factory=dict)
    steps: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Run, metric, highest step."""


class RunTracker:
    """Mirrors the events of one TrainingJob into MLflow."""

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        state_file: Path,
        warn: Callable[[str], None],
        *,
        retry_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """After a failure MLflow is left alone for `retry_seconds`; only `close` tries at once."""
        self._uri, self._experiment, self._file, self._warn = tracking_uri, experiment, state_file, warn
        self._retry_seconds, self._clock = retry_seconds, clock
        self._state = _load(state_file, warn)
        self._taken = dict(self._state.seen)
        self._wanted = _Wanted()
        self._opening: _Opening | None = None
        self._mlflow: MlflowClient | None = None
        self._not_before = 0.0
        self._failing = False
        self._refused: set[str] = set()

    def open(
        self,
        *,
        job: Mapping[str, str],
        params: Mapping[str, str],
        attempt: int,
        dataset: DatasetRef | None = None,
        tags: Mapping[str, str] | None = None,
        commit: str | None = None,
    ) -> None:
        """Begins an attempt. `job` has name, namespace and uid; the parent run is made or taken up again."""
        if "'" in job["uid"]:
            raise ValueError(f"a job's uid has no quotes, got {job['uid']!r}")
        self._opening = _Opening(job, params, attempt, dataset, names.user_tags(tags or {}), commit)
        self._wanted.outcome = None
        self._flush(now=True)

    def replay(
        self, events: Iterable[Event], spent_at: Callable[[float], Spent] | None = None, *, flush: bool = True
    ) -> None:
        """Sends what was not sent yet; events may be given again. `spent_at`: unix time to money so far."""
        for event in events:
            key = _source(event)
            if event.seq <= self._taken.get(key, -1):
                continue
            self._taken[key] = event.seq
            spent = spent_at(event.time) if spent_at is not None and isinstance(event, Progress) else None
            self._wanted.events.append((event, spent))
        if flush:
            self._flush()

    def log_artifacts(self, folder: Path) -> None:
        """Copies the files of a folder to the parent run; the folder must stay until `close`."""
        if folder not in self._wanted.folders:
            self._wanted.folders.append(folder)
        self._flush()

    def close(self, outcome: Outcome, ledger: Ledger | None = None) -> bool:
        """Ends the parent and all children; whether MLflow knows it now. May be repeated."""
        self._wanted.outcome = outcome
        self._wanted.ledger = ledger or self._wanted.ledger
        return self._flush(now=True)

    @property
    def reference(self) -> Reference | None:
        """The parent run, once it exists."""
        experiment, run = self._state.experiment_id, self._state.parent
        if experiment is None or run is None:
            return None
        url = None
        if self._uri.startswith(("http://", "https://")):
            base = _CREDENTIALS.sub("", self._uri).rstrip("/")
            url = f"{base}/#/experiments/{experiment}/runs/{run}"
        return Reference(experiment, run, url)

    def _flush(self, *, now: bool = False) -> bool:
        """Brings MLflow up to date; False if it could not."""
        if not now and self._clock() < self._not_before:
            return False
        try:
            self._send()
        # The edge to MLflow: it raises anything from requests to sqlalchemy errors, and its trouble must not
        # stop a training run or its budget control. What was to be sent stays in `_wanted`.
        except Exception as error:  # noqa: BLE001
            self._not_before = self._clock() + self._retry_seconds
            if not self._failing:
                self._warn(_complaint(self._uri, error))
            self._failing = True
            return False
        self._failing = False
        return True

    def _send(self) -> None:
        client = self._client()
        if self._opening is not None:
            self._ensure_open(client, self._opening)
        if self._state.parent is None:
            return
        self._send_events(client, self._state.parent)
        while self._wanted.folders:
            client.log_artifacts(self._state.parent, str(self._wanted.folders[0]))
            self._wanted.folders.pop(0)
        if self._wanted.ledger is not None:
            self._send_ledger(client, self._state.parent, self._wanted.ledger)
        self._end_runs(client)

    def _client(self) -> MlflowClient:
        if self._mlflow is None:
            self._mlflow = _connect(self._uri)
        return self._mlflow

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        fresh.write_text(self._state.model_dump_json(indent=1), encoding="utf-8")
        os.replace(fresh, self._file)

    def _ensure_open(self, client: MlflowClient, opening: _Opening) -> None:
        state = self._state
        if state.experiment_id is None:
            state.experiment_id = _experiment(client, self._experiment, self._uri)
        parent = self._run(client, opening, None)
        child = self._run(client, opening, opening.attempt)
        for run in (parent, child):
            if run not in state.described:
                _describe(client, run, opening)
                state.described.add(run)
            if run not in state.running and self._wanted.outcome is None:
                client.update_run(run, status="RUNNING")
                state.running.add(run)
        self._save()

    def _run(self, client: MlflowClient, opening: _Opening, attempt: int | None) -> str:
        """The parent (attempt None) or a child: known, found by its tags, or made."""
        state = self._state
        known = state.parent if attempt is None else state.children.get(attempt)
        if known is not None:
            return known
        role = "job" if attempt is None else "attempt"
        wanted = {names.TAG_UID: opening.job["uid"], names.TAG_ROLE: role}
        if attempt is not None:
            wanted[names.TAG_ATTEMPT] = str(attempt)
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())
        found = client.search_runs([state.experiment_id], filter_string=query, max_results=1)
        if found:
            run = str(found[0].info.run_id)
        else:
            tags = _tags(opening) | wanted
            if attempt is not None:
                tags["mlflow.parentRunId"] = self._run(client, opening, None)
            name = opening.job["name"] if attempt is None else f"{opening.job['name']} #{attempt}"
            run = str(client.create_run(state.experiment_id, tags=tags, run_name=name).info.run_id)
        if attempt is None:
            state.parent = run
        else:
            state.children[attempt] = run
        state.running.add(run)
        self._save()
        return run

    def _send_events(self, client: MlflowClient, parent: str) -> None:
        while self._wanted.events:
            chunk = self._wanted.events[:_EVENTS_AT_ONCE]
            self._send_metrics(client, parent, chunk)
            for attempt in sorted({event.attempt for event, _ in chunk}):
                child = self._state.children.get(attempt)
                if child is None and self._opening is not None:
                    child = self._run(client, self._opening, attempt)
                if child is not None:
                    self._send_metrics(client, child, [one for one in chunk if one[0].attempt == attempt])
            for event, _ in chunk:
                self._state.seen[_source(event)] = event.seq
            self._save()
            del self._wanted.events[: len(chunk)]

    def _send_metrics(
        self,
        client: MlflowClient,
        run: str,
        chunk: list[tuple[Event, Spent | None]],
    ) -> None:
        """Each metric of a run goes up to higher steps only: what a restart repeats is not shown twice."""
        from mlflow.entities import Metric

        steps = dict(self._state.steps.get(run, {}))
        metrics: list[Metric] = []
        for event, spent in chunk:
            for name, value in self._metrics(event, spent).items():
                step = event.step if isinstance(event, Progress | CheckpointCommitted) else 0
                if step > steps.get(name, -1):
                    steps[name] = step
                    metrics.append(Metric(name, value, round(min(event.time, _LATEST) * 1000), step))
        if metrics:
            _log_metrics(client, run, metrics)
            self._state.steps[run] = steps
            self._save()

    def _metrics(self, event: Event, spent: Spent | None) -> dict[str, float]:
        if isinstance(event, CheckpointCommitted):
            return {names.CHECKPOINT_SECONDS: event.seconds, names.CHECKPOINT_BYTES: float(event.size_bytes)}
        if not isinstance(event, Progress):
            return {}
        found = {names.PROGRESS_TOKENS: float(event.tokens)}
        if spent is not None:
            found |= names.cost_metrics(event.tokens, spent)
        for name, value in event.metrics.items():
            if names.is_metric_name(name):
                found[name] = value
            elif name not in self._refused:
                self._refused.add(name)
                self._warn(f"MLflow takes no metric named {name!r}; it is left out")
        return found

    def _send_ledger(self, client: MlflowClient, parent: str, ledger: Ledger) -> None:
        from mlflow.entities import Metric

        # One point for each attempt; the time is the ledger's own, so that sending it again changes nothing.
        now = round(max(row.charge_period_end for row in ledger.rows).timestamp() * 1000) if ledger.rows else 0
        step = max((row.attempt for row in ledger.rows), default=0)
        values = names.ledger_metrics(ledger)
        _log_metrics(client, parent, [Metric(name, value, now, step) for name, value in values.items()])
        if self._opening is not None:
            client.set_tag(parent, "mlflow.note.content", _note(self._opening, ledger))
        self._wanted.ledger = None

    def _end_runs(self, client: MlflowClient) -> None:
        """Ends all runs if that is wanted; otherwise the children of attempts that are over."""
        outcome, state = self._wanted.outcome, self._state
        current = None if self._opening is None else state.children.get(self._opening.attempt)
        # Without `open` in this process nothing is ended unless `close` asks for it.
        over = {run for run in state.children.values() if run != current} if current is not None else set()
        for run in sorted(state.running if outcome is not None else state.running & over):
            mine = outcome if outcome is not None and run not in over else "failed"
            client.set_tag(run, names.TAG_OUTCOME, mine)
            client.set_terminated(run, status=_STATUS[mine])
            state.running.discard(run)
            self._save()


def _source(event: Event) -> str:
    return f"{event.attempt}/{event.incarnation}"


def _load(path: Path, warn: Callable[[str], None]) -> _State:
    try:
        return _State.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _State()
    except (ValidationError, OSError) as error:
        warn(f"{path}: cannot be read ({type(error).__name__}); the runs are looked up in MLflow by their tags")
        return _State()


def _connect(uri: str) -> MlflowClient:
    # Read by mlflow when it is imported or called. Its defaults wait for minutes on a server that is away,
    # and report usage to its makers.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    folder = _database_folder(uri)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)


def _database_folder(uri: str) -> Path | None:
    """Folder of an SQLite file; None for a server."""
    return Path(uri.removeprefix("sqlite:///")).absolute().parent if uri.startswith("sqlite:///") else None


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    """Id of the experiment; artifacts lie beside an SQLite file, not in the folder we were started in."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        folder = _database_folder(uri)
        place = None if folder is None else (folder / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=place, tags=names.EXPERIMENT_TAGS))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # somebody was quicker
    if found.lifecycle_stage != "active":
        raise ValueError(f"experiment {name!r} is deleted in MLflow; restore it or choose another name")
    return str(found.experiment_id)


def _tags(opening: _Opening) -> dict[str, str]:
    tags = {
        **opening.tags,
        names.TAG_JOB: f"{opening.job['namespace']}/{opening.job['name']}",
        "mlflow.source.name": "fathom train",
        "mlflow.source.type": "JOB",
        "mlflow.note.content": _note(opening, None),
    }
    if opening.commit is not None:
        tags["mlflow.source.git.commit"] = opening.commit
    return {key: names.clipped(value, names.MAX_TAG_VALUE) for key, value in tags.items()}


def _note(opening: _Opening, ledger: Ledger | None) -> str:
    """Markdown for the top of the run's page."""
    job = opening.job
    lines = [f"**{job['name']}** in namespace `{job['namespace']}`, uid `{job['uid']}`", ""]
    if opening.dataset is not None:
        lines.append(f"- data: `{opening.dataset.name}` from `{opening.dataset.source}`")
    if ledger is not None:
        rate, totals = ledger.rate, ledger.totals
        lines.append(f"- spent: {money(totals.cost, rate.currency)} for {totals.hours:.3f} {rate.unit}s")
        lines.append(f"- of that wasted: {money(totals.wasted, rate.currency)}")
        if totals.cost_per_billion_tokens is not None:
            lines.append(f"- per billion tokens: {money(totals.cost_per_billion_tokens, rate.currency)}")
        lines.append(f"- price: {rate.per_hour} {rate.currency} per hour; {rate.source} ({rate.date})")
    return "\n".join(lines)


def _describe(client: MlflowClient, run: str, opening: _Opening) -> None:
    """Parameters (those not there yet: MLflow never changes one) and the dataset."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    there = client.get_run(run).data.params
    params = [
        Param(names.clipped(key, names.MAX_KEY), names.clipped(value, names.MAX_PARAM_VALUE))
        for key, value in sorted(opening.params.items())
        if key not in there and names.is_metric_name(key)
    ]
    for start in range(0, len(params), names.MAX_PARAMS):
        client.log_batch(run, params=params[start : start + names.MAX_PARAMS], synchronous=True)
    if opening.dataset is not None:
        data = opening.dataset
        dataset = Dataset(
            name=data.name[:500],
            digest=data.digest[: names.MAX_DIGEST],
            source_type=urlsplit(data.source).scheme or "local",
            source=json.dumps({"uri": data.source, "digest": data.digest}),
        )
        client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _log_metrics(client: MlflowClient, run: str, metrics: list[Metric]) -> None:
    for start in range(0, len(metrics), names.MAX_METRICS):
        client.log_batch(run, metrics=metrics[start : start + names.MAX_METRICS], synchronous=True)


def _complaint(uri: str, error: Exception) -> str:
    reason = names.clipped((str(error).splitlines() or [""])[0], 300)
    text = f"MLflow at {uri}: {type(error).__name__}: {reason}; training goes on, what is missing is sent later"
    return _CREDENTIALS.sub("", text)
