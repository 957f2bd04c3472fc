"""Keeps the files for people in `artifacts/` up to date with the run; MLflow shows them."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.launch.base import RunFolder
from orchestrator.launch.resolve import read_resolved
from orchestrator.tracking.artifacts import write_artifacts, write_expert_load


def refresh_load(folder: RunFolder) -> None:
    """The load of the experts, if a worker has written a newer one: cheap enough to be asked every few seconds."""
    data, picture = folder.artifacts / "expert_load.json", folder.artifacts / "expert_load.png"
    if not data.exists() or (picture.exists() and picture.stat().st_mtime_ns >= data.stat().st_mtime_ns):
        return
    with suppress(ValueError):  # it is only a picture
        write_expert_load(folder.artifacts, data.read_bytes())


def refresh_artifacts(record: Record, history: History) -> None:
    """All of them, if the run has said something since they were made."""
    folder = record.folder
    table = folder.artifacts / "metrics.csv"
    if table.exists() and folder.events.exists() and table.stat().st_mtime_ns >= folder.events.stat().st_mtime_ns:
        return
    resolved = read_resolved(folder.resolved(folder.last_attempt()))
    load = folder.artifacts / "expert_load.json"
    write = partial(
        write_artifacts,
        folder.artifacts,
        history.events,
        history.ledger(resolved),
        resolved.model_dump_json(indent=1),
        spent_at=history.spent_at,
    )
    try:
        write(load.read_bytes() if load.exists() else None)
    except ValueError:
        write(None)  # a damaged map of the experts costs that picture, not the others
