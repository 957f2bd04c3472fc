"""The client without an event loop: every verb of `AsyncClient`, driven over a transport that never waits for one."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx2

from orchestrator.client.core import AsyncClient, finder
from orchestrator.client.transport import Blocking, Transport, options

P = ParamSpec("P")
T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits for an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise AssertionError("a coroutine over the blocking transport waits for an event loop")


def _verb(
    verb: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    @functools.wraps(verb)
    def call(self: Client, /, *arguments: P.args, **named: P.kwargs) -> T:
        return run(verb(self._core, *arguments, **named))

    return call


def _stream(
    verb: Callable[Concatenate[AsyncClient, P], AsyncIterator[T]],
) -> Callable[Concatenate[Client, P], Iterator[T]]:
    @functools.wraps(verb)
    def call(self: Client, /, *arguments: P.args, **named: P.kwargs) -> Iterator[T]:
        return _iterate(verb(self._core, *arguments, **named))

    return call


def _iterate(items: AsyncIterator[T]) -> Iterator[T]:
    """Closed with the iterator: a reader that has enough leaves no connection behind."""
    try:
        while True:
            try:
                item = run(_next(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        if (close := getattr(items, "aclose", None)) is not None:
            run(_close(close))


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


async def _close(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await close()


class Client:
    """A running service, as `AsyncClient` describes it: `Client()` finds that of this machine.

    >>> with Client() as client:                        # doctest: +SKIP
    ...     planned = client.plan(Path("job.yaml"))
    ...     job = client.apply(planned)
    ...     for line in client.logs(job, follow=True):
    ...         print(line)
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        context: str | None = None,
        timeout: float = 60.0,
        allow_http: bool = False,
        transport: Transport | None = None,
    ) -> None:
        """As that of `AsyncClient`."""
        if transport is None:
            service = finder(url, token, allow_http, context)()
            transport = Blocking(httpx2.Client(**options(service, timeout)))
        self._core = AsyncClient(url, token, context=context, allow_http=allow_http, transport=transport)

    @property
    def url(self) -> str:
        """Of the service."""
        return self._core.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    close = _verb(AsyncClient.close)

    plan = _verb(AsyncClient.plan)
    apply = _verb(AsyncClient.apply)
    preview = _verb(AsyncClient.preview)
    get = _verb(AsyncClient.get)
    list = _stream(AsyncClient.list)
    patch = _verb(AsyncClient.patch)
    cancel = _verb(AsyncClient.cancel)
    suspend = _verb(AsyncClient.suspend)
    resume = _verb(AsyncClient.resume)
    delete = _verb(AsyncClient.delete)
    wait = _verb(AsyncClient.wait)

    logs = _stream(AsyncClient.logs)
    events = _stream(AsyncClient.events)
    metrics = _stream(AsyncClient.metrics)
    metrics_since = _verb(AsyncClient.metrics_since)

    cost = _verb(AsyncClient.cost)
    costs = _verb(AsyncClient.costs)
    compare = _verb(AsyncClient.compare)
    capacity = _verb(AsyncClient.capacity)
    me = _verb(AsyncClient.me)
    create_token = _verb(AsyncClient.create_token)
    tokens = _verb(AsyncClient.tokens)
    revoke_token = _verb(AsyncClient.revoke_token)
