"""What stands between the network and the application, as plain ASGI: ids, headers, names, origins, rates, bodies.

Order, outermost first: `Envelope`, `Trail`, `Borders`, `TokenGate`, `Begun`, `Rates`, `Bodies` (those that are not here
are in `api.trail` and `api.auth`). None waits for a disk in the event loop. Messages about the life of the application
pass; WebSockets are refused by the outermost.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api import strict_json
from orchestrator.api.problems import Refusal, problem_response, refuse
from orchestrator.api.threads import quick

_LOG = logging.getLogger(__name__)
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_LARGE = 64 * 1024
"""Bytes from which reading JSON takes a thread of its own."""


@dataclass(frozen=True)
class Limits:
    """What one caller may ask of the service."""

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    rate: float | None = 50.0
    """Requests a second that one token may make, on average; None: any."""
    burst: int = 200
    """And at once."""
    values: int = strict_json.MAX_VALUES
    """In a body."""
    others: Mapping[str, Limits] = field(default_factory=dict)
    """Addresses that have limits of their own, the time for a body apart."""

    def at(self, path: str) -> Limits:
        """Those that an address has."""
        return self.others.get(path, self)


class Envelope:
    """The outermost: an id for each request, headers of safety on each answer, words for what we did not foresee."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # we have none, and the gate does not know them
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def wrapped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["X-Request-ID"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, wrapped)
        except Exception:
            _LOG.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise
            detail = f"that is our fault, and is in the service's log under request {request_id}"
            await problem_response(scope, "internal", detail)(scope, receive, wrapped)


class Borders:
    """Refuses names that are not ours (DNS rebinding) and pages of other sites."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None) -> None:
        """`hosts` None: any name. In a cluster a proxy keeps the name that it was asked for, and probes give addresses;
        a page that gets a name to lead here has no token all the same."""
        self._app = app
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self._is_ours(_host(hosts[0])):
            names = ", ".join(sorted(self._hosts or {"one name"}))
            detail = f"this service answers as {names} only: `fathom serve --help` adds names"
            await refuse(scope, receive, send, Refusal("foreign-host", detail))
        elif any(origin.lower() not in _own(hosts[0]) for origin in origins):
            await refuse(
                scope, receive, send, Refusal("foreign-origin", "the request comes from a page of another site")
            )
        else:
            await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        return bool(host) if self._hosts is None else host in self._hosts


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?", header)
    return match[1].lower() if match else ""


def _own(host: str) -> tuple[str, str]:
    return f"http://{host.lower()}", f"https://{host.lower()}"


class Rates:
    """So many requests a second for each caller, counted by token bucket; 429 says when to come again."""

    def __init__(self, app: ASGIApp, *, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._buckets = {
            path: None if (one := limits.at(path)).rate is None else Buckets(one.rate, one.burst, clock)
            for path in ("", *limits.others)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope["state"].get("caller") if scope["type"] == "http" else None
        wait = 0.0
        if caller is not None and (buckets := self._buckets.get(scope["path"], self._buckets[""])) is not None:
            wait = buckets.take(caller.name)
        if wait:
            await refuse(scope, receive, send, too_many(wait))
            return
        await self._app(scope, receive, send)


def too_many(wait: float) -> Refusal:
    """After `wait` seconds there is room again."""
    seconds = math.ceil(wait)
    return Refusal("rate-limited", f"come again in {seconds} s", headers={"Retry-After": str(seconds)})


class Buckets:
    """Token buckets by name. Used from the event loop only."""

    _MAX = 10_000

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._filled: dict[str, tuple[float, float]] = {}
        """Name -> what is in the bucket, and when it was."""

    def take(self, name: str) -> float:
        """0 if there was one to take; otherwise the seconds until there will be."""
        now = self._clock()
        level, since = self._filled.pop(name, (float(self._burst), now))
        level = min(float(self._burst), level + (now - since) * self._rate)
        taken = level >= 1
        self._filled[name] = (level - taken, now)
        if len(self._filled) > self._MAX:
            self._filled.pop(next(iter(self._filled)))  # that which was used longest ago
        return 0.0 if taken else (1 - level) / self._rate


class Bodies:
    """Reads the body before the application does: bounded in size, time and depth, and JSON where it says so."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            limits = self._limits.at(scope["path"])
            body = await self._read(Headers(scope=scope), receive, limits.body_bytes)
            if body is None:
                return  # the caller has gone
            if body:
                scope["state"]["digest"] = hashlib.sha256(body).hexdigest()
            await _require_json(Headers(scope=scope), body, scope["method"], limits.values)
        except Refusal as refusal:
            await refuse(scope, receive, send, refusal)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive, most: int) -> bytes | None:
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said[:20]) > most:
            raise Refusal("too-large", f"the body has {said[:20]} bytes, at most {most} are read")
        pieces = bytearray()
        try:
            with anyio.fail_after(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    pieces += message.get("body", b"")
                    if len(pieces) > most:
                        raise Refusal("too-large", f"the body has more than {most} bytes, at most that many are read")
                    if not message.get("more_body", False):
                        return bytes(pieces)
        except TimeoutError:
            seconds = f"{self._limits.body_seconds:g}"
            raise Refusal("slow-request", f"the body did not arrive in {seconds} s") from None


_WANTED = {"PATCH": ("application/merge-patch+json", "application/json")}


async def _require_json(headers: Headers, body: bytes, method: str, values: int) -> None:
    """Refusal unless the body is empty, or JSON and said to be."""
    if not body:
        return
    wanted = _WANTED.get(method, ("application/json",))
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in wanted or len(headers.getlist("content-type")) != 1:
        raise Refusal("unsupported-media", f"the body is {kind[:80] or 'of no type'}: send {' or '.join(wanted)}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal("unsupported-media", "compressed bodies are not read: send it as it is")
    try:
        if len(body) > _LARGE:
            await quick(partial(strict_json.read, body, values))
        else:
            strict_json.read(body, values)
    except strict_json.NotJson as error:
        raise Refusal("invalid-json", str(error)) from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body again, for the application, then whatever comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
