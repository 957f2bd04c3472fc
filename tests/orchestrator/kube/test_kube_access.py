"""Who somebody is and what they may do: real tokens, real roles; whatever is not a plain yes is a no."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.apiserver import ApiServer
from support.kube_objects import PATIENT
from support.kube_proxy import Call, KubeProxy, Say

from orchestrator.errors import Forbidden, Unauthorized, Unavailable
from orchestrator.kube.access import Access, Person
from orchestrator.kube.client import Kube
from orchestrator.kube.remembered import Remembered
from orchestrator.kube.resources import TRAINING_JOBS, Target

kube_server = pytest.mark.kube
ACCOUNTS = Target("", "v1", "serviceaccounts", "ServiceAccount")
ROLES = Target("rbac.authorization.k8s.io", "v1", "roles", "Role")
BINDINGS = Target("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
AUDIENCE = "fathom"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Team:
    """A namespace with a service account that may read jobs there."""

    def __init__(self, server: ApiServer, kube: Kube, namespace: str) -> None:
        self.server, self.kube, self.namespace = server, kube, namespace
        self.account = f"system:serviceaccount:{namespace}:reader"
        kube.create(ACCOUNTS.at(namespace, "reader"), {"metadata": {"name": "reader"}})
        rule = {"apiGroups": ["fathom.dev"], "resources": ["trainingjobs"], "verbs": ["get"], "resourceNames": ["mine"]}
        kube.create(ROLES.at(namespace, "reader"), {"metadata": {"name": "reader"}, "rules": [rule]})
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
        subject = {"kind": "ServiceAccount", "name": "reader", "namespace": namespace}
        body = {"metadata": {"name": "reader"}, "roleRef": reference, "subjects": [subject]}
        kube.create(BINDINGS.at(namespace, "reader"), body)

    def token(self, *audiences: str) -> str:
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/reader/token"
        answer = self.server.client().post(path, json={"spec": {"audiences": list(audiences)}})
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["status"]["token"]
        return token

    def job(self, name: str = "mine") -> Target:
        return TRAINING_JOBS.at(self.namespace, name)


@pytest.fixture
def team(api_server: ApiServer, kube: Kube, namespace: str) -> Team:
    return Team(api_server, kube, namespace)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(through: Kube, clock: Clock) -> Access:
    return Access(through, clock=clock)


# ------------------------------------------------------------------ who
@kube_server
def test_a_token_for_us_says_who_it_is(access: Access, team: Team) -> None:
    person = access.who(team.token(AUDIENCE), AUDIENCE)
    assert person.name == team.account
    assert f"system:serviceaccounts:{team.namespace}" in person.groups
    assert person.uid


@kube_server
@pytest.mark.parametrize("audience", ["another", "https://kubernetes.default.svc", ""])
def test_a_token_for_somebody_else_does_not_count(access: Access, team: Team, audience: str) -> None:
    """One for the API server, too: whoever sends that to us has lost it."""
    token = team.token(*([audience] if audience else []))
    with pytest.raises(Unauthorized, match=r"does not take this token for 'fathom'.*--audience=fathom"):
        access.who(token, AUDIENCE)


@kube_server
def test_a_token_of_nobody(access: Access, team: Team, proxy: KubeProxy) -> None:
    good = team.token(AUDIENCE)
    head, body, signature = good.split(".")
    for bad in ("nonsense", good[:-4], f"{head}.{body}.{signature[::-1]}", f"{head}..{signature}"):
        with pytest.raises(Unauthorized):
            access.who(bad, AUDIENCE)
    asked = len(proxy.calls)
    for bad in ("", "a" * 20_000, "line\nbreak", "täken", "\0"):
        with pytest.raises(Unauthorized, match="empty, too long or no token"):
            access.who(bad, AUDIENCE)
    assert len(proxy.calls) == asked, "those are not even sent"


@kube_server
def test_an_account_that_is_gone_counts_no_longer(access: Access, team: Team, kube: Kube) -> None:
    token = team.token(AUDIENCE)
    kube.delete(ACCOUNTS.at(team.namespace, "reader"), {})
    with pytest.raises(Unauthorized):
        access.who(token, AUDIENCE)


# ------------------------------------------------------------------ what
@kube_server
def test_roles_say_what_may_be_done(access: Access, team: Team) -> None:
    person = access.who(team.token(AUDIENCE), AUDIENCE)
    access.require(person, "get", team.job())
    for verb, target in [
        ("delete", team.job()),
        ("get", team.job("another")),
        ("get", team.job().status),
        ("list", TRAINING_JOBS.at(team.namespace)),
        ("get", TRAINING_JOBS.at("default", "mine")),
        ("get", ACCOUNTS.at(team.namespace, "mine")),
    ]:
        with pytest.raises(Forbidden, match=f"{team.account} may not {verb} {target.kind}.*ask who runs the cluster"):
            access.require(person, verb, target)
    with pytest.raises(Forbidden):
        access.require(Person("nobody"), "get", team.job())
    access.require(Person("root", groups=("system:masters",)), "delete", team.job())


# ------------------------------------------------------------------ an outage is no denial
@kube_server
@pytest.mark.parametrize(
    "fault", ["cut before", "cut after", Say(500), Say(503), Say(429), Say(401), Say(403), Say(404)]
)
def test_nobody_is_refused_when_nobody_can_say(access: Access, team: Team, proxy: KubeProxy, fault: Any) -> None:  # noqa: ANN401
    token = team.token(AUDIENCE)
    proxy.plan = lambda call: fault
    with pytest.raises(Unavailable, match="cannot be asked for a TokenReview, nobody was refused"):
        access.who(token, AUDIENCE)
    with pytest.raises(Unavailable, match="cannot be asked for a SubjectAccessReview, nobody was refused"):
        access.require(Person(team.account), "get", team.job())
    proxy.plan = lambda call: "ok"
    person = access.who(token, AUDIENCE)
    access.require(person, "get", team.job())


@kube_server
def test_our_own_lack_of_rights_is_not_theirs(api_server: ApiServer, team: Team) -> None:
    powerless = Kube.from_kubeconfig(api_server.kubeconfig("stranger"), timeouts=PATIENT)
    with pytest.raises(Unavailable, match="cannot create resource"):
        Access(powerless).who(team.token(AUDIENCE), AUDIENCE)
    powerless.close()


def _user(**more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"authenticated": True, "audiences": [AUDIENCE], "user": {"username": "u"}} | more


@kube_server
@pytest.mark.parametrize(
    "status",
    [
        {},
        _user(authenticated=False),
        _user(authenticated="true"),
        _user(authenticated=1),
        _user(user=None),
        _user(user={}),
        _user(user={"username": ""}),
        _user(audiences=None),
        _user(audiences=[]),
        _user(audiences=["another"]),
    ],
)
def test_half_a_yes_is_a_no(access: Access, proxy: KubeProxy, status: dict[str, Any]) -> None:
    proxy.plan = lambda call: Say(201, body=json.dumps({"status": status}).encode())
    with pytest.raises(Unauthorized):
        access.who("token", AUDIENCE)


@kube_server
@pytest.mark.parametrize(
    "status", [{}, {"allowed": False}, {"allowed": True, "denied": True}, {"allowed": "true"}, {"allowed": 1}]
)
def test_half_a_right_is_none(access: Access, proxy: KubeProxy, status: dict[str, Any]) -> None:
    proxy.plan = lambda call: Say(201, body=json.dumps({"status": status}).encode())
    with pytest.raises(Forbidden):
        access.require(Person("u"), "get", TRAINING_JOBS.at("a", "b"))


@kube_server
@pytest.mark.parametrize("body", [b"{}", b'{"status": null}', b'{"status": []}', b"[]", b"x"])
def test_no_status_is_an_outage(access: Access, proxy: KubeProxy, body: bytes) -> None:
    proxy.plan = lambda call: Say(201, body=body)
    with pytest.raises(Unavailable):
        access.who("token", AUDIENCE)
    with pytest.raises(Unavailable):
        access.require(Person("u"), "get", TRAINING_JOBS.at("a", "b"))


# ------------------------------------------------------------------ what is remembered
def reviews(calls: list[Call]) -> int:
    return sum(call.method == "POST" for call in calls)


@kube_server
def test_a_yes_holds_longer_than_a_no(access: Access, team: Team, proxy: KubeProxy, clock: Clock) -> None:
    token = team.token(AUDIENCE)

    def ask() -> None:
        person = access.who(token, AUDIENCE)
        access.require(person, "get", team.job())
        with pytest.raises(Unauthorized):
            access.who("nonsense", AUDIENCE)
        with pytest.raises(Forbidden):
            access.require(person, "delete", team.job())

    ask()
    assert reviews(proxy.calls) == 4
    clock.now = 1.9
    ask()
    assert reviews(proxy.calls) == 4
    clock.now = 2.0
    ask()
    assert reviews(proxy.calls) == 6, "the denials are asked for again"
    clock.now = 10.0
    ask()
    assert reviews(proxy.calls) == 10
    with pytest.raises(Unauthorized):
        access.who(token, "another")


@kube_server
def test_a_flood_of_bad_tokens_pushes_no_good_one_out(
    access: Access, team: Team, proxy: KubeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = team.token(AUDIENCE)
    access.who(token, AUDIENCE)
    access._strangers._most = 4
    for number in range(10):
        with pytest.raises(Unauthorized):
            access.who(f"bad-{number}", AUDIENCE)
    assert len(access._strangers) == 4
    asked = reviews(proxy.calls)
    access.who(token, AUDIENCE)
    assert reviews(proxy.calls) == asked
    assert token not in repr(vars(access._people)), "no token is kept"


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 3)), max_size=60))
def test_what_is_remembered_is_bounded_in_number_and_age(steps: list[tuple[int, float]]) -> None:
    clock = Clock()
    kept: Remembered[float] = Remembered(5.0, 3, clock)
    for key, seconds in steps:
        clock.now += seconds
        found = kept.get(key)
        if found is None:
            kept.put(key, clock.now, clock.now)
        else:
            assert clock.now - found < 5.0
        assert len(kept) <= 3
