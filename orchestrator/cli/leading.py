"""`fathom controller` put together: what the process that leads has, from the lease to the API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.api.app import InCluster, make_app
from orchestrator.api.deliveries import pods_door
from orchestrator.api.kube_access import people_door
from orchestrator.api.standby import Standby
from orchestrator.cli.serve import capacity_of
from orchestrator.controller.service import Controller
from orchestrator.kube.access import Access
from orchestrator.kube.client import Kube
from orchestrator.kube.lease import LeaderLease
from orchestrator.kube.writes import Writer
from orchestrator.launch.cluster import KubeLauncher
from orchestrator.launch.delivery import PATH
from orchestrator.launch.local import hold_lock
from orchestrator.launch.rayjob import ClusterSettings
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob
from orchestrator.store.kube import KubeStore

if TYPE_CHECKING:
    from fastapi import FastAPI

_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Place:
    """Where a controller works, and for whom."""

    settings: Settings
    cluster: ClusterSettings
    audience: str
    """Of the tokens of people."""
    namespaces: Sequence[str] = ()
    """That it looks after; empty: all."""


class Leading:
    """Waits for the lease, then leads: `run` it in a thread, `stop` it from another. Its end is that of the process:
    who lost the lease never leads again."""

    def __init__(
        self, place: Place, kube: Kube, asking: Kube, lease: LeaderLease, standby: Standby, say: Callable[[str], None]
    ) -> None:
        """`asking`: the same server, for questions about people, which are not waited for long."""
        self._place, self._kube, self._lease, self._standby, self._say = place, kube, lease, standby, say
        self._access = Access(asking)
        self._stopped = threading.Event()
        self._controller: Controller | None = None

    def stop(self) -> None:
        """Give the lease back, after this turn."""
        self._stopped.set()
        if (controller := self._controller) is not None:
            controller.stop()

    def run(self) -> None:
        """Until `stop`."""
        self._say(f"{self._lease.identity} stands by")
        place, writer = self._place, Writer(self._kube, self._lease, wait=self._stopped.wait)
        store = KubeStore(self._kube, writer, namespaces=place.namespaces)

        def job_of(uid: str) -> TrainingJob | None:
            found = store.by_uid(uid)
            return None if found is None else found.wish.job

        launcher = KubeLauncher(
            self._kube, writer, place.settings, place.cluster, job_of, namespaces=place.namespaces, say=self._say
        )
        with ExitStack() as held:
            held.callback(self._lease.release)  # last of all
            for part in (store, launcher):
                held.callback(part.stop)
            store.start()  # while it stands by, so that it has read everything when it leads
            launcher.follow()
            if not self._lease.acquire(self._stopped):
                return
            self._say(f"{self._lease.identity} leads")
            held.enter_context(hold_lock(place.settings.home / "service.lock"))
            self._lead(store, launcher)

    def _lead(self, store: KubeStore, launcher: KubeLauncher) -> None:
        store.catch_up()
        launcher.lead()
        controller = self._controller = Controller(store, launcher, self._place.settings, self._say)
        store.on_wish(controller.wake)
        self._standby.lead(self._app(store, launcher, controller))
        while not (store.synced and launcher.synced):
            if self._stopped.wait(_LOOK_SECONDS):
                return
        if not self._stopped.is_set():
            controller.run()

    def _app(self, store: KubeStore, launcher: KubeLauncher, controller: Controller) -> FastAPI:
        place = self._place
        others = {PATH: pods_door(self._access, place.cluster.controller.token_audience)}

        def lacks() -> Sequence[str]:
            return list(
                lacking(leads=self._lease.leads, jobs=store.synced, attempts=launcher.synced, problem=launcher.problem)
            )

        return make_app(
            store,
            place.settings,
            capacity=lambda: capacity_of(controller),
            wake=controller.wake,
            hosts=None,
            controller=controller.health,
            cluster=InCluster(people_door(self._access, place.audience, others), launcher, launcher, lacks),
        )


def lacking(*, leads: bool, jobs: bool, attempts: bool, problem: str) -> Iterator[str]:
    """What keeps a leader from its work, in words. Pure."""
    if not leads:
        yield "the lease is lost: this process ends"
    if not jobs:
        yield "the TrainingJobs of the cluster are not known yet"
    if problem:
        yield problem
    elif not attempts:
        yield "what runs in the cluster is not known yet"
