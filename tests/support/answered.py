"""Documents of jobs as the service answers with them."""

from __future__ import annotations

from typing import Any

from orchestrator.plan.basis import Basis
from orchestrator.plan.estimate import estimate
from orchestrator.plan.request import request_of
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

AT = "2026-06-01T12:00:00.000000Z"


def job_spec(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field of a job
    spec: dict[str, Any] = {
        "model": {"preset": "mini"},
        "data": {"source": "data", "sequenceLength": 32},
        "training": {"tokens": 100_000, "globalBatchTokens": 256},
        "compute": {"accelerator": "cpu", "workers": 2},
    }
    return spec | changes


def submitted(name: str = "tiny", team: str | None = None, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """As a user writes it."""
    metadata = {"name": name} | ({"namespace": team} if team else {})
    return {
        "apiVersion": "fathom.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": metadata,
        "spec": job_spec(**changes),
    }


def stored(
    name: str = "tiny",
    phase: str = "Running",
    *,
    team: str = "default",
    status: dict[str, Any] | None = None,
    **changes: Any,  # noqa: ANN401 - any field of the spec
) -> dict[str, Any]:
    """As the service answers: with all defaults, and a status."""
    document = TrainingJob.model_validate(submitted(name, team, **changes), by_alias=True).document()
    known = {"uid": f"u-{name}", "generation": 1, "version": 3, "createdAt": AT, "createdBy": "admin", "folder": name}
    document["metadata"] |= known
    return document | {"status": {"phase": phase} | (status or {})}


def progress(step: int = 5, steps: int = 10, **more: object) -> dict[str, Any]:
    return {"step": step, "steps": steps, "tokens": step * 256, "observedAt": AT} | more


def forecast(low: float, expected: float, high: float) -> dict[str, Any]:
    """A plan of the planner's own, with these costs in dollars."""
    basis = Basis.load(Settings.load({"FATHOM_HOME": "unused"}))
    request = request_of(
        TrainingJob.model_validate(
            submitted(
                model={"preset": "v2-lite-16b"},
                training={"tokens": 10**9},
                compute={"accelerator": "H100", "gpus": 8},
            ),
            by_alias=True,
        )
    )
    document = estimate(request, basis).model_dump(mode="json")
    document["cost"] |= {"low": low, "expected": expected, "high": high}
    return dict(document)


def planned(name: str = "tiny", *, plan: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """An answer about a plan."""
    return {
        "id": f"plan-{name}",
        "expiresAt": AT,
        "job": submitted(name, changes.pop("team", "default"), **changes),
        "plan": plan,
        "choices": [{"path": "spec.parallelism.expert", "value": "2", "reason": "both workers"}],
        "price": {"perHour": "0.08", "currency": "USD", "source": "a list (2026-06-01)"},
        "fits": True,
        "messages": [] if plan else ["no forecast for this machine yet"],
    }
