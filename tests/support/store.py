"""Jobs and a store for tests of what stands on them; the store is a real SQLite file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus, Phase
from orchestrator.store.base import Wish


def small_document(name: str = "mini", namespace: str = "default", **spec: Any) -> dict[str, Any]:  # noqa: ANN401
    """A valid TrainingJob; `spec`: parts of it to replace."""
    parts: dict[str, Any] = {
        "model": {"preset": "mini"},
        "data": {"source": "runs/data"},
        "training": {"tokens": 100_000},
        "compute": {"accelerator": "cpu", "workers": 2},
    }
    return {"metadata": {"name": name, "namespace": namespace}, "spec": parts | spec}


def small_job(name: str = "mini", namespace: str = "default", **spec: Any) -> TrainingJob:  # noqa: ANN401
    return TrainingJob.model_validate(small_document(name, namespace, **spec))


def in_phase(phase: Phase, observed: int = 1) -> JobStatus:
    return JobStatus(phase=phase, observed_generation=observed)


def suspended(wish: Wish) -> Wish:
    """The same, but that it shall wait."""
    spec = wish.job.spec.model_copy(update={"suspend": True})
    return replace(wish, job=wish.job.model_copy(update={"spec": spec}))
