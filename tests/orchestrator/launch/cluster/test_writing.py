"""Objects of attempts, made and cleared against a real API server."""

from __future__ import annotations

import pytest
from support import rendering
from support.apiserver import ApiServer
from support.kube_objects import PATIENT
from support.kube_stage import QUICK
from support.kuberay_player import Player

from orchestrator.errors import Conflict
from orchestrator.kube.again import Anybody
from orchestrator.kube.client import Kube
from orchestrator.kube.writes import Writer
from orchestrator.launch.cluster.writing import Objects, is_gated
from orchestrator.launch.rayjob import Rendered
from orchestrator.launch.resolve import JobRef

pytestmark = pytest.mark.kube

OTHER = "22222222-2222-2222-2222-222222222222"


@pytest.fixture
def objects(operated: ApiServer) -> Objects:
    kube = Kube.from_kubeconfig(operated.kubeconfig(), timeouts=PATIENT)
    return Objects(kube, Writer(kube, Anybody(), patience=QUICK))


def attempt(namespace: str, uid: str = rendering.UID, incarnation: str = "a1", **spec: object) -> Rendered:
    job = rendering.job("mini", namespace, **spec)
    ref = JobRef(namespace=namespace, name="mini", uid=uid)
    return rendering.rendered(job, resolved=rendering.resolved(job, job=ref, incarnation=incarnation))


def test_twice_is_the_same_as_once(objects: Objects, player: Player) -> None:
    rendered = attempt(player.namespace)
    first = objects.make(rendered)
    before = player.uids()
    assert objects.make(rendered)["metadata"]["uid"] == first["metadata"]["uid"]
    assert player.uids() == before


def test_a_rayjob_that_was_decided_otherwise_is_the_attempt_all_the_same(objects: Objects, player: Player) -> None:
    """An answer came so late that another controller has begun again."""
    first = objects.make(attempt(player.namespace))
    assert objects.make(attempt(player.namespace, incarnation="b2"))["metadata"]["uid"] == first["metadata"]["uid"]
    assert len(player.ray_jobs()) == 1


def test_what_is_another_jobs_stays(objects: Objects, player: Player) -> None:
    made = objects.make(attempt(player.namespace))
    before = player.uids()
    with pytest.raises(Conflict, match="of owner"):
        objects.make(attempt(player.namespace, uid=OTHER))
    objects.clear(player.namespace, "mini-a1", OTHER)
    objects.end(player.namespace, "mini-a1", OTHER)
    assert objects.find(player.namespace, "mini-a1", OTHER) is None
    assert player.uids() == before
    objects.end(player.namespace, "mini-a1", made["metadata"]["uid"])
    objects.clear(player.namespace, "mini-a1", rendering.UID)
    assert player.uids() == set()


def test_the_gate_is_taken_away_and_nothing_else(objects: Objects, player: Player) -> None:
    made = objects.make(attempt(player.namespace, queue={"name": "team-queue"}))
    assert is_gated(made)
    found = player.ray_job("mini-a1")
    assert not is_gated(found)
    assert found["metadata"]["annotations"] == {"ray.io/disable-provisioned-head-restart": "true"}
    objects.let_in(found)
    assert player.ray_job("mini-a1")["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]


def test_what_is_left_is_found_by_its_configmap(objects: Objects, player: Player) -> None:
    objects.make(attempt(player.namespace))
    [found] = list(objects.supported((player.namespace,)))
    assert found["metadata"]["name"] == "mini-a1"
    assert "mini-a1" in [one["metadata"]["name"] for one in objects.supported(())]
