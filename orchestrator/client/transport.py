"""The two ways a request travels: over asyncio, and blocking. Both look alike to `core`, which is written once.

The coroutines of `Blocking` never wait for an event loop, so that whoever has none can drive them (`blocking.run`).
Redirections are never followed: the token is for one address. Proxies of the environment are not used for this machine.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import httpx2

from orchestrator.client.again import Cut
from orchestrator.client.answers import Answer
from orchestrator.client.calls import Call
from orchestrator.client.find import Service

_CONNECT_SECONDS = 5.0
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
T = TypeVar("T")
Event = httpx2.ServerSentEvent


@dataclass(frozen=True)
class Stream:
    """An answer whose content is read while it comes; Cut where it breaks off."""

    status: int
    headers: Mapping[str, str]
    events: AsyncIterator[Event]
    lines: AsyncIterator[str]
    whole: AsyncIterator[bytes]
    """Of the three only one is read."""

    async def answer(self) -> Answer:
        """All of it, for what is no stream."""
        return Answer(self.status, self.headers, b"".join([piece async for piece in self.whole]))

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def of_events(self) -> bool:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream"


class Transport(Protocol):
    """What `core` needs of the world."""

    async def send(self, service: Service, call: Call[Any]) -> Answer:
        """Cut if no answer comes."""
        ...

    def open(self, service: Service, call: Call[Any]) -> AbstractAsyncContextManager[Stream]:
        """Cut as above."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float:
        """Seconds that only grow."""
        ...

    async def close(self) -> None: ...


def options(service: Service, timeout: float) -> dict[str, Any]:
    """How either client of httpx2 is made; `timeout`: seconds without a byte."""
    return {
        "timeout": httpx2.Timeout(timeout, connect=_CONNECT_SECONDS),
        "follow_redirects": False,
        "trust_env": not service.local,
        **({} if service.tls is None else {"verify": service.tls}),
    }


def request_of(service: Service, call: Call[Any]) -> dict[str, Any]:
    """As both clients of httpx2 take it."""
    headers = {**service.others, service.header: f"Bearer {service.token}", "Accept": "application/json"}
    content = None
    if call.body is not None:
        content = json.dumps(call.body, allow_nan=False).encode()
        headers["Content-Type"] = "application/json"
    return {
        "method": call.method,
        "url": service.url + call.path,
        "params": list(call.query),
        "content": content,
        "headers": headers | dict(call.headers),
    }


@contextmanager
def _cuts() -> Iterator[None]:
    """What goes wrong on the way, as Cut."""
    try:
        yield
    except httpx2.TransportError as error:
        reason = str(error) or type(error).__name__
        raise Cut(reason, arrived=not isinstance(error, _NEVER_SENT)) from error


def _headers(response: httpx2.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


class Asyncio:
    """On an event loop."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def send(self, service: Service, call: Call[Any]) -> Answer:
        with _cuts():
            response = await self._http.request(**request_of(service, call))
        return Answer(response.status_code, _headers(response), response.content)

    @asynccontextmanager
    async def open(self, service: Service, call: Call[Any]) -> AsyncIterator[Stream]:
        with _cuts():
            async with self._http.stream(**request_of(service, call)) as response:
                events = aiter(httpx2.EventSource(response))
                yield Stream(
                    response.status_code,
                    _headers(response),
                    events,
                    response.aiter_lines(),
                    response.aiter_bytes(),
                )

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def now(self) -> float:
        return time.monotonic()

    async def close(self) -> None:
        await self._http.aclose()


class Blocking:
    """The same without one."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    async def send(self, service: Service, call: Call[Any]) -> Answer:
        with _cuts():
            response = self._http.request(**request_of(service, call))
        return Answer(response.status_code, _headers(response), response.content)

    @asynccontextmanager
    async def open(self, service: Service, call: Call[Any]) -> AsyncIterator[Stream]:
        with _cuts(), self._http.stream(**request_of(service, call)) as response:
            yield Stream(
                response.status_code,
                _headers(response),
                _each(iter(httpx2.EventSource(response))),
                _each(response.iter_lines()),
                _each(response.iter_bytes()),
            )

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def now(self) -> float:
        return time.monotonic()

    async def close(self) -> None:
        self._http.close()


async def _each(items: Iterator[T]) -> AsyncIterator[T]:
    for item in items:
        yield item
