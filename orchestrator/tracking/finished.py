"""Finished runs as calibration sees them, from what MLflow holds of each attempt: parameters and the metric's history.

Called by `fathom calibrate --mlflow`. Only reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from model.config import ModelConfig
from orchestrator.errors import NotFound, UsageError
from orchestrator.launch.files import in_short
from orchestrator.plan.observed import Observed, metric_of, step_seconds
from orchestrator.tracking import names
from orchestrator.tracking.client import complaint, connect, find_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_GOOD = {"FINISHED", "KILLED"}
"""Attempts that ended as they should, or were stopped."""


def from_mlflow(uri: str, experiment: str, accelerator: str | None, remark: Callable[[str], None]) -> list[Observed]:
    """All attempts of an experiment that can be used; `remark` is told why others cannot. `accelerator`: of runs on
    GPUs by an earlier version, which did not tell MLflow its name. NotFound without the experiment, UsageError if
    MLflow does not answer."""
    from mlflow.exceptions import MlflowException

    try:
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            there = ", ".join(one.name for one in client.search_experiments()) or "none"
            raise NotFound(f"MLflow has no experiment {experiment!r}; there are: {there}")
        runs = find_runs(client, found.experiment_id, {names.TAG_ROLE: "attempt"})
        usable = []
        for run in runs:
            try:
                usable.append(_observed(client, run, accelerator))
            except UsageError as error:
                remark(str(error))
    except (MlflowException, OSError) as error:
        raise UsageError(complaint(uri, error)) from error
    return usable


def _observed(client: MlflowClient, run: Run, accelerator: str | None) -> Observed:
    name, params = str(run.info.run_name or run.info.run_id), run.data.params
    if run.info.status not in _GOOD:
        raise UsageError(f"{name} is {run.info.status}: only runs that ended well are used")
    if params.get("batch_stages", "[]") != "[]":
        raise UsageError(f"{name}: its batch grew while it ran: calibrate from its folder, which says when")
    device = params.get(names.ACCELERATOR) or (accelerator if params.get("device") == "cuda" else "cpu")
    if device is None:
        raise UsageError(f"{name} ran on GPUs, and its version did not tell MLflow on which: give --accelerator")
    metric = metric_of(device)
    history = client.get_metric_history(run.info.run_id, metric)
    steps = {point.step: float(point.value) for point in history}
    starts = [min(steps) - 1] if steps else []
    try:
        return Observed.model_validate(
            {
                "name": name,
                "device": device,
                "model": _known(_nested(params, "model."), ModelConfig),
                "layout": _nested(params, "layout."),
                "sequence_length": params.get("sequence_length"),
                "precision": params.get("precision"),
                "seconds": step_seconds(name, metric, steps, starts),
            }
        )
    except ValidationError as error:
        raise UsageError(f"{name}: its parameters are not those of a run: {in_short(error)}") from error


def _nested(params: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """Flat parameters below a prefix as they were before (`controller.report`)."""
    found: dict[str, Any] = {}
    for key, value in params.items():
        if key.startswith(prefix):
            *path, last = key.removeprefix(prefix).split(".")
            inside = found
            for part in path:
                if not isinstance(deeper := inside.setdefault(part, {}), dict):
                    raise UsageError(f"its parameters {prefix}{part} and {key} cannot both be a run's")
                inside = deeper
            inside[last] = _plain(value)
    return found


def _plain(text: str) -> object:
    """MLflow holds text: 4, False and sigmoid."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _known(found: dict[str, Any], of: type[ModelConfig]) -> dict[str, Any]:
    """Without what is told of the model besides its fields, such as its number of parameters."""
    return {name: value for name, value in found.items() if name in of.model_fields}
