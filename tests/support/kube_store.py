"""Job stores on a real API server, in namespaces that each test finds empty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from orchestrator.errors import Conflict, NotFound
from orchestrator.kube.again import Anybody, Patience
from orchestrator.kube.client import Kube
from orchestrator.kube.resources import TRAINING_JOBS, Target
from orchestrator.kube.watch import Rhythm
from orchestrator.kube.writes import Writer
from orchestrator.store.kube import KubeStore
from orchestrator.store.resource import target_of

TEAMS = ("default", "other", "a", "b")
QUICK = Rhythm(page=50, first_wait=0.01, longest_wait=0.05)
_NAMESPACES = Target("", "v1", "namespaces", "Namespace")


@contextmanager
def serving(kube: Kube, namespaces: Sequence[str]) -> Iterator[KubeStore]:
    """A store that has read all jobs; it may write without a lease."""
    made = store_of(kube, namespaces)
    made.start()
    try:
        for informer in made._informers.values():
            assert informer.synced.wait(120), informer.problem
        yield made
    finally:
        made.stop()


def store_of(kube: Kube, namespaces: Sequence[str]) -> KubeStore:
    """One that is not started."""
    writer = Writer(kube, Anybody(), patience=Patience(first=0.01, longest=0.02, total=60.0))
    return KubeStore(kube, writer, namespaces=namespaces, rhythm=QUICK)


def make_teams(kube: Kube) -> None:
    """The namespaces of `TEAMS`, without a job."""
    for name in TEAMS:
        try:
            kube.create(_NAMESPACES.at("", name), {"metadata": {"name": name}})
        except Conflict:
            clear(kube, name)


def clear(kube: Kube, namespace: str, but: str = "") -> None:
    """No job is left there, but the one of this name."""
    for found in kube.get(TRAINING_JOBS.at(namespace))["items"]:
        target = target_of(found)
        if target.name == but:
            continue
        kube.patch(target, {"metadata": {"finalizers": None}}, "merge")
        with suppress(NotFound):  # it was on its way out
            kube.delete(target, {})
