from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.spec import TrainingJob
from orchestrator.status import REASONS, Condition, ConditionType, JobStatus, Phase, Reason

NOW = "2026-06-01T12:00:00Z"
FULL: dict[str, Any] = {
    "observedGeneration": 2,
    "phase": "Running",
    "conditions": [
        {
            "type": "Accepted",
            "status": "True",
            "reason": "Valid",
            "lastTransitionTime": NOW,
            "message": "",
            "observedGeneration": 2,
        },
        {
            "type": "BudgetOK",
            "status": "True",
            "reason": "WithinBudget",
            "lastTransitionTime": NOW,
            "message": "",
            "observedGeneration": 2,
        },
    ],
    "plan": {
        "choices": [{"path": "spec.parallelism.expert", "value": "8", "reason": "largest"}],
        "pricePerHour": "23.60",
        "priceSource": "list, 2026-05-01",
        "hoursLow": "10",
        "hoursHigh": "12.5",
        "costLow": "236",
        "costHigh": "295",
        "currency": "USD",
    },
    "progress": {
        "step": 10,
        "steps": 100,
        "tokens": 1000,
        "loss": "2.31",
        "tokensPerSecond": "123.4",
        "etaSeconds": 90,
        "observedAt": NOW,
    },
    "cost": {
        "spent": "1.5",
        "forecastLow": "2",
        "forecastHigh": "3",
        "burnPerHour": "23.6",
        "wasted": "0.1",
        "currency": "USD",
    },
    "attempts": [
        {
            "number": 1,
            "incarnations": 1,
            "rayJob": "j-1",
            "startedAt": NOW,
            "endedAt": NOW,
            "outcome": "failed",
            "reason": "worker-lost",
            "gpuHours": "0.5",
            "cost": "1.5",
            "fromStep": 0,
            "toStep": 10,
        }
    ],
    "attemptCount": 1,
    "mlflow": {"experimentId": "1", "runId": "abc", "url": "http://mlflow/#/1"},
}


def test_a_full_status_survives_the_round_trip() -> None:
    status = JobStatus.model_validate(FULL)
    assert status.document() == FULL
    assert status.phase is Phase.RUNNING
    assert status.plan is not None
    assert status.plan.price_per_hour == "23.60"


def test_it_is_the_status_of_a_job() -> None:
    job = {
        "metadata": {"name": "a"},
        "spec": {
            "model": {"preset": "mini"},
            "data": {"source": "d"},
            "training": {"tokens": 1},
            "compute": {"accelerator": "cpu", "workers": 1},
        },
        "status": FULL,
    }
    parsed = TrainingJob.model_validate(job)
    assert parsed.status is not None
    assert parsed.document()["status"] == FULL


def test_a_new_status_is_pending() -> None:
    assert JobStatus().phase is Phase.PENDING
    assert JobStatus().condition(ConditionType.RUNNING) is None


def test_every_condition_has_reasons_and_every_reason_a_condition() -> None:
    assert set(REASONS) == set(ConditionType)
    assert frozenset().union(*REASONS.values()) == set(Reason)


@pytest.mark.parametrize("kind", ConditionType)
def test_conditions_admit_their_own_reasons_only(kind: ConditionType) -> None:
    for reason in Reason:
        fields: dict[str, Any] = {
            "type": kind,
            "status": "True",
            "reason": reason,
            "last_transition_time": datetime.now(UTC),
        }
        if reason in REASONS[kind]:
            assert Condition(**fields).reason is reason
        else:
            with pytest.raises(ValidationError, match="does not belong"):
                Condition(**fields)


def test_one_answer_per_question() -> None:
    twice = FULL["conditions"][:1] * 2
    with pytest.raises(ValidationError, match="one each"):
        JobStatus.model_validate({"conditions": twice})
    found = JobStatus.model_validate(FULL).condition(ConditionType.BUDGET_OK)
    assert found is not None
    assert found.reason is Reason.WITHIN_BUDGET


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "Paused"},
        {"attempts": FULL["attempts"] * 21},
        {"observedGeneration": -1},
        {"cost": FULL["cost"] | {"spent": 1.5}},
        {"cost": FULL["cost"] | {"spent": "NaN"}},
        {"progress": FULL["progress"] | {"loss": "1e-3"}},
        {"progress": FULL["progress"] | {"observedAt": "2026-06-01T12:00:00"}},
        {"unknown": 1},
    ],
)
def test_bad_values_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobStatus.model_validate(FULL | change)


def test_three_phases_are_final() -> None:
    assert {phase for phase in Phase if phase.terminal} == {Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED}
