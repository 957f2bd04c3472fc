"""A home whose controller runs its jobs in a cluster: a real API server, and a player of all that acts on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.controller.record import Record
from orchestrator.controller.service import Controller
from orchestrator.cost.timeline import Held
from orchestrator.kube.again import Anybody, Patience
from orchestrator.kube.client import Kube
from orchestrator.kube.watch import Rhythm
from orchestrator.kube.writes import Writer
from orchestrator.launch.base import RunFolder
from orchestrator.launch.cluster import KubeLauncher
from orchestrator.launch.events import EventLog, read_control
from orchestrator.launch.rayjob import ClusterSettings
from orchestrator.launch.resolve import read_resolved
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob
from orchestrator.status import Condition, ConditionType, JobStatus
from orchestrator.store.base import JobStore, StoredJob, Wish
from orchestrator.store.sqlite import SqliteStore
from support import rendering
from support.kuberay_player import Player
from support.launcher import Mirror

QUICK = Patience(attempts=3, first=0.01, longest=0.05, total=60.0)
_PATIENCE = 120.0


class KubeStage:
    """One job. Controllers come and go."""

    def __init__(
        self,
        home: Path,
        kube: Kube,
        player: Player,
        cluster: ClusterSettings = rendering.SETTINGS,
        store: JobStore | None = None,
    ) -> None:
        """`store`: another than a file in `home`."""
        self.kube, self.player, self.cluster, self.said = kube, player, cluster, list[str]()
        self.settings = Settings.load({"FATHOM_HOME": str(home)})
        self.store = store or SqliteStore(home / "fathom.db")
        self.launcher: KubeLauncher
        self.controller: Controller

    def submit(self, name: str = "mini", **spec: Any) -> StoredJob:  # noqa: ANN401 - parts of a job
        document = rendering.job(name, self.player.namespace, **({"data": {"source": "pvc://data/web"}} | spec))
        self.job = self.store.create(document, by="test")
        return self.job

    def job_of(self, uid: str) -> TrainingJob | None:
        found = self.store.by_uid(uid)
        return None if found is None else found.wish.job

    @contextmanager
    def service(self, holder: Any = None) -> Iterator[Controller]:  # noqa: ANN401 - who says whether we may write
        """A controller that leads, until the block ends; what runs goes on."""
        writer = Writer(self.kube, holder or Anybody(), patience=QUICK)
        self.launcher = KubeLauncher(
            self.kube, writer, self.settings, self.cluster, self.job_of,
            namespaces=[self.player.namespace], say=self.said.append, rhythm=Rhythm(first_wait=0.05, longest_wait=0.3),
        )  # fmt: skip
        self.launcher.lead()  # from the first: what it lists then is what there is, and need not be caught up with
        self.launcher.follow()
        mirror: Any = Mirror()
        self.controller = Controller(self.store, self.launcher, self.settings, self.said.append, mirror=mirror)
        try:
            wait(lambda: self.launcher.synced, lambda: f"not synced: {self.launcher.problem}")
            self.launcher.sweep()
            yield self.controller
        finally:
            self.controller.close()
            self.launcher.stop()

    # ------------------------------------------------------------------ what is so
    def until(self, true: Callable[[], Any], what: str = "") -> None:
        """Turns of the controller until it is so."""
        wait(lambda: (self.controller.turn(), true())[1], lambda: f"{what}: {self.status}, {self.said}", pause=0.05)

    def until_reason(self, kind: ConditionType, reason: str) -> Condition:
        self.until(lambda: self.status.condition(kind) and self.condition(kind).reason.value == reason, reason)
        return self.condition(kind)

    def until_phase(self, phase: str) -> None:
        self.until(lambda: self.status.phase.value == phase, phase)

    @property
    def status(self) -> JobStatus:
        found = self.store.by_uid(self.job.uid)
        assert found is not None
        return found.status

    def condition(self, kind: ConditionType) -> Condition:
        found = self.status.condition(kind)
        assert found is not None
        return found

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.settings.home / self.job.folder)

    @property
    def names(self) -> list[str]:
        """Of the RayJobs that there are."""
        return [one["metadata"]["name"] for one in self.player.ray_jobs()]

    @property
    def now(self) -> datetime:
        return datetime.now(UTC)

    @property
    def answer(self) -> Any:  # noqa: ANN401 - either kind
        """To the driver's next delivery."""
        return read_control(self.folder.control)

    def held(self) -> list[Held]:
        """As it was written down."""
        return Record.open(self.folder.root).held()

    # ------------------------------------------------------------------ the driver and people
    def deliver(self, kind: str, attempt: int = 1, **fields: Any) -> None:  # noqa: ANN401 - of an event
        """As the driver's pod does, under the name of its Ray cluster."""
        incarnation = read_resolved(self.folder.resolved(attempt)).incarnation
        keys = {"job": self.job.uid, "attempt": attempt, "incarnation": incarnation, "time": time.time()}
        EventLog(self.folder.events).append(kind, **keys, **fields)

    def starts_when_known(self, attempt: int = 1, step: int = 0) -> None:
        """The driver begins long after the controller has seen its Ray cluster."""
        self.until(lambda: self.is_known(attempt), "its Ray cluster is known")
        self.starts(attempt, step)

    def trains(self) -> str:
        """The first attempt is made, its pods are there, and its driver has said so; -> the Ray cluster."""
        self.until(lambda: self.names == [f"{self.job.name}-a1"], "made")
        cluster = self.player.runs(f"{self.job.name}-a1")
        self.starts_when_known()
        self.until_phase("Running")
        return cluster

    def is_known(self, attempt: int) -> bool:
        """Whether the controller has seen the Ray cluster that the attempt became."""
        incarnation = read_resolved(self.folder.resolved(attempt)).incarnation
        return incarnation.startswith(f"{self.job.name}-a{attempt}-")

    def starts(self, attempt: int = 1, step: int = 0) -> None:
        self.deliver("started", attempt, step=step, tokens=step, world_size=2)

    def saves(self, attempt: int = 1, step: int = 10) -> None:
        self.deliver("progress", attempt, step=step, tokens=step)
        self.deliver("checkpoint-committed", attempt, step=step, uri="x", size_bytes=1, seconds=0.0)

    def ends(self, outcome: str = "succeeded", attempt: int = 1, **fields: Any) -> None:  # noqa: ANN401
        self.deliver("ended", attempt, outcome=outcome, **fields)

    def wish(self, edit: Callable[[Wish], Wish]) -> None:
        self.store.change(self.job.namespace, self.job.name, edit)

    def cancel(self) -> None:
        self.wish(lambda wish: replace(wish, cancelled_at=datetime.now(UTC)))


def wait(true: Callable[[], Any], why: Callable[[], object], pause: float = 0.01) -> None:
    """Until it is so."""
    end = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < end, why()
        time.sleep(pause)
