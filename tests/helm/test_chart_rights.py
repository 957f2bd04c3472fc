"""What the controller's account and people may do by the chart's roles: all that is needed, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.apiserver import ApiServer
from support.discovery import Kinds
from support.helm import Helm, Object
from support.kube_objects import until

pytestmark = pytest.mark.kube

Right = tuple[str, str, str]
"""Group, resource (with its subresource), verb."""


def _rights(group: str, resources: str, verbs: str) -> Iterator[Right]:
    yield from product([group], resources.split(), verbs.split())


IN_JOBS_NAMESPACES: set[Right] = {
    # store: informer, wishes (merge patches), what people ask for by the API, the end
    *_rights("fathom.dev", "trainingjobs", "get list watch create patch delete"),
    *_rights("fathom.dev", "trainingjobs/status", "patch"),
    # owner references with blockOwnerDeletion (rayjob.names.owner)
    *_rights("fathom.dev", "trainingjobs/finalizers", "update"),
    # attempts: created once, Kueue's gate taken away, deleted
    *_rights("ray.io", "rayjobs", "get list watch create patch delete"),
    *_rights("ray.io", "rayclusters", "get list watch"),
    *_rights("kueue.x-k8s.io", "workloads", "get list watch"),
    *_rights("", "pods", "get list watch"),
    # writes.Writer.create_if_absent and delete; what is left over is found by its configuration
    *_rights("", "configmaps", "get list create delete"),
    *_rights("", "secrets serviceaccounts", "get create delete"),
    *_rights("networking.k8s.io", "networkpolicies", "get create delete"),
    # notices.Notices
    *_rights("events.k8s.io", "events", "get create patch"),
}
IN_THE_CLUSTER: set[Right] = {
    *_rights("authentication.k8s.io", "tokenreviews", "create"),
    *_rights("authorization.k8s.io", "subjectaccessreviews", "create"),
}
AT_HOME: set[Right] = set(_rights("coordination.k8s.io", "leases", "create"))
LEASE: set[Right] = set(_rights("coordination.k8s.io", "leases", "get update"))
ALL_VERBS = "get list watch create update patch delete deletecollection"
EVERYTHING: set[Right] = {
    *_rights("fathom.dev", "trainingjobs trainingjobs/status trainingjobs/finalizers", ALL_VERBS),
    *_rights("ray.io", "rayjobs rayjobs/status rayclusters rayservices", ALL_VERBS),
    *_rights("kueue.x-k8s.io", "workloads workloads/status localqueues clusterqueues", ALL_VERBS),
    *_rights("", "pods pods/log pods/exec pods/ephemeralcontainers configmaps secrets", ALL_VERBS),
    *_rights("", "serviceaccounts serviceaccounts/token services persistentvolumeclaims", ALL_VERBS),
    *_rights("", "nodes nodes/proxy namespaces persistentvolumes events", ALL_VERBS),
    *_rights("apps", "deployments daemonsets", ALL_VERBS),
    *_rights("batch", "jobs cronjobs", ALL_VERBS),
    *_rights("networking.k8s.io", "networkpolicies ingresses", ALL_VERBS),
    *_rights("events.k8s.io", "events", ALL_VERBS),
    *_rights("coordination.k8s.io", "leases", ALL_VERBS),
    *_rights("rbac.authorization.k8s.io", "roles rolebindings clusterroles", f"{ALL_VERBS} bind escalate"),
    *_rights("", "users groups serviceaccounts", "impersonate"),
    *_rights("certificates.k8s.io", "certificatesigningrequests", ALL_VERBS),
    *_rights("apiextensions.k8s.io", "customresourcedefinitions", ALL_VERBS),
    *_rights("admissionregistration.k8s.io", "mutatingwebhookconfigurations", ALL_VERBS),
    *IN_THE_CLUSTER,
}
SOME: set[Right] = {
    *IN_JOBS_NAMESPACES,
    *IN_THE_CLUSTER,
    *_rights("fathom.dev", "trainingjobs trainingjobs/status", ALL_VERBS),
    *_rights("", "secrets pods configmaps", "list create update deletecollection"),
    *_rights("", "nodes", "delete"),
    *_rights("rbac.authorization.k8s.io", "roles", "create bind escalate"),
}
"""Those of them that are told apart where it is not about the whole cluster: each question takes the server a while."""


def test_every_kind_that_the_program_knows_is_in_the_table() -> None:
    """Whoever makes a kind known to the controller gives it its rights, too."""
    source = (path.read_text() for path in (Path(__file__).parents[2] / "orchestrator").rglob("*.py"))
    known = {found for text in source for found in re.findall(r'\bTarget\("([^"]*)", "v[^"]*", "([a-z]+)", "', text)}
    assert {("fathom.dev", "trainingjobs"), ("coordination.k8s.io", "leases")} <= known
    assert known <= {(group, resource) for group, resource, _ in IN_JOBS_NAMESPACES | IN_THE_CLUSTER | LEASE}


class Asked:
    """What somebody may, as the API server says."""

    def __init__(self, client: httpx2.Client, user: str, groups: list[str]) -> None:
        self._client, self._spec = client, {"user": user, "groups": groups}

    def may(self, right: Right, namespace: str = "", name: str = "") -> bool:
        """An empty namespace: in all of them."""
        group, resource, verb = right
        plural, _, sub = resource.partition("/")
        attributes = {"group": group, "resource": plural, "subresource": sub, "verb": verb}
        where = {"namespace": namespace, "name": name, "version": "*"}
        body: Object = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": self._spec | {"resourceAttributes": attributes | where},
        }
        answer = self._client.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()["status"].get("allowed") is True

    def all_of(self, rights: set[Right], namespace: str = "", name: str = "") -> set[Right]:
        """Those that it has."""
        return {one for one in rights if self.may(one, namespace, name)}


def _install(server: ApiServer, kinds: Kinds, objects: list[Object], namespace: str) -> None:
    for one in objects:
        if "rbac.authorization.k8s.io" in one["apiVersion"]:
            path = kinds.path(one, namespace).rpartition("/")[0]
            answer = server.client().post(path, json=one)
            assert answer.status_code == 201, answer.text


def _controller(server: ApiServer, namespace: str) -> Asked:
    account = f"system:serviceaccount:{namespace}:fathom-controller"
    asked = Asked(server.client(), account, ["system:serviceaccounts", "system:authenticated"])
    # the server learns of new roles by its own watch
    until(lambda: asked.may(("authentication.k8s.io", "tokenreviews", "create")))
    until(lambda: asked.may(("coordination.k8s.io", "leases", "create"), namespace))
    return asked


@pytest.fixture(scope="module")
def everywhere(operated: ApiServer, kinds: Kinds, helm: Helm) -> tuple[Asked, str]:
    """The controller of a whole cluster, and its namespace."""
    namespace = operated.namespace()
    values: dict[str, Any] = {"rbac": {"aggregate": False}}
    objects = [one for one in helm.rendered(values, namespace) if not _of_people(one)]
    _install(operated, kinds, objects, namespace)
    return _controller(operated, namespace), namespace


def _of_people(one: Object) -> bool:
    return str(one["metadata"]["name"]).endswith(("-viewer", "-editor", "-admin"))


def test_everywhere_it_may_what_it_does_and_nothing_else(operated: ApiServer, everywhere: tuple[Asked, str]) -> None:
    asked, _ = everywhere
    team = operated.namespace()
    until(lambda: asked.may(("", "pods", "list")))
    assert asked.all_of(EVERYTHING | IN_JOBS_NAMESPACES) == IN_JOBS_NAMESPACES | IN_THE_CLUSTER
    assert asked.all_of(SOME, team) == IN_JOBS_NAMESPACES | IN_THE_CLUSTER


def test_it_may_hold_its_own_lease_and_no_other(everywhere: tuple[Asked, str]) -> None:
    asked, home = everywhere
    assert asked.all_of(LEASE, home, "fathom-controller") == LEASE
    assert asked.all_of(LEASE, home, "kube-scheduler") == set()
    assert asked.all_of(AT_HOME, home) == AT_HOME
    assert asked.all_of(AT_HOME | LEASE, "kube-system", "kube-scheduler") == set()


def test_with_namespaces_it_may_nothing_elsewhere(operated: ApiServer, kinds: Kinds, helm: Helm) -> None:
    home, team, other = (operated.namespace() for _ in range(3))
    values: dict[str, Any] = {"rbac": {"aggregate": False}, "watchNamespaces": [team]}
    objects = [one for one in helm.rendered(values, home) if not _of_people(one)]
    _install(operated, kinds, objects, home)
    asked = _controller(operated, home)
    until(lambda: asked.may(("", "pods", "list"), team))
    assert asked.all_of(SOME, team) == IN_JOBS_NAMESPACES | IN_THE_CLUSTER
    assert asked.all_of(SOME, other) == IN_THE_CLUSTER
    assert asked.all_of(SOME) == IN_THE_CLUSTER


READS = set(_rights("fathom.dev", "trainingjobs", "get list watch"))
STATUS = set(_rights("fathom.dev", "trainingjobs/status", "get"))
WRITES = set(_rights("fathom.dev", "trainingjobs", "create update patch delete"))
CLEARS = set(_rights("fathom.dev", "trainingjobs", "deletecollection"))


@pytest.mark.parametrize(
    ("role", "rights"),
    [
        ("viewer", READS | STATUS),
        ("editor", READS | STATUS | WRITES),
        ("admin", READS | STATUS | WRITES | CLEARS),
    ],
)
def test_people_never_write_a_status(
    operated: ApiServer, kinds: Kinds, helm: Helm, role: str, rights: set[Right]
) -> None:
    namespace = operated.namespace()
    name = f"people-{namespace}-{role}"
    [found] = [one for one in helm.rendered({}, namespace) if one["metadata"]["name"] == f"fathom-{role}"]
    assert found["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{_KUBERNETES[role]}"] == "true"
    found["metadata"] = {"name": name}
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    binding = {"apiVersion": found["apiVersion"], "kind": "RoleBinding", "metadata": {"name": name}}
    _install(operated, kinds, [found, binding | {"roleRef": reference, "subjects": [user]}], namespace)
    asked = Asked(operated.client(), name, ["system:authenticated"])
    until(lambda: asked.may(("fathom.dev", "trainingjobs", "get"), namespace))
    assert asked.all_of(SOME, namespace) == rights


_KUBERNETES = {"viewer": "view", "editor": "edit", "admin": "admin"}
