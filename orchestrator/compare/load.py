"""Runs of this machine as a comparison sees them, from their folders. Reads only, while they run, too.

Imports neither torch, mlflow, matplotlib nor ray: the API does this in its own process.
"""

from __future__ import annotations

import json
from pathlib import Path

from model.dataset import DatasetManifest, content_digest, read_manifest
from model.files import local_path
from orchestrator.compare.facts import DataIdentity, InMlflow, Point, RunFacts
from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.controller.report import run_parameters, training_flops
from orchestrator.errors import UsageError
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import Started
from orchestrator.launch.resolve import Resolved
from orchestrator.status import JobStatus, Phase
from orchestrator.tracking.mlflow import reference
from orchestrator.tracking.reached import Reached
from orchestrator.tracking.table import About, build

_MAX_MANIFEST = 1 << 28


def load_run(root: Path) -> RunFacts:
    """NotFound if it is no run's folder, UsageError for files that are damaged."""
    record = Record.open(root)
    metadata, last = record.job.metadata, record.folder.last_attempt()
    status = record.status()
    if not last:
        phase = status.phase if status else Phase.PENDING
        return RunFacts(metadata.name, metadata.namespace, record.uid, phase)
    try:
        history = History(record)
    except OSError as error:
        raise UsageError(f"{record.folder.events} cannot be read: {error.strerror}") from None
    resolved = history.resolved(last)
    ledger = history.ledger(resolved) if history.held else None
    return RunFacts(
        name=metadata.name,
        team=metadata.namespace,
        uid=record.uid,
        phase=_phase(history, status),
        configuration=_configuration(history, resolved, record.job.spec.compute.accelerator),
        points=_points(history, record),
        totals=None if ledger is None else ledger.totals,
        currency=resolved.rate.currency,
        unit=resolved.rate.unit,
        limit=history.limit,
        data=_data(record.folder, resolved.recipe.data),
        mlflow=_mlflow(record.folder),
    )


def _points(history: History, record: Record) -> tuple[Point, ...]:
    """The rows of `fathom metrics`, with the work that their tokens were."""
    table = build(history.events, history.spent_at, About(record.job.metadata.name, record.uid, None))
    fixed = {"step", "time", "attempt", "tokens", "hours", "cost"}
    flops: dict[int, float] = {}
    points = []
    for row in table.rows:
        attempt = int(row["attempt"])
        if attempt not in flops:
            flops[attempt] = training_flops(history.resolved(attempt).recipe)
        points.append(
            Point(
                step=int(row["step"]),
                tokens=int(row["tokens"]),
                flops=row["tokens"] * flops[attempt],
                hours=row["hours"],
                dollars=row["cost"],
                metrics={name: value for name, value in row.items() if name not in fixed},
            )
        )
    return tuple(points)


def _phase(history: History, status: JobStatus | None) -> Phase:
    """By the events; that it was cancelled only the status knows."""
    if status is not None and status.phase is Phase.CANCELLED:
        return Phase.CANCELLED
    if (ended := history.observation.ended) is not None:
        outcomes = {"succeeded": Phase.SUCCEEDED, "stopped": Phase.SUSPENDED, "failed": Phase.FAILED}
        return outcomes[ended.outcome]
    return Phase.RUNNING if history.observation.running else Phase.STARTING


def _configuration(history: History, resolved: Resolved, accelerator: str) -> dict[str, str]:
    """As MLflow's parameters, and what matrix products ran on."""
    found = run_parameters(resolved, accelerator)
    said = [event.arithmetic for event in history.events if isinstance(event, Started) and event.arithmetic]
    return found | ({"arithmetic": said[-1]} if said else {})


def _data(folder: RunFolder, uri: str) -> DataIdentity:
    """By the newest checkpoint that lies here; tokenizer and held-out text only if the data set is still that one."""
    recorded = _recorded(folder)
    if local_path(uri) is None:  # not over a network, for a remark
        return DataIdentity(recorded)
    try:
        manifest = read_manifest(uri)
    except (OSError, ValueError, ImportError):
        return DataIdentity(recorded)
    if recorded not in (None, manifest.digest):
        return DataIdentity(recorded)
    return DataIdentity(manifest.digest, manifest.tokenizer.sha256, _heldout(manifest))


def _heldout(manifest: DatasetManifest) -> str:
    shards = [shard for source in manifest.sources for shard in source.heldout.shards]
    return content_digest(manifest.tokenizer.sha256, shards)


def _recorded(folder: RunFolder) -> str | None:
    names = (path.name.removeprefix("step-") for path in (folder.root / "checkpoints").glob("step-*"))
    for number in sorted(map(int, filter(str.isdecimal, names)), reverse=True):
        path = folder.root / "checkpoints" / f"step-{number}" / "manifest.json"
        try:
            if path.stat().st_size <= _MAX_MANIFEST and isinstance(
                found := json.loads(path.read_bytes()).get("data_digest"), str
            ):
                return found
        except (OSError, ValueError, AttributeError):
            continue
    return None


def _mlflow(folder: RunFolder) -> InMlflow | None:
    if (reached := Reached.peek(folder.tracking)) is None or (run := reference(reached)) is None:
        return None
    return InMlflow(reached.target, run.experiment_id, run.run_id, run.url)
