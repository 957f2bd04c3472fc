"""Who asks, and what they may: the same questions to a token of this service and to somebody whom a cluster knows.

A token has one role, for one team or for all (`store.access`); in a cluster what somebody may is asked namespace by
namespace (`api.kube_access`). Routes know neither. What may not be seen is answered as if it did not exist; what may be
seen, and not be done, is Forbidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.datastructures import Headers

from orchestrator.errors import Forbidden, NotFound
from orchestrator.store.access import Role


class Principal(Protocol):
    """Who asks."""

    @property
    def name(self) -> str:
        """For the audit record; requests are counted by it."""

    @property
    def groups(self) -> tuple[str, ...]:
        """In which a cluster counts it; for the audit record."""

    @property
    def team(self) -> str | None:
        """The namespace that is meant where none is named; None: all in a list, `default` for a job."""

    def why_not(self, role: Role, namespace: str | None) -> str:
        """Why it may not do in a namespace, or (None) in all of them, what the role allows; empty: it may.

        Unavailable if nobody can say now. May wait for another machine.
        """

    def why_never(self, role: Role) -> str:
        """The same of every namespace: empty where it may in some, or where each must be asked about by itself."""

    def about(self) -> dict[str, Any]:
        """What `/v1/me` tells. May wait for another machine."""


class Authenticator(Protocol):
    """Whose secret something is."""

    def authenticate(self, secret: str) -> Principal:
        """Unauthorized if nobody's (any more); Unavailable if nobody can say now. May wait for another machine."""


@dataclass(frozen=True)
class Door:
    """How callers say who they are."""

    authenticator: Authenticator
    hint: str
    """Where a token comes from, for those who send none."""
    headers: tuple[str, ...] = ("Authorization",)
    """In one of which the token comes."""
    others: Mapping[str, Door] = field(default_factory=dict)
    """Addresses that have a door of their own."""

    def at(self, path: str) -> Door:
        """The one that an address has."""
        return self.others.get(path, self)

    def secret(self, headers: Headers) -> str | None:
        """None unless there is exactly one."""
        given = [value for name in self.headers for value in headers.getlist(name)]
        if len(given) != 1:
            return None
        scheme, _, secret = given[0].partition(" ")
        return secret.strip() or None if scheme.lower() == "bearer" else None


def sees(caller: Principal, namespace: str) -> bool:
    """Whether it may look into a namespace."""
    return not caller.why_not(Role.READER, namespace)


def seen_by(caller: Principal, namespace: str | None) -> str | None:
    """The namespace to look into; None: all. NotFound for one that it does not see, Forbidden for all of them."""
    wanted = caller.team if namespace is None else namespace
    if wanted is None:
        if why := caller.why_not(Role.READER, None):
            raise Forbidden(f"{why}; name one namespace that you may read")
        return None
    if not sees(caller, wanted):
        raise NotFound(f"there is no namespace {wanted[:80]}, or it is not for {caller.name}")
    return wanted


def require_seen(caller: Principal, namespace: str, name: str) -> None:
    """NotFound, as for what does not exist, unless it may see the job."""
    if not sees(caller, namespace):
        raise NotFound(f"there is no job {namespace}/{name}: `fathom list` shows those there are")


def require_role(caller: Principal, role: Role, namespace: str) -> None:
    """Forbidden for a job of a namespace where it may not do what the role allows."""
    if why := caller.why_not(role, namespace):
        raise Forbidden(f"metadata.namespace is {namespace}, but {why}")


def require_route(caller: Principal, role: Role, namespace: str | None, name: str) -> None:
    """What a route asks before anything else; `namespace` None: it names none in its path, and asks again itself."""
    why = caller.why_never(role)
    if not why and namespace is not None:
        require_seen(caller, namespace, name)
        why = caller.why_not(role, namespace)
    if why:
        raise Forbidden(why)
