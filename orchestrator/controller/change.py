"""What may change when a run goes on: a few fields of the job, and the attempt that follows from them."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.controller.spending import Pace
from orchestrator.cost.meter import money
from orchestrator.errors import UsageError
from orchestrator.jobfile import load_job
from orchestrator.launch.resolve import Resolved, read_resolved, resolve
from orchestrator.plan.prices import PriceBook
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

CHANGEABLE = (
    "budget.limit", "retry.*", "budget.warnAt", "tracking.tags.*", "checkpoint.intervalMinutes", "checkpoint.keep",
    "parallelism.*", "compute.workers", "compute.gpus", "compute.gpusPerNode", "compute.priceClass",
    "compute.cpuPerWorker", "compute.memoryPerWorker", "training.precision", "training.optimizer.momentsPrecision",
)  # fmt: skip
"""All else is what the run is: its model, data, mathematics and name. Precision is how it is computed."""


def change(record: Record, assignments: Sequence[str], settings: Settings) -> Record:
    """The record with `assignments` applied to its job; UsageError for what must stay, InvalidJob for wrong values.

    Conflict while a driver lives. Nothing is written unless the next attempt can be resolved.
    """
    job = assigned(record.job, assignments)
    _require_changeable(record.job, job)
    history = History(record)
    _require_budget(job, history.charged())
    changed = Record(record.folder, record.uid, job)
    resolve_next(changed, history, settings, record.folder.last_attempt() + 1)
    changed = record.change(job)
    note_change(changed, record.job, history)
    return changed


def note_change(changed: Record, before: TrainingJob, history: History) -> None:
    """Among the events, if the limit is another one and an attempt was ever started."""
    old, new = before.spec.budget, changed.job.spec.budget
    if new is None or not changed.folder.last_attempt() or (old is not None and old.amount == new.amount):
        return
    was = "there was none" if old is None else f"it was {money(old.amount, old.currency)}"
    message = f"the limit of the budget is {money(new.amount, new.currency)} now ({was})"
    history.note("limit-changed", message, spent=history.charged(), limit=new.limit)


def resolve_next(
    record: Record,
    history: History,
    settings: Settings,
    attempt: int,
    prices: PriceBook | None = None,
    *,
    read_data: bool = True,
) -> Resolved:
    """Decide an attempt with a new incarnation: on what is left of the money, with the recipe of the one before.
    `read_data`: whether the dataset can be read here."""
    previous = record.folder.resolved(attempt - 1)
    return resolve(
        record.job,
        uid=record.uid,
        attempt=attempt,
        incarnation=secrets.token_hex(4),
        settings=settings,
        storage_uri=str(record.folder.root),
        spent=history.charged(),
        earlier=read_resolved(previous) if previous.exists() else None,
        reserve=Pace.of(history.events).reserve,
        prices=prices,
        read_data=read_data,
    )


def assigned(job: TrainingJob, assignments: Sequence[str]) -> TrainingJob:
    """As if the assignments had been given with the job's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job.document()))
        return load_job(path, assignments)


def _require_changeable(before: TrainingJob, after: TrainingJob) -> None:
    old, new = _flat(before.document()), _flat(after.document())
    for path in sorted(old.keys() | new.keys()):
        field = path.removeprefix("spec.")
        added_with_limit = field == "budget.currency" and before.spec.budget is None
        if old.get(path) == new.get(path) or added_with_limit:
            continue
        if not any(fnmatchcase(field, pattern) for pattern in CHANGEABLE):
            raise UsageError(
                f"{field} cannot change when a run is resumed: only {', '.join(CHANGEABLE)} can; start a new job"
            )


def _require_budget(job: TrainingJob, paid: Decimal) -> None:
    budget = job.spec.budget
    if budget is not None and budget.amount < paid:
        raise UsageError(
            f"budget.limit={budget.limit} is below the {paid:.6f} {budget.currency} that are spent: give more"
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by their dotted paths."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
