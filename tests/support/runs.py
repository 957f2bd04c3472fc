"""One run as the launcher sees it: a resolved attempt, its events, and what they cost."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter

from orchestrator.cost.meter import Rate
from orchestrator.launch.events import Event
from orchestrator.launch.resolve import JobRef, Resolved, TrackingTarget
from orchestrator.spec import TrainingJob
from support.recipes import tiny_recipe

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
RATE = Rate(
    per_hour=Decimal("3600"),
    currency="USD",
    units=2,
    unit="cpu-hour",
    source="a list",
    date=datetime.date(2026, 6, 1),
)
"""A dollar a second."""


def event(kind: str, time: float, *, attempt: int = 1, seq: int | None = None, **fields: Any) -> Event:  # noqa: ANN401
    """An event of incarnation i; `seq` follows the time unless given."""
    number = round(time * 10) + 1 if seq is None else seq
    keys = {"kind": kind, "job": "u", "attempt": attempt, "incarnation": f"i{attempt}", "seq": number, "time": time}
    return EVENT.validate_python(keys | fields)


def resolved(*, attempt: int = 1, storage: str = "unused", **changes: Any) -> Resolved:  # noqa: ANN401
    """Two CPU workers; `changes` are fields of `Resolved`."""
    values: dict[str, Any] = {
        "job": JobRef(namespace="default", name="tiny", uid="u"),
        "attempt": attempt,
        "incarnation": f"i{attempt}",
        "recipe": tiny_recipe(),
        "workers": 2,
        "cpus_per_worker": 1,
        "gpus_per_worker": 0,
        "rate": RATE,
        "restarts_without_progress": 2,
        "stall_seconds": 300.0,
        "tracking": TrackingTarget(experiment="tiny", tags={}),
        "storage_uri": storage,
        "chosen": (),
    }
    return Resolved.model_validate(values | changes)


def tiny_job(**metadata: str) -> TrainingJob:
    """A job that is valid in form; its data need not exist."""
    spec = {
        "model": {"preset": "mini"},
        "data": {"source": "data", "sequenceLength": 32},
        "training": {"tokens": 100_000, "globalBatchTokens": 256},
        "compute": {"accelerator": "cpu", "workers": 2},
    }
    return TrainingJob.model_validate({"metadata": {"name": "tiny"} | metadata, "spec": spec})
