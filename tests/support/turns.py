"""Several jobs under one controller: what their drivers do, its turns, and what stands in the store then."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.controller.service import Controller
from orchestrator.spec import Budget, TrainingJob
from orchestrator.status import Condition, ConditionType, JobStatus, Phase
from orchestrator.store.base import StoredJob
from support.launcher import Attempt, Stage


def works(attempt: Attempt) -> Iterator[object]:
    attempt.start(0)
    yield 1
    attempt.train(8)
    attempt.save(8)
    yield 1
    attempt.end("succeeded")


def turns(stage: Stage, controller: Controller, number: int = 12) -> None:
    for _ in range(number):
        controller.turn()
        stage.clock.sleep(0.5)


def phase(stage: Stage, job: StoredJob | None = None) -> Phase:
    found = stage.store.by_uid((job or stage.job).uid)
    assert found is not None
    return found.status.phase


def condition(status: JobStatus, kind: ConditionType) -> Condition:
    found = status.condition(kind)
    assert found is not None
    return found


def another(stage: Stage, name: str, **compute: object) -> StoredJob:
    job = stage.job.wish.job
    metadata = job.metadata.model_copy(update={"name": name})
    spec = job.spec.model_copy(update={"compute": job.spec.compute.model_copy(update=compute)})
    return stage.store.create(job.model_copy(update={"metadata": metadata, "spec": spec}), by="test")


def limited(job: TrainingJob, limit: str) -> TrainingJob:
    return job.model_copy(update={"spec": job.spec.model_copy(update={"budget": Budget(limit=limit)})})
