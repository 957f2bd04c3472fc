"""The audit record of each request that changes something, or would: begun before it is done, finished with its answer.

`Trail` stands outside the gate, so that what is denied is recorded too, under nobody's name; `Begun` stands behind it,
where the name is known. Without a record nothing is changed: a full disk refuses the request. How many records unknown
callers leave is bounded, so that nobody fills the disk without a token.
"""

from __future__ import annotations

import logging
from functools import partial

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.limits import Buckets
from orchestrator.api.problems import error_response, printable
from orchestrator.api.threads import quick
from orchestrator.errors import FathomError
from orchestrator.launch.delivery import PATH as DELIVERIES
from orchestrator.store.audit import Audit, Deed

_LOG = logging.getLogger(__name__)
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_CHANGES_NOTHING = frozenset({"/v1/plans", DELIVERIES})
"""Plans are not kept; what a job's own pods deliver is no deed of a person."""
_UNKNOWN_RATE, _UNKNOWN_BURST = 1.0, 100
"""Records a second, of all callers without a token that counts; and at once."""


class Trail:
    """Finishes records, and makes those of requests that never came through the gate."""

    def __init__(self, app: ASGIApp, *, audit: Audit) -> None:
        self._app = app
        self._audit = audit
        self._unknown = Buckets(_UNKNOWN_RATE, _UNKNOWN_BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _changes(scope):
            await self._app(scope, receive, send)
            return
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            with anyio.CancelScope(shield=True):
                await self._finish(scope, status)

    async def _finish(self, scope: Scope, status: int) -> None:
        number = scope["state"].get("audit")
        try:
            if number is not None:
                state = scope["state"]
                about = {"job": state.get("job", ""), "digest": state.get("digest", "")}
                await quick(partial(self._audit.finish, number, status, **about))
            elif not self._unknown.take(""):
                await quick(partial(self._audit.begin, _deed(scope), status))
        except FathomError as error:  # the answer is given already; the record stays without its end
            _LOG.error("request %s is not in the audit record: %s", scope["state"]["request_id"], error)


class Begun:
    """Makes the record of what a known caller asks for; refuses it if there can be none."""

    def __init__(self, app: ASGIApp, *, audit: Audit) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _changes(scope):
            try:
                scope["state"]["audit"] = await quick(partial(self._audit.begin, _deed(scope)))
            except FathomError as error:
                _LOG.error("request %s: %s", scope["state"]["request_id"], error)
                await error_response(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _changes(scope: Scope) -> bool:
    """Whether the request is one for the record."""
    return scope["type"] == "http" and scope["method"] not in _READS and scope["path"] not in _CHANGES_NOTHING


def _deed(scope: Scope) -> Deed:
    caller = scope["state"].get("caller")
    query = scope.get("query_string", b"").decode("latin-1")
    path = printable(scope["path"]) + (f"?{query}" if query else "")
    name, groups = ("", ()) if caller is None else (caller.name, caller.groups)
    return Deed(name, scope["method"], path, scope["state"]["request_id"], ",".join(groups))
