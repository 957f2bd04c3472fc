"""What a replica answers until it leads."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from support.api import URL, Service, problem

from orchestrator.api.standby import Standby
from orchestrator.cli.leading import lacking


def test_until_it_leads_it_lives_and_is_not_ready(service: Service) -> None:
    standby = Standby()
    client = TestClient(standby, base_url=URL)
    assert client.get("/livez").text == "ok\n"
    found = client.get("/readyz")
    assert (found.status_code, found.text) == (503, "not ready: standby\n")
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("POST", "/livez"), ("GET", "/metrics")):
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "5"
    assert standby.state is None
    standby.lead(service.app)
    assert client.get("/readyz").text == "ok\n"
    problem(client.get("/v1/jobs"), 401, "unauthorized")
    assert standby.state is service.app.state


@pytest.mark.parametrize(
    ("leads", "jobs", "attempts", "problem", "words"),
    [
        (True, True, True, "", []),
        (False, True, True, "", ["the lease is lost"]),
        (True, False, True, "", ["TrainingJobs"]),
        (True, True, False, "", ["what runs in the cluster is not known"]),
        (True, True, False, "install KubeRay", ["install KubeRay"]),
        (False, False, True, "install KubeRay", ["the lease", "TrainingJobs", "install KubeRay"]),
    ],
)
def test_a_leader_says_what_it_lacks(leads: bool, jobs: bool, attempts: bool, problem: str, words: list[str]) -> None:
    found = list(lacking(leads=leads, jobs=jobs, attempts=attempts, problem=problem))
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))
