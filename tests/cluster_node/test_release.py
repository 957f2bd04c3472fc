"""The chart on a node: it runs, it is upgraded while a job waits, and it goes without taking anybody's job along."""

from __future__ import annotations

import pytest
from support.discovery import Kinds
from support.installed import AsPods, Jobs, Team

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(1800)]
KEPT = {("CustomResourceDefinition", "trainingjobs.fathom.dev"), ("PersistentVolumeClaim", "fathom-home")}


@pytest.fixture
def jobs(on_node: AsPods) -> Jobs:
    return Jobs(on_node, Team.of(on_node.cluster))


def test_helm_tests_it_from_a_pod(on_node: AsPods) -> None:
    said = on_node.helm.done("test", "fathom", "--namespace", "fathom-system")
    assert "Phase:" in said
    assert "Succeeded" in said


def test_a_job_waits_through_an_upgrade_of_the_release(on_node: AsPods, jobs: Jobs) -> None:
    assert jobs.submit(jobs.document("waits", queue={"name": "team-a"})).status_code == 201
    jobs.wait(lambda: _is_waiting(jobs, "waits"), "waits")
    before, job = {one["metadata"]["uid"] for one in on_node.pods()}, jobs.resource("waits")
    assert job is not None

    on_node.install(cluster={"startSeconds": 601})
    on_node.wait_ready()
    jobs.wait(lambda: {one["metadata"]["uid"] for one in on_node.pods()}.isdisjoint(before), "waits")
    settings = on_node.cluster.found("/api/v1/namespaces/fathom-system/configmaps/fathom-settings")
    assert settings is not None
    assert "startSeconds: 601" in settings["data"]["cluster.yaml"]
    after = jobs.resource("waits")
    assert after is not None
    assert after["metadata"]["uid"] == job["metadata"]["uid"]
    assert after["spec"] == job["spec"]
    assert _is_waiting(jobs, "waits"), jobs.do("GET", "waits").text
    assert jobs.do("DELETE", "waits").status_code == 202
    jobs.wait(lambda: jobs.resource("waits") is None, "waits")


def test_what_an_uninstalled_release_leaves(on_node: AsPods, jobs: Jobs) -> None:
    assert jobs.submit(jobs.document("stays")).status_code == 201
    jobs.wait(lambda: jobs.ray_job("stays"), "stays")
    made = jobs.ray_job("stays")
    assert made is not None

    on_node.helm.done("uninstall", "fathom", "--namespace", "fathom-system", "--wait")
    kinds = Kinds(on_node.cluster.client())
    left = {
        (one["kind"], one["metadata"]["name"])
        for one in kinds.everything()
        if (one["metadata"].get("labels") or {}).get("app.kubernetes.io/instance") == "fathom"
        or (
            (one["metadata"].get("labels") or {}).get("owner") == "helm"
            and one["metadata"].get("namespace") == "fathom-system"
        )
    }
    assert left - _going(on_node) == KEPT
    there = jobs.ray_job("stays")
    assert there is not None
    assert there["metadata"]["uid"] == made["metadata"]["uid"]

    on_node.install()
    on_node.wait_ready()
    assert jobs.do("POST", "stays", verb="cancel?force=true").status_code == 200
    jobs.wait(lambda: jobs.of_attempt("stays") == [], "stays")


def _going(on_node: AsPods) -> set[tuple[str, str]]:
    """Pods of the release that are ending."""
    found = on_node.cluster.items("/api/v1/namespaces/fathom-system/pods")
    return {("Pod", one["metadata"]["name"]) for one in found if "deletionTimestamp" in one["metadata"]}


def _is_waiting(jobs: Jobs, name: str) -> bool:
    """Whether its queue has not let it in. Why, depends on whether Kueue is there, and on for how long it was not."""
    conditions = jobs.do("GET", name).json()["status"].get("conditions", [])
    return any((one["type"], one["status"]) == ("Admitted", "False") for one in conditions)
