"""Two whole controllers with one Lease, one home and one API server: one of them works at any time, whatever becomes of
the other; and nothing is done twice."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.apiserver import ApiServer
from support.controller_process import ControllerProcess
from support.kube_driver import KubeDriver
from support.kube_proxy import Call, Fault, KubeProxy
from support.kuberay_player import Player
from support.shooting import wait_until
from support.store import small_document

from orchestrator.launch.events import Ended, read

pytestmark = [pytest.mark.kube, pytest.mark.timeout(600)]


class Replica:
    """A controller that reaches the API server by a way of its own, where its writes are counted."""

    def __init__(self, proxy: KubeProxy, server: ApiServer, folder: Path, namespace: str, name: str) -> None:
        self.proxy = proxy
        ways = folder / name
        ways.mkdir()
        self.process = ControllerProcess(server, folder, namespace, name, kubeconfig=proxy.kubeconfig(server, ways))

    @property
    def writes(self) -> list[str]:
        """Without those of the Lease, which whoever stands by may try to take, and without questions about tokens."""
        changes = [one for one in list(self.proxy.calls) if one.writes and not one.path.endswith("reviews")]
        return [f"{one.method} {one.path}" for one in changes if "/leases" not in one.path]


class Cluster:
    """A namespace with one TrainingJob, and replicas."""

    def __init__(self, server: ApiServer, player: Player, start: Callable[[str], Replica]) -> None:
        self.server, self.player = server, player
        self.first, self.second = start("first"), start("second")
        self.first.process.wait_ready()
        data = {"source": "pvc://data/corpus", "sequenceLength": 32}
        body = small_document("mini", player.namespace, data=data, checkpoint={"uri": "pvc://runs/mini"})
        body |= {"apiVersion": "fathom.dev/v1alpha1", "kind": "TrainingJob"}
        answer = server.client().post(self._path(""), json=body)
        assert answer.status_code == 201, answer.text
        self.job = answer.json()["metadata"]

    def _path(self, name: str) -> str:
        return f"/apis/fathom.dev/v1alpha1/namespaces/{self.player.namespace}/trainingjobs{name}"

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.client().get(self._path("/mini")).json().get("status") or {}
        return found

    def why(self) -> str:
        return f"{self.status}\n{self.first.process.log()}\n{self.second.process.log()}"

    def until(self, true: Callable[[], object]) -> None:
        wait_until(true, self.why)

    def until_made(self, attempt: int) -> None:
        self.until(lambda: f"mini-a{attempt}" in [one["metadata"]["name"] for one in self.player.ray_jobs()])

    def trains(self, attempt: int, by: Replica) -> KubeDriver:
        """Its pods run, and its driver has begun; -> that."""
        self.until_made(attempt)
        cluster = self.player.runs(f"mini-a{attempt}")
        driver = KubeDriver(self.server, self.job, attempt, cluster)
        begun = {"step": 0, "tokens": 0, "world_size": 2}
        self.until(lambda: driver.tells(by.process, "started", **begun).status_code == 200)
        self.until(lambda: self.status.get("phase") == "Running" and self.status["attemptCount"] == attempt)
        return driver

    def ends_well(self, driver: KubeDriver, attempts: int, by: Replica) -> None:
        """The newest attempt does, and everything is cleaned up; there never was more than one RayJob of each."""
        told = driver.tells(by.process, "ended", outcome="succeeded")
        assert told.status_code == 200, told.text
        self.player.ends(f"mini-a{attempts}", "SUCCEEDED")
        self.until(lambda: self.status.get("phase") == "Succeeded")
        self.until(lambda: not self.player.ray_jobs() and not self.player.pods() and not self.player.supporting())
        names = {f"mini-a{number}" for number in range(1, attempts + 1)}
        assert {name: len(uids) for name, uids in self.player.made.items()} == dict.fromkeys(names, 1)
        assert self.status["attemptCount"] == attempts
        [folder] = [path.parent.parent for path in self.first.process.home.rglob("events.jsonl")]
        ends = [one.attempt for one in read(folder / "events" / "events.jsonl")[0] if isinstance(one, Ended)]
        assert ends == list(range(1, attempts + 1))


@pytest.fixture
def cluster(operated: ApiServer, trainingjobs: dict[str, Any], tmp_path: Path) -> Iterator[Cluster]:
    namespace = operated.namespace()
    with ExitStack() as held:
        player = held.enter_context(Player(operated.client(), namespace).playing())

        def start(name: str) -> Replica:
            proxy = held.enter_context(KubeProxy(operated).serving())
            replica = Replica(proxy, operated, tmp_path, namespace, name)
            held.callback(replica.process.kill)
            return replica

        yield Cluster(operated, player, start)


def test_one_that_is_killed_is_followed_by_the_other(cluster: Cluster) -> None:
    first, second = cluster.first, cluster.second
    driver = cluster.trains(1, by=first)
    assert second.process.ask("GET", "/readyz").status_code == 503
    assert second.writes == []
    first.process.kill()
    second.process.wait_ready()
    cluster.ends_well(driver, 1, by=second)
    assert not [write for write in second.writes if write.startswith("POST")], "all was there"


def test_one_that_is_paused_never_comes_back(cluster: Cluster) -> None:
    """In the middle of making an attempt: the API server has the RayJob, and the answer is on its way."""
    first, second = cluster.first, cluster.second
    cluster.trains(1, by=first)
    made: list[Call] = []

    def plan(call: Call) -> Fault:
        if call.method == "POST" and call.path.endswith("/rayjobs"):
            made.append(call)
            return "hold"
        return "ok"

    first.proxy.plan = plan
    cluster.player.ends("mini-a1", "RUNNING", "SubmissionFailed", "Job submission has failed.")
    cluster.until(lambda: made)
    cluster.until_made(2)
    first.process.process.send_signal(signal.SIGSTOP)
    second.process.wait_ready()
    assert first.process.process.wait(1) == -signal.SIGKILL, "it died of its timer, and left the locks of the home"
    before = first.writes
    first.proxy.go_on.set()
    driver = cluster.trains(2, by=second)
    cluster.ends_well(driver, 2, by=second)
    assert first.writes == before
    assert before.count(f"{made[0].method} {made[0].path}") == 2, "one for each attempt"
