"""The controller over TrainingJobs of a real API server; drivers and clock are the test's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.kube_jobs import KubeJobs
from support.kube_objects import until
from support.kube_store import serving
from support.launcher import Stage, obeys, with_suspend
from support.runs import dataset, tiny_job
from support.turns import condition, phase, turns, works

from orchestrator.kube.client import Kube
from orchestrator.status import ConditionType, Phase, Reason
from orchestrator.store.resource import FINALIZER

pytestmark = pytest.mark.kube


@pytest.fixture
def stage(kube: Kube, kube_jobs: KubeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    job = tiny_job(str(dataset(tmp_path / "data")))
    metadata = job.metadata.model_copy(update={"namespace": kube_jobs.namespace})
    with serving(kube, [kube_jobs.namespace]) as store:
        yield Stage(tmp_path, monkeypatch, job.model_copy(update={"metadata": metadata}), store)


def test_jobs_of_the_api_and_of_people_are_run(stage: Stage, kube_jobs: KubeJobs) -> None:
    stage.stories += [works, works]
    document = stage.job.wish.job.document()
    kube_jobs.create({"metadata": {"name": "second"}, "spec": document["spec"]})
    until(lambda: len(stage.store.open_jobs()) == 2)
    controller = stage.controller(only=False)
    turns(stage, controller)
    for name in (stage.job.name, "second"):
        found = kube_jobs.get(name)
        assert found["status"]["phase"] == "Succeeded"
        assert found["status"]["observedGeneration"] == found["metadata"]["generation"] == 1
        assert found["metadata"]["finalizers"] == [FINALIZER]
    assert stage.store.open_jobs() == ()
    versions = [kube_jobs.get(name)["metadata"]["resourceVersion"] for name in (stage.job.name, "second")]
    turns(stage, controller)
    now = [kube_jobs.get(name)["metadata"]["resourceVersion"] for name in (stage.job.name, "second")]
    assert now == versions, "nothing more is written of what has ended"
    controller.close()


def test_suspend_resume_cancel(stage: Stage, kube: Kube, kube_jobs: KubeJobs) -> None:
    stage.stories += [obeys, obeys]
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert phase(stage) is Phase.RUNNING
    stage.wish(lambda wish: with_suspend(wish, suspend=True))
    turns(stage, controller)
    assert condition(stage.stored().status, ConditionType.RUNNING).reason is Reason.SUSPENDED
    controller.close()
    with serving(kube, [kube_jobs.namespace]) as another:  # the next leader
        stage.store = another
        controller = stage.controller(only=False)
        stage.grant()
        turns(stage, controller)
        assert phase(stage) is Phase.RUNNING
        assert stage.stored().status.observed_generation == stage.stored().generation
        stage.wish(lambda wish: replace(wish, cancelled_at=datetime.now(UTC)))
        turns(stage, controller)
        assert phase(stage) is Phase.CANCELLED
        resource = kube_jobs.get(stage.job.name)
        assert resource["status"]["observedGeneration"] == resource["metadata"]["generation"]
        controller.close()


def test_a_job_that_a_person_deletes_saves_and_is_gone(stage: Stage, kube_jobs: KubeJobs) -> None:
    stage.stories.append(obeys)
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert kube_jobs.delete(stage.job.name).status_code == 200
    until(lambda: stage.stored().wish.deleted_at)
    assert kube_jobs.get(stage.job.name)["status"]["phase"] == "Running", "it is held while it saves"
    turns(stage, controller)
    assert stage.killed == [], "it had its time"
    assert kube_jobs.get(stage.job.name)["code"] == 404
    assert stage.launcher.removed == [stage.job.folder]
    assert stage.store.by_uid(stage.job.uid) is None
    controller.close()


def test_a_job_that_was_refused_is_mended_in_place(stage: Stage, kube_jobs: KubeJobs) -> None:
    """As `kubectl apply` of a better file does it; whoever only cancels it changes nothing."""
    stage.stories += [works, works]
    spec = stage.job.wish.job.document()["spec"]
    for name in ("mended", "given-up"):
        kube_jobs.create({"metadata": {"name": name}, "spec": spec | {"data": spec["data"] | {"source": "/nowhere"}}})
    until(lambda: len(stage.store.open_jobs()) == 3)
    controller = stage.controller(only=False)
    turns(stage, controller)
    for name in ("mended", "given-up"):
        found = kube_jobs.get(name)["status"]
        assert (found["phase"], found["conditions"][0]["reason"]) == ("Failed", "DataMissing")
    assert kube_jobs.patch("mended", {"spec": {"data": {"source": spec["data"]["source"]}}}).status_code == 200
    namespace = kube_jobs.namespace
    stage.store.change(namespace, "given-up", lambda wish: replace(wish, cancelled_at=datetime.now(UTC)))
    until(lambda: len(stage.store.open_jobs()) == 2)
    turns(stage, controller)
    assert [kube_jobs.get(name)["status"]["phase"] for name in ("mended", "given-up")] == ["Succeeded", "Failed"]
    assert stage.store.open_jobs() == ()
    controller.close()
