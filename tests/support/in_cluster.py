"""The API as it is in a cluster, in process, over a store of the test's own; who somebody is, the test says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.api.app import InCluster, make_app
from orchestrator.api.deliveries import pods_door
from orchestrator.api.kube_access import people_door
from orchestrator.errors import Forbidden, Unauthorized, Unavailable
from orchestrator.kube.access import Person
from orchestrator.kube.resources import Target
from orchestrator.launch.base import Launcher
from orchestrator.launch.delivery import PATH
from orchestrator.launch.local import LocalLauncher
from support.api import Service

PEOPLE, PODS = "fathom", "fathom-controller"
Json = dict[str, Any]


class Known:
    """In place of `kube.access.Access`: whom the test knows."""

    def __init__(self) -> None:
        self.people: dict[tuple[str, str], Person] = {}
        self.may: set[tuple[str, str, str]] = set()
        """Name, verb, namespace; an empty one for all."""
        self.away = False

    def who(self, token: str, audience: str) -> Person:
        if self.away:
            raise Unavailable("the API server at 10.0.0.1 does not answer")
        if (token, audience) not in self.people:
            raise Unauthorized("nobody knows it")
        return self.people[token, audience]

    def require(self, person: Person, verb: str, target: Target) -> None:
        if self.away:
            raise Unavailable("the API server at 10.0.0.1 does not answer")
        if not {(person.name, verb, target.namespace), (person.name, verb, "")} & self.may:
            raise Forbidden(f"{person.name} may not {verb} {target}: no role allows it")

    def person(self, name: str, verbs: Sequence[str] = (), namespace: str = "") -> str:
        """-> its token."""
        self.people[f"token-{name}", PEOPLE] = Person(name)
        self.may |= {(name, verb, namespace) for verb in verbs}
        return f"token-{name}"

    def pod(self, namespace: str, name: str, uid: str) -> str:
        """-> its token."""
        extra = {"pod-name": name, "pod-uid": uid}
        found = tuple((f"authentication.kubernetes.io/{key}", (value,)) for key, value in sorted(extra.items()))
        self.people[f"token-{uid}", PODS] = Person(f"system:serviceaccount:{namespace}:mini-a1", extra=found)
        return f"token-{uid}"


class ClusterService(Service):
    """`access` stands for the cluster; the tokens of a laptop count for nothing."""

    def __init__(self, home: Path, known: Any = None, **options: Any) -> None:  # noqa: ANN401
        self.known = Known() if known is None else known
        self.pods: dict[tuple[str, str], Json] = {}
        self.lacking: list[str] = []
        self.launcher: Launcher | None = None
        super().__init__(home, **options)

    def start(self) -> None:
        self.launcher = self.launcher or LocalLauncher(self.settings)
        door = people_door(self.known, PEOPLE, {PATH: pods_door(self.known, PODS)})
        self.app = make_app(
            self.store,
            self.settings,
            capacity=lambda: self.capacity,
            wake=self._wake,
            hosts=None,
            limits=self._limits,
            cluster=InCluster(door, self, self.launcher, lambda: self.lacking),
        )

    def pod_of(self, namespace: str, name: str) -> Json | None:
        return self.pods.get((namespace, name))
