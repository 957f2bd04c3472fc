"""Requests to a real API server: what comes back, and which error of ours each refusal is."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from support.apiserver import ApiServer
from support.kube_objects import CONFIG_MAPS, PATIENT, config_map
from support.kube_proxy import KubeProxy, Say

from orchestrator.errors import (
    Conflict,
    FathomError,
    Forbidden,
    InvalidJob,
    NotFound,
    RateLimited,
    Unauthorized,
    Unavailable,
    UsageError,
)
from orchestrator.kube.client import Kube, Timeouts
from orchestrator.kube.problems import Gone, TryLater, refusal, wait_asked
from orchestrator.kube.resources import TRAINING_JOBS, Target, key_of

kube_server = pytest.mark.kube


# ------------------------------------------------------------------ addresses
def test_addresses_are_those_of_the_api() -> None:
    target = TRAINING_JOBS.at("team-a", "v3")
    assert target.path == "/apis/fathom.dev/v1alpha1/namespaces/team-a/trainingjobs/v3"
    assert target.status.path == f"{target.path}/status"
    assert target.status.collection.path == "/apis/fathom.dev/v1alpha1/namespaces/team-a/trainingjobs"
    assert TRAINING_JOBS.path == "/apis/fathom.dev/v1alpha1/trainingjobs"
    assert CONFIG_MAPS.at("a", "b").path == "/api/v1/namespaces/a/configmaps/b"
    assert str(target) == "TrainingJob team-a/v3"


@pytest.mark.parametrize("bad", ["..", ".", "a/b", "a?x=1", "a%2fb", "", " ", "a\n", "a" * 254, "ü"])
def test_no_name_leads_elsewhere(bad: str) -> None:
    if bad == "":
        assert CONFIG_MAPS.at("a", bad).path == "/api/v1/namespaces/a/configmaps"
        return
    for target in (CONFIG_MAPS.at("a", bad), CONFIG_MAPS.at(bad, "a")):
        with pytest.raises(UsageError, match="cannot be a name"):
            _ = target.path


def test_the_kind_is_that_of_the_definition() -> None:
    from orchestrator.crd.definition import definition

    spec = definition()["spec"]
    assert (spec["group"], spec["versions"][0]["name"]) == (TRAINING_JOBS.group, TRAINING_JOBS.version)
    assert (spec["names"]["plural"], spec["names"]["kind"]) == (TRAINING_JOBS.plural, TRAINING_JOBS.kind)


# ------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, UsageError),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (405, UsageError),
        (409, Conflict),
        (410, Gone),
        (413, UsageError),
        (422, InvalidJob),
        (429, RateLimited),
        (500, Unavailable),
        (503, Unavailable),
        (302, Unavailable),
    ],
)
def test_each_code_is_an_error_of_ours(status: int, kind: type[FathomError]) -> None:
    error = refusal("create Pod a/b", status, {}, '{"kind": "Status", "message": "server\'s words"}')
    assert type(error) is kind
    assert "create Pod a/b" in str(error)
    assert "server's words" in str(error)


@pytest.mark.parametrize("body", [None, "", "<html>\n  bad gateway</html>", "[]", "null", '{"message": 7}', "{"])
def test_an_answer_that_is_no_status_is_told_too(body: str | None) -> None:
    error = refusal("get Pod a/b", 502, {}, body)
    assert type(error) is Unavailable
    assert "get Pod a/b" in str(error)
    assert "502" in str(error)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0", 0), ("-1", 1), ("nan", 1), ("inf", 1), ("Wed, 21 Oct 2026 07:28:00 GMT", 1), ("1e9", 300)],
)
def test_what_the_server_asks_to_wait(header: str, seconds: float) -> None:
    assert wait_asked(refusal("get X", 429, {"Retry-After": header}, None)) == seconds


def test_a_server_in_trouble_may_ask_to_wait_too() -> None:
    error = refusal("get X", 503, {}, '{"details": {"retryAfterSeconds": 4}}')
    assert type(error) is TryLater
    assert wait_asked(error) == 4
    assert wait_asked(refusal("get X", 503, {}, None)) == 0


def test_what_is_invalid_is_told_field_by_field() -> None:
    body = '{"details": {"causes": [{"field": "spec.x", "message": "too small"}, {"field": "y", "message": "no"}, 3]}}'
    error = refusal("create X", 422, {}, body)
    assert str(error) == "spec.x: too small\ny: no"


# ------------------------------------------------------------------ the server
@kube_server
def test_what_is_written_is_read(kube: Kube, namespace: str) -> None:
    target = CONFIG_MAPS.at(namespace, "one")
    made = kube.create(target, config_map(namespace, "one", a="1"))
    assert key_of(made) == f"{namespace}/one"
    assert kube.get(target)["data"] == {"a": "1"}
    assert kube.patch(target, {"data": {"b": "2"}}, "merge")["data"] == {"a": "1", "b": "2"}
    names = [one["metadata"]["name"] for one in kube.get(CONFIG_MAPS.at(namespace))["items"]]
    assert names == ["one"]
    kube.delete(target, {})
    with pytest.raises(NotFound, match=f"get ConfigMap {namespace}/one: .*not found"):
        kube.get(target)


@kube_server
def test_refusals_say_what_and_where(kube: Kube, api_server: ApiServer, namespace: str) -> None:
    target = CONFIG_MAPS.at(namespace, "one")
    made = kube.create(target, config_map(namespace, "one"))
    with pytest.raises(Conflict, match=f"create ConfigMap {namespace}/one: .*already exists"):
        kube.create(target, config_map(namespace, "one"))
    old = made | {"metadata": made["metadata"] | {"resourceVersion": "1"}}
    with pytest.raises(Conflict, match=r"update ConfigMap .*modified"):
        kube.replace(target, old)
    with pytest.raises(InvalidJob, match=r"metadata\.name"):
        kube.create(CONFIG_MAPS.at(namespace, "UPPER"), config_map(namespace, "UPPER"))
    stranger = Kube.from_kubeconfig(api_server.kubeconfig("stranger"), timeouts=PATIENT)
    with pytest.raises(Forbidden, match=f"list ConfigMap {namespace}: .*cannot list"):
        stranger.get(CONFIG_MAPS.at(namespace))
    stranger.close()


# ------------------------------------------------------------------ ways to one
@kube_server
def test_a_token_that_was_changed_is_read_again(api_server: ApiServer, namespace: str, tmp_path: Path) -> None:
    """The package does that by the wall clock, once a minute; here within that minute."""
    token = tmp_path / "token"
    token.write_text("an old one")
    host, port = api_server.url.removeprefix("https://").split(":")
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    kube = Kube.in_cluster(token=token, certificate=api_server.ca, environ=environ)
    with pytest.raises(Unauthorized):
        kube.get(CONFIG_MAPS.at(namespace))
    token.write_text(api_server.tokens["admin"])
    with pytest.raises(Unauthorized):  # it is read after this refusal
        kube.get(CONFIG_MAPS.at(namespace))
    assert kube.get(CONFIG_MAPS.at(namespace))["items"] == []
    kube.close()


def test_outside_of_a_pod_that_is_said() -> None:
    with pytest.raises(UsageError, match=r"not a pod.*give a kubeconfig"):
        Kube.in_cluster(environ={})


@pytest.mark.parametrize("content", [None, "", "[]", "{", "a: [", "kind: Config", "contexts: 3", "current-context: x"])
def test_a_kubeconfig_of_no_use_is_said(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"kubeconfig in .*cannot be used"):
        Kube.from_kubeconfig(path)


@kube_server
def test_a_context_that_is_not_there_is_said(api_server: ApiServer) -> None:
    with pytest.raises(UsageError, match="context 'nope'"):
        Kube.from_kubeconfig(api_server.kubeconfig(), "nope")


# ------------------------------------------------------------------ bad lines
@kube_server
def test_a_server_that_says_nothing_is_left(through: Kube, proxy: KubeProxy, namespace: str) -> None:
    proxy.plan = lambda call: "hold"
    with pytest.raises(Unavailable, match="no answer"):
        through.get(CONFIG_MAPS.at(namespace), timeouts=Timeouts(60, 0.2))
    assert len(proxy.calls) == 1, "nothing is repeated beneath"


@kube_server
@pytest.mark.parametrize("fault", ["cut before", "cut after"])
def test_a_cut_is_unavailable_and_not_repeated(through: Kube, proxy: KubeProxy, namespace: str, fault: Any) -> None:  # noqa: ANN401
    proxy.plan = lambda call: fault
    with pytest.raises(Unavailable, match=f"create ConfigMap {namespace}/one: no answer"):
        through.create(CONFIG_MAPS.at(namespace, "one"), config_map(namespace, "one"))
    assert len(proxy.calls) == 1


@kube_server
@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"x"', b"", b"{"])
def test_an_answer_that_is_no_object(through: Kube, proxy: KubeProxy, namespace: str, body: bytes) -> None:
    proxy.plan = lambda call: Say(200, body=body)
    with pytest.raises(Unavailable, match="is this an API server"):
        through.get(CONFIG_MAPS.at(namespace))


@kube_server
def test_no_redirect_gets_our_token(through: Kube, proxy: KubeProxy, namespace: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.3)
        proxy.plan = lambda call: Say(302, headers=(("Location", f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"),))
        with pytest.raises(Unavailable, match="302"):
            through.get(CONFIG_MAPS.at(namespace))
        with pytest.raises(TimeoutError):
            elsewhere.accept()


def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    config = tmp_path / "config"
    config.write_text(
        f'{{"clusters": [{{"name": "a", "cluster": {{"server": "http://127.0.0.1:{port}"}}}}], "users": '
        '[{"name": "a", "user": {"token": "t"}}], "contexts": [{"name": "a", "context": '
        '{"cluster": "a", "user": "a"}}], "current-context": "a"}'
    )
    with pytest.raises(Unavailable, match="get ConfigMap a/b: no answer"):
        Kube.from_kubeconfig(config).get(CONFIG_MAPS.at("a", "b"))


@kube_server
def test_threads_share_one(kube: Kube, namespace: str) -> None:
    target = CONFIG_MAPS.at(namespace, "one")
    kube.create(target, config_map(namespace, "one"))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(key_of(kube.get(target)))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [f"{namespace}/one"] * 40


def test_targets_are_values() -> None:
    assert Target("", "v1", "pods", "Pod").at("a") == Target("", "v1", "pods", "Pod", "a")
