"""What a tenant of a cluster may try by REST: every route without a token, addresses that the controller would ask,
names of other namespaces, pods with more rights than they have. Each is refused, and no packet leaves the process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.testclient import TestClient
from support.api import pointers, problem
from support.in_cluster import ClusterService
from support.rendering import IMAGE

from orchestrator.api.app import CLUSTER_ROUTERS
from orchestrator.api.auth import OPEN
from orchestrator.kube.access import Person
from orchestrator.launch.cluster import KubeLauncher
from orchestrator.launch.delivery import PATH
from orchestrator.launch.rayjob import ClusterSettings

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "FOO")
ALLOWED = {"serviceAccounts": ["trainer"], "secrets": ["s3"], "priorityClasses": ["low"]}
HOSTILE = (
    "file:///etc/passwd",
    "/var/run/secrets/kubernetes.io/serviceaccount",
    "gopher://127.0.0.1:70/x",
    "ftp://127.0.0.1/x",
    "http://127.0.0.1:8080/x",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/x",
    "http://2852039166/x",
    "http://0xa9fea9fe/x",
    "http://10.0.0.1/x",
    "http://rebinds.example.org/x",
    "https://kubernetes.default.svc/api",
    "simplecache::http://127.0.0.1:1/x",
    "s3://bucket/x::http://127.0.0.1:1/x",
    "reference://x",
)
"""Places that a controller reaches and a tenant shall not have it ask."""


class Elsewhere(ClusterService):
    """With the launcher of a cluster, which is asked what may run and starts nothing."""

    def start(self) -> None:
        cluster = ClusterSettings.model_validate({"images": {"train": IMAGE}, "allowed": ALLOWED})
        nobody = cast(Any, None)
        self.launcher = KubeLauncher(nobody, nobody, self.settings, cluster, lambda _: None, say=print)
        super().start()

    def document(self, name: str = "mini", namespace: str = "team-a", **spec: Any) -> dict[str, Any]:  # noqa: ANN401
        elsewhere = {
            "data": {"source": "pvc://team/data", "sequenceLength": 32},
            "checkpoint": {"uri": "pvc://team/checkpoints"},
        }
        return super().document(name, namespace, **(elsewhere | spec))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Elsewhere]:
    made = Elsewhere(tmp_path)
    yield made
    made.close()


@pytest.fixture
def runner(made: Elsewhere) -> TestClient:
    """May all that a person may, in one namespace."""
    verbs = ("get", "list", "create", "update", "delete")
    return made.client(made.known.person("ann", verbs, "team-a"))


@pytest.fixture
def packets(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What this process has asked of a network: names, and addresses that it connects to."""
    asked: list[object] = []

    def refused(*arguments: object, **_: object) -> None:
        asked.append(arguments[-1])
        raise OSError("not in this test")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refused)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused)
    return asked


# ------------------------------------------------------------------ without a token


def test_nothing_of_a_cluster_answers_without_a_token(made: Elsewhere) -> None:
    """By the table of the application itself, so that what is not in the document is asked, too."""
    own = [route for route in made.app.routes if isinstance(route, Route)]
    assert len(made.app.routes) - len(own) == len(CLUSTER_ROUTERS), "nothing is mounted beside our routers"
    routes = [*own, *(route for router in CLUSTER_ROUTERS for route in router.routes)]
    known = {_path(route).replace("{namespace}", "team-a").replace("{name}", "mini") for route in routes}
    assert {PATH, "/metrics", "/openapi.json", "/v1/jobs/team-a/mini"} <= known
    clients = (made.client(None), made.client("token-nobody"), made.client("x" * 20_000))
    for path in sorted((known | {"/", "/docs", "/redoc", "/v1/jobs/", "/nope"}) - OPEN):
        for method in METHODS:
            for client in clients:
                answer = client.request(method, path)
                assert answer.status_code == 401, (method, path, answer.text)
                assert answer.headers["www-authenticate"].startswith("Bearer")


def _path(route: object) -> str:
    assert isinstance(route, Route | APIRoute), f"{route} is neither an address nor known to this test"
    return route.path


# ------------------------------------------------------------------ addresses


@pytest.mark.parametrize("uri", HOSTILE)
def test_weights_are_asked_of_object_stores_only(
    made: Elsewhere, runner: TestClient, packets: list[object], uri: str
) -> None:
    """The controller reads their headers itself: all other addresses would be asked with its network and its files."""
    model = {"initFrom": uri}
    for path in ("/v1/plans", "/v1/jobs", "/v1/jobs?dryRun=true"):
        found = problem(runner.post(path, json={"job": made.document(model=model)}), 422, "invalid-job")
        assert pointers(found) == ["/spec/model/initFrom"], path
        assert "object store" in found["detail"]
    assert packets == []


@pytest.mark.parametrize("uri", HOSTILE)
def test_what_pods_read_is_not_asked_by_the_controller(
    made: Elsewhere, runner: TestClient, packets: list[object], uri: str
) -> None:
    spec = {
        "data": {"source": "pvc://team/data", "sequenceLength": 32, "tokenizer": uri},
        "training": {"tokens": 100_000, "globalBatchTokens": 4096, "evaluation": {"tasks": [uri]}},
    }
    for path in ("/v1/plans", "/v1/jobs"):
        assert runner.post(path, json={"job": made.document(**spec)}).status_code in (200, 201), path
    refused = runner.post("/v1/jobs", json={"job": made.document("other", data={"source": uri, "sequenceLength": 32})})
    assert refused.status_code == (201 if uri.startswith("/var") else 422), "a path is one of the pods"
    assert packets == []


@pytest.mark.parametrize("uri", ["file:///x", "/tmp/x", "memory://x", "pvc://team/../x", "pvc://team/%2e%2e/x"])
def test_checkpoints_stay_in_claims_and_stores(made: Elsewhere, runner: TestClient, uri: str) -> None:
    answer = runner.post("/v1/jobs", json={"job": made.document(checkpoint={"uri": uri})})
    assert pointers(problem(answer, 422, "invalid-job")) == ["/spec/checkpoint/uri"]


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("name", ["../mini", "%2e%2e", "..%252f", "mini%00", "a/b", "%2Fetc%2Fpasswd", "..%5cmini"])
def test_names_in_addresses_lead_nowhere(made: Elsewhere, runner: TestClient, name: str) -> None:
    for path in (f"/v1/jobs/team-a/{name}", f"/v1/jobs/{name}/mini", f"/v1/jobs/team-a/{name}/logs"):
        assert runner.get(f"http://localhost:8470{path}").status_code in (404, 422), path
    assert sorted(one.name for one in made.home.iterdir() if one.is_dir()) == ["data"]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"storage": {"secretRef": "team-b/s3"}}, "/spec/storage/secretRef"),
        ({"storage": {"secretRef": "../team-b/secrets/s3"}}, "/spec/storage/secretRef"),
        ({"storage": {"claim": "team-b/data"}}, "/spec/storage/claim"),
        ({"queue": {"name": "team-b/queue"}}, "/spec/queue/name"),
        ({"storage": {"secretRef": "root"}}, "/spec/storage/secretRef"),
        ({"queue": {"name": "queue", "priorityClass": "urgent"}}, "/spec/queue/priorityClass"),
    ],
)
def test_objects_of_others_cannot_be_named(
    made: Elsewhere, runner: TestClient, spec: dict[str, Any], path: str
) -> None:
    """A name is one of the job's own namespace, and of those that the cluster's settings list."""
    answer = runner.post("/v1/jobs", json={"job": made.document(**spec)})
    assert pointers(problem(answer, 422, "invalid-job")) == [path]
    assert runner.get("/v1/jobs?namespace=team-a").json()["items"] == []


@pytest.mark.parametrize(
    "field",
    [
        {"serviceAccountName": "team-b:trainer"},
        {"serviceAccountName": "builder"},
        {"hostNetwork": True},
        {"hostPID": True},
        {"securityContext": {"privileged": True}},
        {"capabilities": ["SYS_ADMIN"]},
        {"volumes": [{"hostPath": {"path": "/"}}]},
        {"nodeSelector": {"node": "control-plane"}},
        {"tolerations": [{"operator": "Exists"}]},
        {"priorityClassName": "system-node-critical"},
        {"runtimeClassName": "runc"},
        {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]},
        {"command": ["/bin/sh"]},
    ],
    ids=lambda field: next(iter(field)),
)
def test_what_pods_may_do_is_not_the_jobs_to_say(made: Elsewhere, runner: TestClient, field: dict[str, Any]) -> None:
    compute = {"accelerator": "cpu", "workers": 2} | field
    answer = runner.post("/v1/jobs", json={"job": made.document(compute=compute)})
    assert pointers(problem(answer, 422, "invalid-job")) == [f"/spec/compute/{next(iter(field))}"]


@pytest.mark.parametrize("key", ["labels", "annotations", "finalizers", "ownerReferences", "generateName"])
def test_metadata_is_a_name_and_a_namespace(made: Elsewhere, runner: TestClient, key: str) -> None:
    document = made.document()
    document["metadata"][key] = {"kueue.x-k8s.io/queue-name": "theirs", "ray.io/cluster": "theirs"}
    found = problem(runner.post("/v1/jobs", json={"job": document}), 422, "invalid-job")
    assert pointers(found) == [f"/metadata/{key}"]


# ------------------------------------------------------------------ what is kept of it


def test_the_record_names_the_groups_of_a_person(made: Elsewhere) -> None:
    everything = ("get", "list", "create", "update", "delete")
    token = made.known.person("root", everything)
    made.known.people[token, "fathom"] = Person("root", groups=("admins", "system:authenticated"))
    root = made.client(token)
    assert root.post("/v1/jobs", json={"job": made.document()}).status_code == 201
    [record] = root.get("/v1/audit").json()["items"]
    assert record["groups"] == ["admins", "system:authenticated"]
    assert (record["principal"], record["job"], record["outcome"]) == ("root", "team-a/mini", "done")
    assert token not in str(record)
