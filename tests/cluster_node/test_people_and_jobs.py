"""People with real tokens of service accounts, and the life of a job, where Kubernetes' own controllers run."""

from __future__ import annotations

import pytest
from support.installed import Fathom, Jobs, Team

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def team(fathom: Fathom) -> Team:
    return Team.of(fathom.cluster)


@pytest.fixture
def jobs(fathom: Fathom, team: Team) -> Jobs:
    return Jobs(fathom, team)


def test_who_may_what(jobs: Jobs, team: Team) -> None:
    document = jobs.document("shared")
    nobody = jobs.submit(document, "")
    assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthorized")
    assert jobs.submit(document, "not-a-token").status_code == 401
    refused = jobs.submit(document, team.reader)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert jobs.submit(document, team.stranger).status_code == 403
    assert jobs.resource("shared") is None, "nothing was made of all that"

    assert jobs.submit(document).status_code == 201
    made = jobs.resource("shared")
    assert made is not None
    assert made["metadata"]["annotations"]["fathom.dev/created-by"].endswith(":editor")

    assert jobs.do("GET", "shared", team.reader).json()["metadata"]["uid"] == made["metadata"]["uid"]
    # to a stranger it is as if it were not there
    for token, status in ((team.reader, 403), (team.stranger, 404)):
        assert jobs.do("POST", "shared", token, "cancel").status_code == status
        assert jobs.do("DELETE", "shared", token).status_code == status
    assert jobs.do("GET", "shared", team.stranger).status_code == 404
    listed = jobs.fathom.ask("GET", "/v1/jobs", team.stranger)
    assert "shared" not in listed.text
    assert jobs.do("GET", "shared", "").status_code == 401
    assert jobs.do("DELETE", "shared").status_code == 202
    jobs.wait(lambda: jobs.resource("shared") is None, "shared")


def test_a_job_becomes_a_ray_job_and_goes_when_it_is_cancelled(jobs: Jobs, team: Team) -> None:
    assert jobs.submit(jobs.document("one")).status_code == 201
    jobs.wait(lambda: jobs.ray_job("one"), "one")
    made, owner = jobs.ray_job("one"), jobs.resource("one")
    assert made is not None
    assert owner is not None
    [reference] = made["metadata"]["ownerReferences"]
    assert (reference["kind"], reference["uid"]) == ("TrainingJob", owner["metadata"]["uid"])
    kinds = ["serviceaccounts", "secrets", "configmaps", "networkpolicies", "rayjobs"]
    assert jobs.of_attempt("one") == kinds

    assert jobs.do("POST", "one", verb="cancel").status_code == 200
    jobs.wait(lambda: jobs.do("GET", "one", team.reader).json()["status"]["phase"] == "Cancelled", "one")
    jobs.wait(lambda: jobs.of_attempt("one") == [], "one")
    assert jobs.do("DELETE", "one").status_code == 202
    jobs.wait(lambda: jobs.resource("one") is None, "one")


def test_what_a_job_leaves_is_collected_when_it_is_deleted_with_kubectl(jobs: Jobs, team: Team) -> None:
    assert jobs.submit(jobs.document("two")).status_code == 201
    jobs.wait(lambda: jobs.ray_job("two"), "two")
    jobs.fathom.cluster.kubectl("delete", "trainingjob", "two", "-n", team.namespace, "--timeout=300s")
    jobs.wait(lambda: jobs.of_attempt("two") == [], "two")
