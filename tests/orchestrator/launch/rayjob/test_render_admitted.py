"""A real API server, with KubeRay's and Kueue's definitions and a restricted namespace, takes what is rendered."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from support.apiserver import ApiServer
from support.operators import create
from support.rendered_cases import CASES
from support.rendering import Object, as_pod, container, find, job, rendered, templates

from orchestrator.launch.rayjob import Rendered


@pytest.fixture
def restricted(operated: ApiServer) -> str:
    """A namespace of the test's own."""
    return operated.namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})


def missing(sent: Any, kept: Any, path: str = "") -> list[str]:  # noqa: ANN401 - any JSON value
    """What of `sent` the server has dropped or changed; it may add."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        return [found for key, value in sent.items() for found in missing(value, kept.get(key), f"{path}/{key}")]
    if isinstance(sent, list) and isinstance(kept, list) and len(sent) == len(kept):
        pairs = enumerate(zip(sent, kept, strict=True))
        return [found for n, (one, other) in pairs for found in missing(one, other, f"{path}/{n}")]
    return [] if sent == kept else [f"{path}: {sent!r} became {kept!r}"]


@pytest.mark.parametrize("name", CASES)
def test_objects_are_taken_as_they_are(operated: ApiServer, restricted: str, name: str) -> None:
    for one in CASES[name]().objects:
        answer = create(operated.client(), one, restricted)
        assert answer.status_code == 201, answer.text
        assert missing(one | {"metadata": one["metadata"] | {"namespace": restricted}}, answer.json()) == []
        again = create(operated.client(), one, restricted)
        assert (again.status_code, again.json()["reason"]) == (409, "AlreadyExists")


@pytest.mark.parametrize("name", CASES)
def test_pods_are_admitted_where_only_restricted_ones_are(operated: ApiServer, restricted: str, name: str) -> None:
    for kind, template in templates(CASES[name]()).items():
        answer = create(operated.client(), as_pod(template, f"{kind}-pod", restricted), restricted)
        assert answer.status_code == 201, answer.text
        assert "Warning" not in answer.headers


def _privileged(pod: Object) -> None:
    _secure(pod)["privileged"] = True
    _secure(pod)["allowPrivilegeEscalation"] = True


def _may_lock_memory(pod: Object) -> None:
    _secure(pod)["capabilities"]["add"] = ["IPC_LOCK"]


def _is_root(pod: Object) -> None:
    _secure(pod)["runAsUser"] = 0


def _has_no_profile(pod: Object) -> None:
    del _secure(pod)["seccompProfile"], pod["spec"]["securityContext"]["seccompProfile"]


def _mounts_the_node(pod: Object) -> None:
    pod["spec"]["volumes"].append({"name": "root", "hostPath": {"path": "/"}})


def _is_on_the_network_of_the_node(pod: Object) -> None:
    pod["spec"]["hostNetwork"] = True


def _secure(pod: Object) -> Object:
    found: Object = pod["spec"]["containers"][0]["securityContext"]
    return found


SPOILT = [_privileged, _may_lock_memory, _is_root, _has_no_profile, _mounts_the_node, _is_on_the_network_of_the_node]


@pytest.mark.parametrize("kind", ["head", "workers", "submitter"])
@pytest.mark.parametrize("spoil", SPOILT)
def test_a_pod_that_is_not_restricted_is_refused(
    operated: ApiServer, restricted: str, spoil: Callable[[Object], None], kind: str
) -> None:
    pod = copy.deepcopy(as_pod(templates(rendered(job()))[kind], "spoilt", restricted))
    spoil(pod)
    answer = create(operated.client(), pod, restricted)
    assert answer.status_code == 403
    assert "violates PodSecurity" in answer.json()["message"]


def _unknown_field(spec: Object) -> None:
    spec["retries"] = 3


def _unknown_field_of_a_container(spec: Object) -> None:
    container(spec["submitterPodTemplate"])["shell"] = "bash"


def _text_for_a_number(spec: Object) -> None:
    spec["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "two"


def _unknown_mode(spec: Object) -> None:
    spec["rayClusterSpec"]["authOptions"]["mode"] = "password"


@pytest.mark.parametrize(
    ("spoil", "status"),
    [(_unknown_field, 400), (_unknown_field_of_a_container, 400), (_text_for_a_number, 422), (_unknown_mode, 422)],
)
def test_a_rayjob_that_kuberay_does_not_know_is_refused(
    operated: ApiServer, restricted: str, spoil: Callable[[Object], None], status: int
) -> None:
    made = copy.deepcopy(rendered(job()).ray_job)
    spoil(made["spec"])
    assert create(operated.client(), made, restricted).status_code == status


@pytest.mark.parametrize("kind", ["ConfigMap", "Secret"])
def test_what_an_attempt_was_given_cannot_change(operated: ApiServer, restricted: str, kind: str) -> None:
    made = find(rendered(job()), kind)
    created = create(operated.client(), made, restricted)
    assert created.status_code == 201
    answer = _patch(operated.client(), kind, restricted, made["metadata"]["name"], {"data": {"resolved.json": "e30="}})
    assert answer.status_code == 422
    assert "immutable" in answer.json()["message"]


def _patch(client: httpx2.Client, kind: str, namespace: str, name: str, change: Object) -> httpx2.Response:
    path = f"/api/v1/namespaces/{namespace}/{kind.lower()}s/{name}"
    return client.patch(path, json=change, headers={"Content-Type": "application/merge-patch+json"})


@pytest.mark.parametrize("made", [rendered(job("a" * 40), attempt=999)], ids=["longest"])
def test_the_longest_name_there_is(operated: ApiServer, restricted: str, made: Rendered) -> None:
    for one in made.objects:
        answer = create(operated.client(), one, restricted)
        assert answer.status_code == 201, answer.text
