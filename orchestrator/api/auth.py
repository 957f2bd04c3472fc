"""Bearer tokens: nothing but /livez and /readyz is answered without one, whatever the method.

`TokenGate` stands before the application and lets through who has a token; `needs` says at each route which role it
takes; `seen_by` narrows what a token of a team sees. What a token may not see is answered as if it did not exist.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, Path, Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.api.desk import AtDesk, Caller
from orchestrator.api.problems import Refusal, error_response, refuse
from orchestrator.api.threads import quick
from orchestrator.errors import FathomError, Forbidden, NotFound, Unauthorized
from orchestrator.store.access import Access, Role, Token
from orchestrator.store.base import StoredJob

OPEN = frozenset({"/livez", "/readyz"})
"""What answers without a token, and tells nothing."""
_LOG = logging.getLogger(__name__)
_ASK = {"WWW-Authenticate": "Bearer"}


class TokenGate:
    """ASGI middleware: puts the caller's token into the request's state, or refuses with 401."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        secret = _bearer(Headers(scope=scope))
        if secret is None:
            detail = "send a header `Authorization: Bearer TOKEN`; that of your own service is in its home, admin.token"
            await refuse(scope, receive, send, Refusal("unauthorized", detail, headers=_ASK))
            return
        try:
            scope["state"]["token"] = await quick(partial(self._access.authenticate, secret))
        except Unauthorized as error:
            await error_response(scope, error)(scope, receive, send)
            return
        except FathomError as error:  # whoever asks is not known: nothing of the inside is said
            _LOG.error("request %s: %s", scope["state"]["request_id"], error)
            detail = "no token can be looked up now; the service's log says why"
            await refuse(scope, receive, send, Refusal("unavailable", detail))
            return
        await self._app(scope, receive, send)


def _bearer(headers: Headers) -> str | None:
    """The secret; None unless there is exactly one."""
    given = headers.getlist("authorization")
    if len(given) != 1:
        return None
    scheme, _, secret = given[0].partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None


_SCHEME = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="A token of this service; `fathom serve` writes one into its home.",
)


class RoleNeeded:
    """Dependency of a route: Forbidden for tokens of a lesser role."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(self, caller: Caller, _: Any = Security(_SCHEME)) -> None:  # noqa: ANN401, B008 - FastAPI's
        if not caller.role.allows(self.role):
            raise Forbidden(f"this takes a token of role {self.role}, that of {caller.name} is of role {caller.role}")


def needs(role: Role) -> Any:  # noqa: ANN401 - FastAPI's own type of it is Any
    """For `dependencies=[needs(Role.RUNNER)]` of a router or a route."""
    return Depends(RoleNeeded(role))


def seen_by(token: Token, namespace: str | None) -> str | None:
    """The namespace to look into: of a team's token its own; None: all. NotFound for that of another team."""
    if token.team is None or namespace == token.team:
        return namespace
    if namespace is None:
        return token.team
    raise NotFound(f"there is no namespace {namespace}, or it is not for your token, which is of team {token.team}")


def require_seen(token: Token, namespace: str, name: str) -> None:
    """NotFound, as for what does not exist, unless the token may see the job."""
    if token.team not in (None, namespace):
        raise NotFound(f"there is no job {namespace}/{name}: `fathom list` shows those there are")


Namespace = Annotated[
    str, Path(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", description="The team.", examples=["default"])
]
Name = Annotated[
    str, Path(max_length=40, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", description="Of the job.", examples=["mini"])
]


def _seen_job(namespace: Namespace, name: Name, desk: AtDesk, caller: Caller) -> StoredJob:
    require_seen(caller, namespace, name)
    return desk.store.get(namespace, name)


SeenJob = Annotated[StoredJob, Depends(_seen_job)]
"""The job of `{namespace}/{name}` in the path; NotFound where there is none, or none for this token."""
