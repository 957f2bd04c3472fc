"""Who somebody is and what they may, in a cluster: the API server says so (TokenReview, SubjectAccessReview).

What Fathom does for somebody it does with its own rights, so that each request is asked about as theirs: whoever may
not read or change TrainingJobs of a namespace by kubectl may not by this API. A role takes all of its verbs. Fails
closed; answers hold for seconds (`kube.access`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.api.rights import Door
from orchestrator.errors import Forbidden
from orchestrator.kube.access import Access, Person
from orchestrator.kube.resources import TRAINING_JOBS
from orchestrator.store.access import Role

HEADERS = ("Authorization", "X-Fathom-Authorization")
"""The API server's service proxy takes the first one away."""
_VERBS: Mapping[Role, tuple[str, ...]] = {
    Role.READER: ("get", "list"),
    Role.RUNNER: ("get", "list", "create", "update", "delete"),
    Role.ADMIN: ("get", "list", "update"),
}
"""On trainingjobs.fathom.dev."""


@dataclass(frozen=True)
class KubeCaller:
    """Somebody whom the API server knows."""

    person: Person
    access: Access = field(compare=False, repr=False)
    team: None = None

    @property
    def name(self) -> str:
        return self.person.name

    @property
    def groups(self) -> tuple[str, ...]:
        return self.person.groups

    def why_not(self, role: Role, namespace: str | None) -> str:
        target = TRAINING_JOBS if namespace is None else TRAINING_JOBS.at(namespace)
        try:
            for verb in _VERBS[role]:
                self.access.require(self.person, verb, target)
        except Forbidden as error:
            return f"{error} (all namespaces)" if namespace is None else str(error)
        return ""

    def why_never(self, role: Role) -> str:
        """An admin is one of all namespaces."""
        return self.why_not(role, None) if role is Role.ADMIN else ""

    def about(self) -> dict[str, str]:
        """With the highest role that it has in all namespaces, if any."""
        held = [role.value for role in Role if not self.why_not(role, None)]
        return {"name": self.name, **({"role": held[-1]} if held else {})}


class KubeAccess:
    """People and service accounts, by tokens for this audience."""

    def __init__(self, access: Access, audience: str) -> None:
        self._access, self._audience = access, audience

    def authenticate(self, secret: str) -> KubeCaller:
        return KubeCaller(self._access.who(secret, self._audience), self._access)


def people_door(access: Access, audience: str, others: Mapping[str, Door]) -> Door:
    """`others`: of addresses that are not for people."""
    hint = f"`kubectl create token ACCOUNT --audience={audience}` mints one"
    return Door(KubeAccess(access, audience), hint, HEADERS, others)
