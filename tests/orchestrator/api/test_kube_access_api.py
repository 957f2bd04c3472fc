"""Who may do what in a cluster: real tokens and roles of a real API server, asked through the real routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient
from support.api import Service, problem
from support.apiserver import ApiServer
from support.in_cluster import PEOPLE, ClusterService
from support.kube_objects import until
from support.kube_people import READS, RUNS, KubePeople
from support.store import small_job

from orchestrator.api.app import CLUSTER_ROUTERS
from orchestrator.api.auth import OPEN, RoleNeeded
from orchestrator.api.capacity import Capacity, Holder, Slots
from orchestrator.errors import Unavailable
from orchestrator.kube.access import Access
from orchestrator.kube.client import Kube
from orchestrator.launch.delivery import PATH
from orchestrator.store.access import Role


class Cluster(ClusterService):
    """Of one namespace with a job; people are those of a real server."""

    def __init__(self, home: Path, server: ApiServer, kube: Kube, **options: Any) -> None:  # noqa: ANN401
        self.people, self.namespace = KubePeople(server), server.namespace()
        super().__init__(home, Access(kube, yes=0.0, no=0.0), **options)
        self.one = f"/v1/jobs/{self.namespace}/mini"

    def of(self, name: str, *verbs: str, everywhere: bool = False) -> TestClient:
        """A new account's client."""
        self.people.account(self.namespace, name, verbs, everywhere=everywhere)
        return self.client(self.people.token(self.namespace, name, PEOPLE))

    def job(self, name: str = "mini") -> dict[str, Any]:
        return {"job": self.document(name, self.namespace)}

    def store_job(self) -> None:
        self.store.create(small_job("mini", self.namespace), by="tests")


@pytest.fixture
def cluster(api_server: ApiServer, trainingjobs: Any, kube: Kube, tmp_path: Path) -> Iterator[Cluster]:  # noqa: ANN401
    made = Cluster(tmp_path, api_server, kube)
    yield made
    made.close()


@pytest.mark.kube
def test_a_runner_of_a_namespace_runs_there_and_nowhere_else(cluster: Cluster, api_server: ApiServer) -> None:
    runner, elsewhere = cluster.of("runner", *RUNS), api_server.namespace()
    assert runner.post("/v1/jobs", json=cluster.job()).status_code == 201
    assert runner.post("/v1/plans", json=cluster.job()).status_code == 200
    assert (
        runner.get(cluster.one).json()["metadata"]["createdBy"] == f"system:serviceaccount:{cluster.namespace}:runner"
    )
    assert runner.patch(cluster.one, json={"spec": {"suspend": True}}).status_code == 200
    assert runner.post(f"{cluster.one}:resume").status_code == 200
    [listed] = runner.get(f"/v1/jobs?namespace={cluster.namespace}").json()["items"]
    assert listed["metadata"]["name"] == "mini"
    body = {"job": cluster.document("mini", elsewhere)}
    for path in ("/v1/jobs", "/v1/plans"):
        assert elsewhere in problem(runner.post(path, json=body), 403, "forbidden")["detail"]
    problem(runner.get("/v1/audit"), 403, "forbidden")
    assert runner.delete(cluster.one).status_code == 202


@pytest.mark.kube
def test_a_reader_reads_and_no_more(cluster: Cluster) -> None:
    cluster.store_job()
    reader = cluster.of("reader", *READS)
    assert reader.get(cluster.one).status_code == 200
    refused = (
        reader.post("/v1/jobs", json=cluster.job("other")),
        reader.patch(cluster.one, json={"spec": {"suspend": True}}),
        reader.post(f"{cluster.one}:cancel"),
        reader.delete(cluster.one),
    )
    for answer in refused:
        assert "may not create TrainingJob" in problem(answer, 403, "forbidden")["detail"]
    assert cluster.store.get(cluster.namespace, "mini").generation == 1


@pytest.mark.kube
def test_to_a_stranger_nothing_is_there(cluster: Cluster) -> None:
    cluster.store_job()
    cluster.capacity = Capacity(Slots(8), (Holder(cluster.namespace, "mini", Slots(2)),))
    stranger, uid = cluster.of("stranger"), cluster.store.get(cluster.namespace, "mini").uid
    for method, path in operations(cluster.app, cluster.namespace):
        body = cluster.job() if path in ("/v1/jobs", "/v1/plans") else {}
        query = f"?job={cluster.namespace}/mini&job={cluster.namespace}/other" if path == "/v1/compare" else ""
        answer = stranger.request(method, path + query, json=body if method in ("POST", "PATCH") else None)
        if path in ("/v1/me", "/v1/capacity", *OPEN):
            assert answer.status_code == 200
        else:
            assert answer.status_code in (401, 403, 404), (method, path, answer.text)
        assert uid not in answer.text
        assert answer.json().get("holders", []) == [] if path == "/v1/capacity" else True
    absent = cluster.one.replace("mini", "absent")
    found, none = (problem(stranger.get(path), 404, "not-found")["detail"] for path in (cluster.one, absent))
    assert found == none.replace("absent", "mini")
    assert "name one namespace" in problem(stranger.get("/v1/jobs"), 403, "forbidden")["detail"]
    problem(stranger.get(f"/v1/jobs?namespace={cluster.namespace}"), 404, "not-found")


@pytest.mark.kube
def test_who_may_read_all_namespaces_lists_all(cluster: Cluster) -> None:
    cluster.store_job()
    auditor = cluster.of("auditor", *READS, everywhere=True)
    assert [one["metadata"]["name"] for one in auditor.get("/v1/jobs").json()["items"]] == ["mini"]
    assert auditor.get("/metrics").status_code == 200
    assert auditor.get("/v1/costs").status_code == 200
    assert auditor.get("/v1/me").json() == {
        "name": f"system:serviceaccount:{cluster.namespace}:auditor", "role": "reader",
    }  # fmt: skip
    problem(auditor.get("/v1/audit"), 403, "forbidden")
    admin = cluster.of("root", *RUNS, everywhere=True)
    assert admin.get("/v1/audit").status_code == 200
    assert admin.get("/v1/me").json()["role"] == "admin"


@pytest.mark.kube
def test_a_right_that_was_taken_away_is_gone(cluster: Cluster) -> None:
    cluster.store_job()
    reader = cluster.of("reader", *READS)
    assert reader.get(cluster.one).status_code == 200
    cluster.people.forbid(cluster.namespace, "reader")
    until(lambda: reader.get(cluster.one).status_code == 404)


@pytest.mark.kube
def test_tokens_for_others_and_of_laptops_count_for_nothing(cluster: Cluster) -> None:
    cluster.people.account(cluster.namespace, "reader", READS)
    for audience in ("fathom-controller", "https://kubernetes.default.svc"):
        wrong = cluster.client(cluster.people.token(cluster.namespace, "reader", audience))
        assert "--audience=" in problem(wrong.get("/v1/me"), 401, "unauthorized")["detail"]
    problem(cluster.admin.get("/v1/me"), 401, "unauthorized")


# ------------------------------------------------------------------ without a server


@pytest.fixture
def made(tmp_path: Path) -> Iterator[ClusterService]:
    made = ClusterService(tmp_path)
    yield made
    made.close()


def operations(app: FastAPI, namespace: str) -> Iterator[tuple[str, str]]:
    """Method and path of the whole document."""
    for path, item in app.openapi()["paths"].items():
        for method in item:
            yield method.upper(), path.replace("{namespace}", namespace).replace("{name}", "mini")


def test_each_route_says_whom_it_is_for() -> None:
    for route in [route for router in CLUSTER_ROUTERS for route in router.routes]:
        assert isinstance(route, APIRoute)
        roles = [one.call for one in route.dependant.dependencies if isinstance(one.call, RoleNeeded)]
        assert roles or route.path in (*OPEN, PATH), route.path


def test_nobody_is_let_in_while_nobody_can_say_who_it_is(made: ClusterService) -> None:
    ann = made.client(made.known.person("ann", ("get", "list")))
    assert ann.get("/v1/jobs").status_code == 200
    made.known.away = True
    for method, path in operations(made.app, "team-a"):
        answer = ann.request(method, path)
        assert answer.status_code == (200 if path in OPEN else 503), path
        assert "10.0.0.1" not in answer.text
    made.known.away = False
    may = made.known.require
    made.known.require = lambda *_: (_ for _ in ()).throw(Unavailable("no answer"))  # type: ignore[method-assign]
    problem(ann.get("/v1/jobs"), 503, "unavailable")
    problem(ann.get("/v1/jobs/team-a/mini"), 503, "unavailable")
    made.known.require = may  # type: ignore[method-assign]


def test_the_token_comes_in_one_of_two_headers(made: ClusterService) -> None:
    token = made.known.person("ann", ("get", "list"))
    nobody, value = made.client(None), f"Bearer {token}"
    for header in ("Authorization", "X-Fathom-Authorization"):
        assert nobody.get("/v1/me", headers={header: value}).json() == {"name": "ann", "role": "reader"}
    both = {"Authorization": value, "X-Fathom-Authorization": value}
    assert "once" in problem(nobody.get("/v1/me", headers=both), 401, "unauthorized")["detail"]
    twice = [("X-Fathom-Authorization", value)] * 2
    problem(nobody.get("/v1/me", headers=twice), 401, "unauthorized")


def test_a_laptop_takes_one_header(service: Service) -> None:
    value = f"Bearer {service.secrets[Role.ADMIN]}"
    problem(service.client(None).get("/v1/me", headers={"X-Fathom-Authorization": value}), 401, "unauthorized")


def test_there_are_no_tokens_of_fathoms_own(made: ClusterService) -> None:
    root = made.client(made.known.person("root", ("get", "list", "create", "update", "delete")))
    for method, path in (("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("DELETE", "/v1/tokens/ann")):
        answer = root.request(method, path, json={} if method == "POST" else None)
        assert "kubectl create token" in problem(answer, 404, "not-found")["detail"]
    assert not [path for path in made.app.openapi()["paths"] if "tokens" in path]


@pytest.mark.parametrize("missing", ["create", "update", "delete", "get", "list"])
def test_a_role_takes_all_of_its_verbs(made: ClusterService, missing: str) -> None:
    verbs = [verb for verb in ("get", "list", "create", "update", "delete") if verb != missing]
    ann = made.client(made.known.person("ann", verbs, "team-a"))
    answer = ann.post("/v1/jobs", json={"job": made.document("mini", "team-a")})
    assert f"ann may not {missing}" in problem(answer, 403, "forbidden")["detail"]


def test_what_may_not_be_seen_is_not_there_and_what_may_is_forbidden(made: ClusterService) -> None:
    made.store.create(small_job("mini", "team-a"), by="tests")
    reader = made.client(made.known.person("ann", ("get", "list"), "team-a"))
    stranger = made.client(made.known.person("bob"))
    for method, path in (("DELETE", ""), ("PATCH", ""), ("POST", ":cancel"), ("POST", ":suspend")):
        body = {} if method == "PATCH" else None
        problem(reader.request(method, f"/v1/jobs/team-a/mini{path}", json=body), 403, "forbidden")
        problem(stranger.request(method, f"/v1/jobs/team-a/mini{path}", json=body), 404, "not-found")


def test_a_stream_ends_when_the_right_does(made: ClusterService) -> None:
    made.app.state.streams.heartbeat = 0.01
    made.store.create(small_job("mini", "team-a"), by="tests")
    ann = made.client(made.known.person("ann", ("get", "list"), "team-a"))
    with ann.stream("GET", "/v1/jobs/team-a/mini/events?follow=true") as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": begun"
        made.known.may.clear()
        assert "event: end" not in list(lines)


def test_a_plan_that_asks_other_machines_takes_a_runner(made: ClusterService) -> None:
    ann = made.client(made.known.person("ann", ("get", "list"), "team-a"))
    far = {"model": {"initFrom": "http://127.0.0.1:1/weights"}}
    assert ann.post("/v1/plans", json={"job": made.document("mini", "team-a")}).status_code == 200
    answer = ann.post("/v1/plans", json={"job": made.document("mini", "team-a", **far)})
    assert "may not create" in problem(answer, 403, "forbidden")["detail"]


def test_readiness_names_what_is_missing(made: ClusterService) -> None:
    assert made.client(None).get("/readyz", headers={"Host": "10.1.2.3:8080"}).text == "ok\n"
    made.lacking.append("KubeRay is not installed")
    answer = made.client(None).get("/readyz")
    assert (answer.status_code, answer.text) == (503, "not ready: KubeRay is not installed\n")
