"""`?force=true`: a job is ended at once, without a last checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
from support.api import Service, problem
from support.store import in_phase

from orchestrator.status import Phase
from orchestrator.store.base import Wish

ONE = "/v1/jobs/default/mini"


@pytest.mark.parametrize("verb", ["cancel", "delete"])
def test_force_may_be_added_and_is_never_taken_back(service: Service, verb: str) -> None:
    service.create()

    def act(query: str = "", **headers: str) -> Any:  # noqa: ANN401 - an answer of httpx
        if verb == "delete":
            return service.runner.delete(f"{ONE}{query}", headers=headers)
        return service.runner.post(f"{ONE}:cancel{query}", headers=headers)

    def wish() -> Wish:
        return service.store.get("default", "mini").wish

    ordered = act()
    since = (wish().cancelled_at, wish().deleted_at)
    assert wish().force is False
    problem(act("?force=true", **{"If-Match": '"another-1"'}), 412, "precondition-failed")
    problem(act("?force=perhaps"), 422, "invalid-request")
    problem(act("?Force=true"), 422, "invalid-request")
    assert wish().force is False
    forced = act("?force=true", **{"If-Match": ordered.headers["ETag"]})
    assert forced.status_code == ordered.status_code
    assert forced.json()["metadata"]["generation"] == ordered.json()["metadata"]["generation"] + 1
    assert wish().force is True
    assert (wish().cancelled_at, wish().deleted_at) == since
    assert act().json() == act("?force=false").json() == forced.json()
    assert wish().force is True


def test_force_is_part_of_what_a_key_stands_for(service: Service) -> None:
    service.create()
    key = {"Idempotency-Key": "once"}
    first = service.runner.post(f"{ONE}:cancel?force=true", headers=key)
    assert service.runner.post(f"{ONE}:cancel?force=true", headers=key).json() == first.json()
    problem(service.runner.post(f"{ONE}:cancel", headers=key), 422, "idempotency-mismatch")


def test_nothing_is_forced_of_a_job_that_has_ended(service: Service) -> None:
    service.create()
    service.set_status(in_phase(Phase.SUCCEEDED))
    assert "cancelledAt" not in service.runner.post(f"{ONE}:cancel?force=true").json()["metadata"]
    assert service.store.get("default", "mini").wish.force is False
