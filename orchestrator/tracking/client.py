"""Single requests to MLflow, each of which may be repeated; the only file that imports mlflow.

A request that failed may have been carried out: the answer was lost, or the server was slower than our patience.
MLflow's own client repeats requests by itself, also those that make something, so that is turned off. Experiments
have unique names. Runs have not: ours are looked up by their tags before one is made, and after it; of several that
mean the same the earliest stays.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from orchestrator.tracking import names
from orchestrator.tracking.desired import DatasetRef
from orchestrator.tracking.points import Point
from orchestrator.tracking.reached import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # it would repeat POSTs too, and wait for minutes in between
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for the result, and the URL may hold a password
}


def connect(uri: str) -> MlflowClient:
    """A client; whoever set one of mlflow's variables is obeyed."""
    for name, value in _ENVIRONMENT.items():  # read by mlflow when it is imported or called
        os.environ.setdefault(name, value)
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


def complaint(uri: str, error: Exception) -> str:
    """One line for a person, without credentials."""
    reason = names.clipped(without_credentials((str(error).splitlines() or [""])[0]), 300)  # whole ones, then cut
    return f"MLflow at {without_credentials(uri)}: {type(error).__name__}: {reason}"


def is_missing(error: Exception) -> bool:
    """Whether MLflow does not know what we asked it about: its database is another one than before."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"


def experiment(client: MlflowClient, name: str, uri: str, tags: Mapping[str, str]) -> str:
    """Id of the experiment; artifacts lie beside an SQLite file, not in the folder we were started in."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        folder = _database_folder(uri)
        place = None if folder is None else (folder / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=place, tags=dict(tags)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # somebody was quicker
    if found.lifecycle_stage != "active":
        raise ValueError(f"experiment {name!r} is deleted in MLflow; restore it or choose another name")
    for key, value in tags.items():
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def find_runs(client: MlflowClient, experiment_id: str, wanted: Mapping[str, str]) -> list[Run]:
    """Runs with these tags, the earliest first."""
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())
    found: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], filter_string=query, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def the_run(
    client: MlflowClient, experiment_id: str, wanted: Mapping[str, str], parent: str | None, name: str, started: int
) -> str:
    """The run with these tags; made if there is none. There is one afterwards, whatever failed before."""
    found = find_runs(client, experiment_id, wanted)
    if not found:
        tags = dict(wanted) | ({} if parent is None else {"mlflow.parentRunId": parent})
        client.create_run(experiment_id, start_time=started, tags=tags, run_name=name)
        found = find_runs(client, experiment_id, wanted)
    for surplus in found[1:]:
        client.delete_run(surplus.info.run_id)
    return str(found[0].info.run_id)


def describe(client: MlflowClient, run: str, params: Mapping[str, str], datasets: Sequence[DatasetRef]) -> None:
    """Parameters and datasets that are not there yet; MLflow never changes one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    there = client.get_run(run)
    missing = [
        Param(names.clipped(key, names.MAX_KEY), names.clipped(value, names.MAX_PARAM_VALUE))
        for key, value in sorted(params.items())
        if key not in there.data.params and names.is_metric_name(key)
    ]
    for batch in batches(missing, names.MAX_PARAMS, lambda param: _size(param.key, param.value)):
        client.log_batch(run, params=batch, synchronous=True)
    known = {(one.dataset.name, one.dataset.digest) for one in there.inputs.dataset_inputs}
    inputs = []
    for data in datasets:
        name, digest = data.name[:500], data.digest[: names.MAX_DIGEST]
        if (name, digest) not in known:
            source = json.dumps({"uri": data.source, "digest": data.digest})
            kind = urlsplit(data.source).scheme or "local"
            dataset = Dataset(name=name, digest=digest, source_type=kind, source=source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)]))
    for inputs_batch in batches(inputs, 100, lambda one: _size(one.dataset.name, one.dataset.source) + 500):
        client.log_inputs(run, inputs_batch)


def log_points(client: MlflowClient, run: str, points: Iterable[Point]) -> None:
    """Metrics of one run, in batches that MLflow takes."""
    from mlflow.entities import Metric

    metrics = [Metric(one.name, one.value, one.time, one.step) for one in points]
    for batch in batches(metrics, names.MAX_METRICS, lambda metric: _size(metric.key, "") + 200):
        client.log_batch(run, metrics=batch, synchronous=True)


def set_tags(client: MlflowClient, run: str, tags: Mapping[str, str]) -> None:
    """Several tags of one run."""
    from mlflow.entities import RunTag

    found = [RunTag(key, value) for key, value in tags.items()]
    for batch in batches(found, names.MAX_PARAMS, lambda tag: _size(tag.key, tag.value)):
        client.log_batch(run, tags=batch, synchronous=True)


def batches(items: Iterable[T], most: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """In order, none with more than `most` items or more bytes than a request may have."""
    batch: list[T] = []
    used = 0
    for item in items:
        own = size(item)
        if batch and (len(batch) == most or used + own > names.MAX_BODY):
            yield batch
            batch, used = [], 0
        batch.append(item)
        used += own
    if batch:
        yield batch


def _size(*texts: Any) -> int:  # noqa: ANN401 - mlflow has no types for us
    """Bytes of an entry with these texts, in the JSON that mlflow sends."""
    return len(json.dumps(texts)) + 50
