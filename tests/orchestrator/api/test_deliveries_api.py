"""The address where pods of attempts deliver: only their own, once, within bounds, and apart from people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.api import problem
from support.apiserver import ApiServer
from support.in_cluster import PODS, ClusterService
from support.kube_people import KubePeople
from support.runs import event
from support.store import small_job

from orchestrator.api import deliveries
from orchestrator.api.deliveries import PodCaller, caller_of, require_pod
from orchestrator.errors import Forbidden
from orchestrator.kube.access import Access, Person
from orchestrator.kube.client import Kube
from orchestrator.launch.base import RunFolder
from orchestrator.launch.delivery import MOST_BODY_BYTES, PATH, Delivery
from orchestrator.launch.events import read
from orchestrator.launch.rayjob.agreed import ATTEMPT, JOB_UID

CLUSTER = "mini-a1-abcde"


class Cluster(ClusterService):
    """With one job, its attempt and the attempt's pod."""

    def begin(self, namespace: str) -> dict[str, str]:
        """-> the labels of the pod."""
        self.job = self.store.create(small_job("mini", namespace), by="ann")
        self.folder = RunFolder(self.home / self.job.folder)
        self.folder.root.mkdir()
        self.folder.resolved(1).write_text("{}")
        labels = {JOB_UID: self.job.uid, ATTEMPT: "1", "ray.io/cluster": CLUSTER}
        self.pods[namespace, "head"] = {"metadata": {"name": "head", "uid": "u1", "labels": labels}}
        return labels

    def body(self, count: int = 2, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
        keys = {"attempt": 1, "incarnation": CLUSTER, "job": self.job.uid}
        events = [event("progress", n, seq=n, step=n, tokens=n, **keys) for n in range(1, count + 1)]
        content = {"namespace": self.job.namespace, "name": "mini", "events": events, "log": "a\n", **keys}
        return Delivery.model_validate(content).model_dump(mode="json", by_alias=True) | fields


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.close()


@pytest.fixture
def pod(cluster: Cluster) -> Any:  # noqa: ANN401
    """A client with the pod's token."""
    cluster.begin("team-a")
    cluster.known.person("ann", ("get", "list", "create", "update", "delete"))
    return cluster.client(cluster.known.pod("team-a", "head", "u1"))


def test_what_is_delivered_is_stored_once_and_wakes_the_controller(cluster: Cluster, pod: Any) -> None:  # noqa: ANN401
    for _ in range(3):
        answer = pod.post(PATH, json=cluster.body())
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"seq": 2, "logOffset": 2, "answer": {"kind": "continue", "hardDeadline": None}}
    assert [one.seq for one in read(cluster.folder.events)[0]] == [1, 2]
    assert cluster.folder.log(1).read_text() == "a\n"
    assert cluster.woken == 1
    assert cluster.known.person("root", ("get", "list", "update"))
    metrics = cluster.client("token-root").get("/metrics").text
    assert 'fathom_delivered_total{what="events"} 2.0' in metrics
    assert 'fathom_delivered_total{what="log-bytes"} 2.0' in metrics
    assert 'route="/v1/deliveries",status="200"' in metrics
    assert cluster.client("token-root").get("/v1/audit").json()["items"] == [], "no deed of a person"


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({JOB_UID: "another"}, "job-uid=another"),
        ({ATTEMPT: "2"}, "attempt=2"),
        ({"ray.io/cluster": "mini-a1-other"}, "mini-a1-other"),
        ({}, "None"),
    ],
)
def test_a_pod_speaks_for_itself_only(cluster: Cluster, pod: Any, labels: dict[str, str], why: str) -> None:  # noqa: ANN401
    found = cluster.pods["team-a", "head"]["metadata"]
    found["labels"] = found["labels"] | labels if labels else {}
    assert why in problem(pod.post(PATH, json=cluster.body()), 403, "forbidden")["detail"]
    assert not cluster.folder.events.exists()


def test_a_pod_that_took_the_name_of_another_is_none(cluster: Cluster, pod: Any) -> None:  # noqa: ANN401
    cluster.pods["team-a", "head"]["metadata"]["uid"] = "u2"
    problem(pod.post(PATH, json=cluster.body()), 403, "forbidden")
    del cluster.pods["team-a", "head"]
    problem(pod.post(PATH, json=cluster.body()), 403, "forbidden")


def test_the_namespace_is_that_of_the_token(cluster: Cluster, pod: Any) -> None:  # noqa: ANN401
    assert "team-b" in problem(pod.post(PATH, json=cluster.body(namespace="team-b")), 403, "forbidden")["detail"]


def test_tokens_are_for_one_thing_each(cluster: Cluster, pod: Any) -> None:  # noqa: ANN401
    problem(pod.get("/v1/jobs"), 401, "unauthorized")
    problem(cluster.client("token-ann").post(PATH, json=cluster.body()), 401, "unauthorized")
    problem(cluster.client(None).post(PATH, json=cluster.body()), 401, "unauthorized")
    cluster.known.people["bare", PODS] = Person("system:serviceaccount:team-a:mini-a1")
    bare = cluster.client("bare").post(PATH, json=cluster.body())
    assert "bound to no pod" in problem(bare, 403, "forbidden")["detail"]
    cluster.known.away = True
    found = problem(pod.post(PATH, json=cluster.body()), 503, "unavailable")
    assert "10.0.0.1" not in found["detail"]


def test_who_counts_no_more_is_told(cluster: Cluster, pod: Any) -> None:  # noqa: ANN401
    cluster.folder.resolved(2).write_text("{}")
    problem(pod.post(PATH, json=cluster.body()), 409, "fenced")
    cluster.store.remove(cluster.job.uid)
    problem(pod.post(PATH, json=cluster.body()), 409, "fenced")
    assert not cluster.folder.events.exists()


def test_the_uid_is_that_of_the_job(cluster: Cluster, pod: Any) -> None:  # noqa: ANN401
    problem(pod.post(PATH, json=cluster.body(name="other")), 409, "fenced")


@pytest.mark.parametrize("path", ["../x", "a/b", "/etc/x", ".hidden", "a..b", "a\x00", "a\n", "", "a" * 101])
def test_names_of_artifacts_lead_nowhere(cluster: Cluster, pod: Any, path: str) -> None:  # noqa: ANN401
    body = cluster.body(artifacts=[{"name": path, "data": "YQ=="}])
    found = problem(pod.post(PATH, json=body), 422, "invalid-request")
    assert found["errors"][0]["pointer"] == "/artifacts/0/name"
    assert not cluster.folder.events.exists()


def test_bodies_are_bounded_and_larger_than_those_of_people(cluster: Cluster, pod: Any) -> None:  # noqa: ANN401
    content = "QUJD" * (1 << 18)  # a MiB of text
    body = cluster.body(artifacts=[{"name": "a.txt", "data": content}])
    assert pod.post(PATH, json=body).status_code == 200
    assert (cluster.folder.artifacts / "a.txt").stat().st_size == 3 << 18
    problem(pod.post(PATH, json=cluster.body(log="x" * MOST_BODY_BYTES)), 413, "too-large")
    keys = {"attempt": 1, "incarnation": CLUSTER, "job": cluster.job.uid, "step": 1, "tokens": 1}
    metrics = {f"m{number}": 1.0 for number in range(200)}
    events = [event("progress", n, seq=n, metrics=metrics, **keys) for n in range(3, 503)]
    many = [one.model_dump(mode="json", by_alias=True) for one in events]
    answer = pod.post(PATH, json=cluster.body(events=many))
    assert (answer.status_code, answer.json()["seq"]) == (200, 502), answer.text


def test_one_pod_is_held_back_and_no_other(cluster: Cluster, pod: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr(deliveries, "LIMITS", replace(deliveries.LIMITS, rate=0.001, burst=3))
    cluster.start()
    pod = cluster.client("token-u1")
    assert [pod.post(PATH, json={}).status_code for _ in range(5)] == [422] * 3 + [429] * 2
    assert int(pod.post(PATH, json={}).headers["retry-after"]) > 900
    other = cluster.client(cluster.known.pod("team-b", "head", "u2"))
    assert other.post(PATH, json={}).status_code == 422
    ann = cluster.client("token-ann")
    assert {ann.get("/v1/me").status_code for _ in range(5)} == {200}, "people are counted apart"


def test_the_address_exists_in_a_cluster_only(service: Any) -> None:  # noqa: ANN401
    problem(service.admin.post(PATH, json={}), 404, "not-found")


EXTRA = st.dictionaries(
    st.sampled_from(["pod-name", "pod-uid", "node-name"]), st.lists(st.text(max_size=3), max_size=2)
)


@given(EXTRA)
def test_a_pods_token_names_exactly_one_pod(extra: dict[str, list[str]]) -> None:
    found = tuple((f"authentication.kubernetes.io/{key}", tuple(values)) for key, values in extra.items())
    person = Person("system:serviceaccount:a:b", extra=found)
    if len(extra.get("pod-name", ())) == len(extra.get("pod-uid", ())) == 1:
        assert caller_of(person) == PodCaller("a", extra["pod-name"][0], extra["pod-uid"][0])
    else:
        with pytest.raises(Forbidden):
            caller_of(person)
    with pytest.raises(Forbidden):
        caller_of(Person("ann", extra=found))


@pytest.mark.kube
def test_a_real_pods_token_delivers(api_server: ApiServer, kube: Kube, tmp_path: Path) -> None:
    people, namespace = KubePeople(api_server), api_server.namespace()
    people.account(namespace, "mini-a1")
    cluster = Cluster(tmp_path, Access(kube))
    try:
        labels = cluster.begin(namespace)
        pod = people.pod(namespace, "head", "mini-a1", **labels)
        cluster.pods[namespace, "head"] = pod
        bound = cluster.client(people.token(namespace, "mini-a1", PODS, pod=pod))
        assert bound.post(PATH, json=cluster.body()).json()["seq"] == 2
        loose = cluster.client(people.token(namespace, "mini-a1", PODS))
        problem(loose.post(PATH, json=cluster.body()), 403, "forbidden")
        other = cluster.client(people.token(namespace, "mini-a1", "fathom", pod=pod))
        problem(other.post(PATH, json=cluster.body()), 401, "unauthorized")
        require_pod(PodCaller(namespace, "head", pod["metadata"]["uid"]), pod, Delivery.model_validate(cluster.body()))
    finally:
        cluster.close()
