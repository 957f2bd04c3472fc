"""`fathom controller` against a real API server: it leads, takes jobs of those who may, and ends in order."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.apiserver import ApiServer
from support.cli import command
from support.controller_process import ControllerProcess
from support.kube_people import READS, RUNS, KubePeople
from support.runs import event
from support.shooting import wait_until
from support.store import small_document

from orchestrator.client import Client
from orchestrator.errors import Forbidden, Unauthorized, UsageError
from orchestrator.jobfile import make_job
from orchestrator.kube.lease import EXIT_LOST
from orchestrator.launch.delivery import PATH, Delivery
from orchestrator.launch.rayjob.agreed import ATTEMPT, JOB_UID
from orchestrator.status import Phase

Start = Callable[..., ControllerProcess]


@pytest.fixture
def start(operated: ApiServer, trainingjobs: dict[str, Any], namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Replicas with one home."""
    made: list[ControllerProcess] = []

    def one(name: str = "one", **options: str) -> ControllerProcess:
        made.append(ControllerProcess(operated, tmp_path, namespace, name, **options))
        return made[-1]

    yield one
    for process in made:
        process.kill()


def cluster_job(namespace: str) -> dict[str, Any]:
    data = {"source": "pvc://data/corpus", "sequenceLength": 32}
    return {"job": small_document("mini", namespace, data=data, checkpoint={"uri": "pvc://runs/mini"})}


@pytest.mark.kube
def test_who_may_runs_jobs_and_pods_deliver(api_server: ApiServer, namespace: str, start: Start) -> None:
    people = KubePeople(api_server)
    tokens = {}
    for name, verbs in {"runner": RUNS, "reader": READS, "stranger": ()}.items():
        people.account(namespace, name, verbs)
        tokens[name] = people.token(namespace, name, "fathom")
    controller = start()
    controller.wait_ready()
    one = f"/v1/jobs/{namespace}/mini"
    assert controller.ask("POST", "/v1/jobs", tokens["reader"], cluster_job(namespace)).status_code == 403
    made = controller.ask("POST", "/v1/jobs", tokens["runner"], cluster_job(namespace))
    assert made.status_code == 201, made.text
    kube, uid = api_server.client(), made.json()["metadata"]["uid"]
    resource = f"/apis/fathom.dev/v1alpha1/namespaces/{namespace}/trainingjobs/mini"

    def accepted() -> bool:
        found = kube.get(resource).json()
        conditions = found.get("status", {}).get("conditions", [])
        return {"Accepted": "True"} in [{one["type"]: one["status"]} for one in conditions]

    wait_until(accepted, lambda: kube.get(resource).text + controller.log())
    assert kube.get(resource).json()["metadata"]["uid"] == uid
    ray_job = f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs/mini-a1"
    wait_until(lambda: kube.get(ray_job).status_code == 200, lambda: kube.get(resource).text + controller.log())
    assert controller.ask("GET", one, tokens["reader"]).status_code == 200
    assert controller.ask("DELETE", one, tokens["reader"]).status_code == 403
    for path in (one, f"{one}/logs", f"/v1/jobs?namespace={namespace}"):
        assert controller.ask("GET", path, tokens["stranger"]).status_code == 404
    assert controller.ask("GET", "/v1/jobs", tokens["runner"]).status_code == 403, "not in all namespaces"

    labels = {JOB_UID: uid, ATTEMPT: "1", "ray.io/cluster": "mini-a1-abcde"}
    pod = people.pod(namespace, "mini-a1-head", "mini-a1", **labels)
    told = event("warning", 1.0, seq=1, job=uid, incarnation="mini-a1-abcde", message="it works")
    delivery = Delivery(
        namespace=namespace, name="mini", job=uid, attempt=1, incarnation="mini-a1-abcde", events=(told,), log="hello\n"
    )
    token = people.token(namespace, "mini-a1", "fathom-controller", pod=pod)
    body = delivery.model_dump(mode="json", by_alias=True)
    receipt = controller.ask("POST", PATH, token, body)
    assert receipt.status_code == 401, "a proxy's header is for people"
    headers = {"Authorization": f"Bearer {token}"}
    receipt = httpx2.post(controller.url + PATH, headers=headers, json=body, trust_env=False)
    assert receipt.json()["seq"] == 1, receipt.text
    assert controller.ask("GET", f"{one}/logs", tokens["reader"]).text == "hello\n"

    assert controller.end() == 0
    lease = kube.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/lease").json()
    assert lease["spec"].get("holderIdentity", "") == "", "it was given back"
    assert kube.get(ray_job).status_code == 200, "trainings go on"


@pytest.mark.kube
def test_one_leads_and_the_other_stands_by(api_server: ApiServer, namespace: str, start: Start) -> None:
    first = start("first")
    first.wait_ready()
    second = start("second")
    assert second.ask("GET", "/livez").text == "ok\n"
    waits = second.ask("GET", "/readyz")
    assert (waits.status_code, waits.text) == (503, "not ready: standby\n")
    refused = second.ask("GET", "/v1/jobs", "token")
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert first.end() == 0
    second.wait_ready()
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/lease"
    change = {"spec": {"holderIdentity": "somebody else"}}
    headers = {"Content-Type": "application/merge-patch+json"}
    assert api_server.client().patch(lease, json=change, headers=headers).status_code == 200
    assert second.process.wait(240) == EXIT_LOST


def own_address() -> str:
    """Of this machine, beside loopback, where the API server leads nobody. Nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


@pytest.mark.kube
def test_people_come_through_the_api_server(
    api_server: ApiServer, namespace: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    people, address = KubePeople(api_server), own_address()
    people.account(namespace, "runner", RUNS)
    controller = start(host=address)
    people.service(namespace, "fathom-controller", 8080, address, controller.port)
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig()))
    monkeypatch.setenv("FATHOM_SERVICE", f"{namespace}/http:fathom-controller:8080")
    with pytest.raises(UsageError, match="FATHOM_ACCOUNT"):
        Client(context="test")
    monkeypatch.setenv("FATHOM_ACCOUNT", f"{namespace}/runner")
    wait_until(lambda: "leads" in controller.log(), controller.log)
    with Client(context="test") as client:
        assert client.me().name == f"system:serviceaccount:{namespace}:runner"
        made = client.apply(make_job(cluster_job(namespace)["job"]))
        assert client.get(made).team == namespace
        assert [job.name for job in client.list(team=namespace)] == ["mini"]
        client.cancel(made)
        assert client.wait(made, [Phase.CANCELLED]).phase is Phase.CANCELLED
        with pytest.raises(Forbidden, match="all namespaces"):
            list(client.list())
    monkeypatch.setenv("FATHOM_TOKEN", "nonsense")
    with Client(context="test") as client, pytest.raises(Unauthorized, match="--audience="):
        client.me()


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ("images: {train: 5}", (), "images.train"),
        ("[", (), "cannot be used as cluster settings"),
        ("{}", ("--audience", "fathom-controller"), "tokenAudience"),
        ("{}", ("--tls-cert", "x"), "belong together"),
        ("{}", ("--tls-cert", "x", "--tls-key", "y"), "no certificate"),
        ("{}", (), "give --lease-namespace"),
        ("{}", ("--lease-namespace", "a"), "not a pod"),
        (None, (), "No such file"),
    ],
)
def test_what_cannot_be_is_told_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: str | None,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    for name in ("POD_NAMESPACE", "KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path / "home"))
    file = tmp_path / "cluster.yaml"
    if settings is not None:
        file.write_text(settings)
    place = () if words.startswith("give") or "--lease-namespace" in arguments else ("--lease-namespace", "a")
    code, _, err = command("controller", monkeypatch, capsys)("--cluster-settings", file, *arguments, *place)
    assert (code, words in err) == (2, True), err
