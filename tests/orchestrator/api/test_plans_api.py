from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.api import Service, pointers, problem
from support.store import small_job

from orchestrator.api.capacity import Capacity, Slots
from orchestrator.api.signed import Planned, digest, require_fresh, sign, verify
from orchestrator.errors import StalePlan, UsageError
from orchestrator.plan.forecast import Plan
from orchestrator.store.access import Role

GPU = {"compute": {"accelerator": "H100", "gpus": 8}, "model": {"preset": "v2-lite-16b"}}


def planned(service: Service, **spec: Any) -> dict[str, Any]:  # noqa: ANN401
    answer = service.reader.post("/v1/plans", json={"job": service.document(**spec)})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_plan_says_price_choices_and_what_was_given(service: Service) -> None:
    found = planned(service)
    assert found["job"] == service.document()
    assert found["price"] == {"perHour": "0.1", "currency": "USD", "source": "test (2026-01-01)"}
    assert (found["fits"], found["messages"]) == (True, [])
    assert "spec.parallelism.expert" in {choice["path"] for choice in found["choices"]}
    assert Plan.model_validate(found["plan"], by_alias=True).request.accelerator == "cpu"
    lasts = datetime.fromisoformat(found["expiresAt"]) - datetime.now(UTC)
    assert timedelta(minutes=14) < lasts <= timedelta(minutes=15)
    assert service.store.open_jobs() == ()


def test_a_plan_of_gpus_forecasts_time_and_cost(service: Service) -> None:
    found = planned(service, **GPU, data={"source": "/not/yet", "sequenceLength": 4096}, training={"tokens": 10**9})
    assert found["plan"]["cost"]["expected"] > 0
    assert found["plan"]["hours"]["low"] < found["plan"]["hours"]["high"]
    assert found["fits"] is False
    [refused, unfit] = found["messages"]
    assert refused.startswith("would be refused now: spec.data.source: no prepared dataset")
    assert unfit.startswith("the job asks for 8 GPUs, and this machine has 0")


def test_a_plan_tells_nothing_of_another_team(service: Service) -> None:
    other = service.of_team("blue", Role.READER)
    problem(other.post("/v1/plans", json={"job": service.document(namespace="red")}), 403, "forbidden")
    assert other.post("/v1/plans", json={"job": service.document(namespace="blue")}).status_code == 200


def test_a_job_that_is_larger_than_the_machine_runs_alone(service: Service) -> None:
    found = planned(service, compute={"accelerator": "cpu", "workers": 2, "cpuPerWorker": 8})
    assert found["fits"] is True
    assert "asks for 16 CPUs, and this machine has 8: it runs alone" in found["messages"][0]


def test_what_fits_no_gpu_is_a_message(service: Service) -> None:
    spec = {"compute": {"accelerator": "H100", "gpus": 8}, "model": {"preset": "v3-671b"}}
    found = planned(service, **spec, data={"source": "/not/yet", "sequenceLength": 4096}, training={"tokens": 10**9})
    assert found["plan"] is None
    assert found["fits"] is False
    assert found["messages"][0]


def test_what_no_machine_could_run_is_refused(service: Service) -> None:
    document = service.document(training={"tokens": 10})
    found = problem(service.reader.post("/v1/plans", json={"job": document}), 422, "invalid-job")
    assert pointers(found) == ["/spec/training/tokens"]
    document = service.document(compute={"accelerator": "cpu", "workers": 2, "priceClass": "stolen"})
    found = problem(service.reader.post("/v1/plans", json={"job": document}), 422, "invalid-job")
    assert pointers(found) == ["/spec/compute/priceClass"]


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"initFrom": "http://127.0.0.1:1/weights"}},
        {"data": {"source": "x", "tokenizer": "simplecache::http://127.0.0.1:1/t.json"}},
        {"training": {"tokens": 100_000, "evaluation": {"tasks": ["s3://bucket/a.jsonl"]}}},
    ],
)
def test_a_reader_does_not_have_the_service_ask_others(service: Service, spec: dict[str, Any]) -> None:
    answer = service.reader.post("/v1/plans", json={"job": service.document(**spec)})
    assert "takes a token of role runner" in problem(answer, 403, "forbidden")["detail"]


# ------------------------------------------------------------------ submitting with it


def submit(service: Service, plan: str, **spec: Any) -> Any:  # noqa: ANN401
    return service.runner.post("/v1/jobs", json={"job": service.document(**spec), "plan": plan})


def test_what_was_planned_is_submitted(service: Service) -> None:
    assert submit(service, planned(service)["id"]).status_code == 201


def test_another_job_than_planned_is_refused(service: Service) -> None:
    plan = planned(service)["id"]
    answer = submit(service, plan, training={"tokens": 200_000})
    assert "the job is not the one that was planned" in problem(answer, 409, "stale-plan")["detail"]
    assert service.store.open_jobs() == ()


def test_another_price_is_said(service: Service) -> None:
    plan = planned(service)["id"]
    service.prices("0.06")
    detail = problem(submit(service, plan), 409, "stale-plan")["detail"]
    assert detail == "the price was 0.05 USD per cpu-hour and is 0.06 USD per cpu-hour: plan it again"
    service.prices("0.05")
    assert submit(service, plan).status_code == 201


def test_other_machines_are_said(service: Service) -> None:
    plan = planned(service)["id"]
    service.capacity = Capacity(Slots(cpus=4))
    detail = problem(submit(service, plan), 409, "stale-plan")["detail"]
    assert detail == "this machine had 8 CPUs and 0 GPUs and has 4 CPUs and 0 GPUs: plan it again"


def test_a_plan_ends() -> None:
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    plan = Planned("j", "p", "m", int(moment.timestamp()))
    require_fresh(plan, plan, moment)
    with pytest.raises(StalePlan, match="counted until 2026-03-01 12:00:00 UTC: plan it again"):
        require_fresh(plan, plan, moment + timedelta(seconds=1))


def test_nobody_makes_a_plan_up(service: Service) -> None:
    right = planned(service)["id"]
    body, mac = right.split(".")
    changed = json.loads(base64.urlsafe_b64decode(body + "=="))
    changed["until"] += 10**9
    forged = base64.urlsafe_b64encode(json.dumps(changed, separators=(",", ":")).encode()).decode().rstrip("=")
    other_key = sign(Planned(**changed), b"k" * 32)
    for plan in (
        f"{forged}.{mac}",
        other_key,
        f"{body}.",
        f".{mac}",
        "",
        ".",
        "x",
        f"{right}.{mac}",
        "é.é",
        f"{body}.{mac[:-2]}",
    ):
        assert "no id that this service gave" in problem(submit(service, plan), 400, "usage")["detail"], plan
    problem(submit(service, "x" * 2001), 422, "invalid-request")


def test_signatures() -> None:
    plan = Planned("job", "0.05 USD", "8 cores", 17)
    assert verify(sign(plan, b"key"), b"key") == plan
    with pytest.raises(UsageError):
        verify(sign(plan, b"key"), b"other")


def test_a_digest_is_of_what_the_job_says() -> None:
    assert digest(small_job()) == digest(small_job(suspend=False)), "a default that is written out"
    assert digest(small_job()) != digest(small_job(suspend=True))
    assert digest(small_job()) != digest(small_job(namespace="other"))
