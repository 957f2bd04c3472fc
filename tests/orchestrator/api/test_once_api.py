from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.api import Service, problem

from orchestrator.api import jobs
from orchestrator.store.access import Role
from orchestrator.store.idempotency import Idempotency
from orchestrator.store.idempotency import Request as Remembered

KEY = {"Idempotency-Key": "k-1"}
ONE = "/v1/jobs/default/mini"


def test_the_same_request_again_has_the_same_answer(service: Service) -> None:
    body = {"job": service.document()}
    first = service.runner.post("/v1/jobs", json=body, headers=KEY)
    again = service.runner.post("/v1/jobs", json=body, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    for name in ("etag", "location", "content-type", "content-length"):
        assert again.headers[name] == first.headers[name]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(service.store.open_jobs()) == 1


def test_another_request_with_the_key_is_refused(service: Service) -> None:
    service.runner.post("/v1/jobs", json={"job": service.document()}, headers=KEY)
    other = service.runner.post("/v1/jobs", json={"job": service.document("other")}, headers=KEY)
    problem(other, 422, "idempotency-mismatch")
    query = service.runner.post("/v1/jobs?dryRun=true", json={"job": service.document()}, headers=KEY)
    problem(query, 422, "idempotency-mismatch")


def test_an_error_is_not_remembered(service: Service) -> None:
    body = {"job": service.document(budget={"limit": "0.000001"})}
    problem(service.runner.post("/v1/jobs", json=body, headers=KEY), 402, "over-budget")
    service.prices("0.000001")
    assert service.runner.post("/v1/jobs", json=body, headers=KEY).status_code == 201


def test_keys_are_ones_own(service: Service) -> None:
    body = {"job": service.document()}
    assert service.runner.post("/v1/jobs", json=body, headers=KEY).status_code == 201
    problem(service.admin.post("/v1/jobs", json=body, headers=KEY), 409, "conflict")


def test_a_key_does_not_get_past_the_role(service: Service) -> None:
    body = {"job": service.document()}
    service.runner.post("/v1/jobs", json=body, headers=KEY)
    problem(service.reader.post("/v1/jobs", json=body, headers=KEY), 403, "forbidden")


def test_of_many_at_once_one_is_done(service: Service) -> None:
    body = {"job": service.document()}

    def submit(_: int) -> tuple[int, str]:
        answer = service.runner.post("/v1/jobs", json=body, headers=KEY)
        return answer.status_code, answer.json().get("code", "")

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(submit, range(16)))
    assert (201, "") in found
    assert found <= {(201, ""), (409, "idempotency-in-flight")}
    assert len(service.store.open_jobs()) == 1


def test_actions_are_once(service: Service) -> None:
    service.create()
    first = service.runner.post(f"{ONE}:suspend", headers=KEY).json()
    service.runner.post(f"{ONE}:resume", headers={"Idempotency-Key": "k-2"})
    assert service.runner.post(f"{ONE}:suspend", headers=KEY).json() == first
    assert service.store.get("default", "mini").wish.job.spec.suspend is False, "replayed, not done"


def test_while_it_is_worked_on(service: Service) -> None:
    other = service.client(service.secrets[Role.RUNNER])
    seen = list[int]()

    def slow(*_: object) -> None:
        answer = other.post("/v1/jobs", json={"job": service.document()}, headers=KEY)
        seen.append(answer.status_code)
        assert service.client(service.secrets[Role.ADMIN]).get("/v1/jobs").status_code == 200

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_require_possible", slow)
        assert service.runner.post("/v1/jobs", json={"job": service.document()}, headers=KEY).status_code == 201
    assert seen == [409]


def test_a_service_that_was_killed_leaves_no_claim(service: Service) -> None:
    claim = Remembered("k-1", "a-runner", "POST /v1/jobs", "whatever")
    Idempotency(service.store.database).claim(claim)
    body = {"job": service.document()}
    problem(service.runner.post("/v1/jobs", json=body, headers=KEY), 422, "idempotency-mismatch")
    service.start()
    assert service.runner.post("/v1/jobs", json=body, headers=KEY).status_code == 201


@pytest.mark.parametrize("key", [b"", b" ", b"a b", b"x" * 256, b"\xff", b"a\r\nX-Evil: 1", b"a\x00"])
def test_keys_that_are_none(service: Service, key: bytes) -> None:
    answer = service.runner.post(f"{ONE}:cancel", headers={b"Idempotency-Key": key})
    problem(answer, 400, "usage")
    assert "x-evil" not in answer.headers


def test_two_keys_are_none(service: Service) -> None:
    answer = service.runner.post(f"{ONE}:cancel", headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
    problem(answer, 400, "usage")
