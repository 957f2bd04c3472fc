"""Bearer tokens: nothing but /livez and /readyz is answered without one, whatever the method.

`TokenGate` stands before the application and lets through who has a token, by the `Door` that the address has; `needs`
says at each route which role it takes; `api.rights` says what a caller sees.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.api.desk import AtDesk, Caller
from orchestrator.api.problems import Refusal, error_response, refuse
from orchestrator.api.rights import Door, require_route, require_seen
from orchestrator.api.threads import quick
from orchestrator.errors import FathomError, Forbidden, Unauthorized
from orchestrator.store.access import Role
from orchestrator.store.base import StoredJob

OPEN = frozenset({"/livez", "/readyz"})
"""What answers without a token, and tells nothing."""
_LOG = logging.getLogger(__name__)
_ASK = {"WWW-Authenticate": "Bearer"}


class TokenGate:
    """ASGI middleware: puts the caller into the request's state, or refuses with 401."""

    def __init__(self, app: ASGIApp, *, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        door = self._door.at(scope["path"])
        secret = door.secret(Headers(scope=scope))
        if secret is None:
            names = " or ".join(f"`{name}: Bearer TOKEN`" for name in door.headers)
            detail = f"send a header {names}{', once' * (len(door.headers) > 1)}; {door.hint}"
            await refuse(scope, receive, send, Refusal("unauthorized", detail, headers=_ASK))
            return
        try:
            scope["state"]["caller"] = await quick(partial(door.authenticator.authenticate, secret))
        except (Unauthorized, Forbidden) as error:
            await error_response(scope, error)(scope, receive, send)
            return
        except FathomError as error:  # whoever asks is not known: nothing of the inside is said
            _LOG.error("request %s: %s", scope["state"]["request_id"], error)
            detail = "no token can be looked up now; the service's log says why"
            await refuse(scope, receive, send, Refusal("unavailable", detail))
            return
        await self._app(scope, receive, send)


_SCHEME = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="A token of this service; `fathom serve` writes one into its home.",
)


class RoleNeeded:
    """Dependency of a route: the role in the namespace of its path, or, where that names none, in any at all: then the
    route asks again for those that it is about. Forbidden or NotFound."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(self, request: Request, caller: Caller, _: Any = Security(_SCHEME)) -> None:  # noqa: ANN401, B008 - FastAPI's
        path = request.path_params
        await quick(partial(require_route, caller, self.role, path.get("namespace"), path.get("name", "")))


def needs(role: Role) -> Any:  # noqa: ANN401 - FastAPI's own type of it is Any
    """For `dependencies=[needs(Role.RUNNER)]` of a router or a route."""
    return Depends(RoleNeeded(role))


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
