"""Whatever is asked of a job store, and in whichever order: TrainingJobs and the file of one machine say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.apiserver import ApiServer
from support.kube_store import serving
from support.store import small_job, suspended

from orchestrator.errors import FathomError
from orchestrator.kube.client import Kube
from orchestrator.status import Condition, ConditionType, JobStatus, Phase, Reason
from orchestrator.store.base import JobStore, Query, StoredJob, Wish
from orchestrator.store.sqlite import SqliteStore

pytestmark = pytest.mark.kube
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
_FILES = count()


def resumed(wish: Wish) -> Wish:
    spec = wish.job.spec.model_copy(update={"suspend": False})
    job = wish.job.model_copy(update={"spec": spec})
    return replace(wish, job=job, resumed=wish.resumed + 1, granted_after=wish.granted_after + 2)


def tagged(wish: Wish) -> Wish:
    tags = {"a": str(len(wish.job.spec.tracking.tags)), "b": "1"} if wish.resumed else {}
    tracking = wish.job.spec.tracking.model_copy(update={"tags": tags})
    return replace(
        wish, job=wish.job.model_copy(update={"spec": wish.job.spec.model_copy(update={"tracking": tracking})})
    )


EDITS: dict[str, Callable[[Wish], Wish]] = {
    "suspend": suspended,
    "resume": resumed,
    "tag": tagged,
    "cancel": lambda wish: replace(wish, cancelled_at=wish.cancelled_at or NOON),
    "hurry": lambda wish: replace(suspended(wish), force=True, cancelled_at=wish.cancelled_at or NOON),
    "delete": lambda wish: replace(wish, deleted_at=wish.deleted_at or NOON),
    "delete, keeping files": lambda wish: replace(wish, deleted_at=wish.deleted_at or NOON, keep_files=True),
    "nothing": lambda wish: wish,
}


@dataclass
class Side:
    """One store, and what somebody remembers of it."""

    store: JobStore
    team: str
    read: dict[str, StoredJob] = field(default_factory=dict)

    def act(self, step: tuple[str, str, Any]) -> str:
        """-> what came of it."""
        what, name, more = step
        try:
            return self._act(what, name, more)
        except FathomError as error:
            return type(error).__name__

    def _act(self, what: str, name: str, more: Any) -> str:  # noqa: ANN401
        store, team, known = self.store, self.team, self.read.get(name)
        match what:
            case "create":
                self.read[name] = store.create(small_job(name, team, **more), by="ann")
            case "read":
                self.read[name] = store.get(team, name)
            case "change":
                store.change(team, name, EDITS[more])
            case "change what was read" if known is not None:
                store.change(team, name, EDITS[more], generation=known.generation, uid=known.uid)
            case "tell of what was read" if known is not None:
                return str(store.set_status(known.uid, status(more, known.generation)))
            case "remove" if known is not None:
                store.remove(known.uid)
        return "done"

    def picture(self) -> list[object]:
        """All that can be seen, but for numbers and times that each store chooses."""
        query = Query(namespace=self.team)
        jobs = self.store.list(query).jobs
        for job in jobs:
            assert job == self.store.get(self.team, job.name) == self.store.by_uid(job.uid)
        waiting = [job.name for job in self.store.open_jobs() if job == self.store.by_uid(job.uid)]
        unlinked = [job.name for job in self.store.unlinked() if job.namespace == self.team]
        return [[self._one(job) for job in jobs], waiting, unlinked]

    def _one(self, job: StoredJob) -> object:
        wish, now = job.wish, job.status
        placed = replace(wish, job=wish.job.model_copy(update={"metadata": small_job(job.name).metadata}))
        about = [one.observed_generation == now.observed_generation for one in now.conditions]
        return (
            replace(placed, deleted_at=wish.deleted_at and NOON),
            (now.phase, now.observed_generation < job.generation, now.observed_generation <= job.generation, about),
            job.created_by,
        )

    def generations(self) -> dict[str, int]:
        return {job.uid: job.generation for job in self.store.list(Query(namespace=self.team)).jobs}


def status(phase: Phase, about: int) -> JobStatus:
    stalled = Condition(
        type=ConditionType.RUNNING,
        status="True",
        reason=Reason.STALLED,
        last_transition_time=NOON,
        observed_generation=about,
    )
    return JobStatus(phase=phase, observed_generation=about, conditions=[stalled] if phase is Phase.RUNNING else [])


NAMES = st.sampled_from(["one", "two"])
PHASES = st.sampled_from([Phase.RUNNING, Phase.SUSPENDED, Phase.FAILED, Phase.CANCELLED])
STEPS = st.one_of(
    st.tuples(st.just("create"), NAMES, st.sampled_from([{}, {"budget": {"limit": "5.00"}}])),
    st.tuples(st.just("read"), NAMES, st.none()),
    st.tuples(st.sampled_from(["change", "change what was read"]), NAMES, st.sampled_from(list(EDITS))),
    st.tuples(st.just("tell of what was read"), NAMES, PHASES),
    st.tuples(st.just("remove"), NAMES, st.none()),
)
FIRST = [("create", "one", {}), ("create", "two", {})]


@given(steps=st.lists(STEPS, min_size=4, max_size=25))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_both_stores_say_the_same(
    kube: Kube, api_server: ApiServer, trainingjobs: dict[str, Any], tmp_path: Path, steps: list[tuple[str, str, Any]]
) -> None:
    team, file = api_server.namespace(), SqliteStore(tmp_path / f"{next(_FILES)}.db")
    with serving(kube, [team]) as store:
        ours, model = Side(store, team), Side(file, team)
        known: tuple[dict[str, int], dict[str, int]] = ({}, {})
        for step in (*FIRST, *steps):
            assert ours.act(step) == model.act(step), step
            assert ours.picture() == model.picture(), step
            now = ours.generations(), model.generations()
            grown = [[one[uid] - before.get(uid, 0) for uid in one] for one, before in zip(now, known, strict=True)]
            assert [number > 0 for number in grown[0]] == [number > 0 for number in grown[1]], step
            assert all(number >= 0 for number in grown[0]), step
            known = now
    file.database.close()
