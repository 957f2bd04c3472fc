"""Server-sent events of what a follower finds, with heartbeats, until the end, the reader's leaving, or the server's.

Why not `yield` from the endpoint, as `fastapi.sse` offers it: our routes answer text or JSON at the same address, a
stream that is one too many must be refused before its headers are sent, and one must end when the server does. The
wire format is FastAPI's. Invariants: files are looked at in worker threads, never on the event loop; a reader who does
not read holds up its own stream only; what is counted for a token is given back however a stream ends.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from orchestrator.api.following import Follower, Message, end_data
from orchestrator.errors import RateLimited

HEARTBEAT_SECONDS = 15.0
LONGEST_SECONDS = 3600.0
_SHORTEST, _LONGEST, _SLOWER = 0.1, 1.0, 1.5
"""Pauses between looks that find nothing: seconds of the first, of the last, and how they grow."""
_BEGUN = b": begun\n\n"
"""Sent at once: a reader knows that it is connected. A comment, since some take events without data for data."""
_THREADS = 8
"""That look at files at once; requests have others."""
T = TypeVar("T")


@dataclass
class Streams:
    """All streams of a server."""

    per_token: int = 16
    total: int = 256
    heartbeat: float = HEARTBEAT_SECONDS
    longest: float = LONGEST_SECONDS
    """Of a stream: then it ends, without `end`, as soon as it has nothing to say; its reader comes back."""
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], Awaitable[None]] | None = None
    """None: sleeps, and wakes up when the server ends."""
    _open: Counter[str] = field(default_factory=Counter)
    _closing: asyncio.Event = field(default_factory=asyncio.Event)
    _threads: anyio.CapacityLimiter | None = None

    def answer(
        self, who: str, follower: Follower, *, allowed: Callable[[], bool] = lambda: True
    ) -> EventSourceResponse:
        """The answer to a request of the token `who`. `allowed`: asked with each heartbeat; the stream ends when it is
        not any more. RateLimited when the answer is sent, if there are too many."""
        return _Answer(self, who, self._events(follower, allowed))

    def close(self) -> None:
        """End all streams, without the event `end`: their readers come back for the rest. Call it on the event loop as
        soon as the server is told to stop, which waits for them."""
        self._closing.set()

    @property
    def count(self) -> int:
        """Streams that are open."""
        return self._open.total()

    def enter(self, who: str) -> None:
        """Count a stream; RateLimited if it is one too many."""
        if self._open[who] >= self.per_token:
            raise RateLimited(
                f"this token has {self._open[who]} streams open, and may have {self.per_token}: close one first"
            )
        if self.count >= self.total:
            raise RateLimited(f"the service has {self.count} streams open, and no room for more: try again later")
        self._open[who] += 1

    def leave(self, who: str) -> None:
        """Count it no longer."""
        self._open[who] -= 1
        if self._open[who] <= 0:
            del self._open[who]

    async def _events(self, follower: Follower, allowed: Callable[[], bool]) -> AsyncIterator[bytes]:
        yield _BEGUN
        began = self.clock()
        said, pause = began, _SHORTEST
        while not self._closing.is_set():
            look = await self._in_thread(follower)
            for message in look.messages:
                yield _encoded(message)
            if look.end is not None:
                yield format_sse_event(event="end", data_str=end_data(look.end))
                return
            if look.messages:
                said, pause = self.clock(), _SHORTEST
                continue
            if self.clock() - began >= self.longest:
                return
            if self.clock() - said >= self.heartbeat:
                if not await self._in_thread(allowed):
                    return
                yield KEEPALIVE_COMMENT
                said = self.clock()
            await self._wait(pause)
            pause = min(pause * _SLOWER, _LONGEST)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(_THREADS)
        return await anyio.to_thread.run_sync(call, limiter=self._threads)

    async def _wait(self, seconds: float) -> None:
        if self.pause is not None:
            await self.pause(seconds)
            return
        with anyio.move_on_after(seconds):
            await self._closing.wait()


class _Answer(EventSourceResponse):
    """Counted from its first byte to its end."""

    def __init__(self, streams: Streams, who: str, content: AsyncIterator[bytes]) -> None:
        super().__init__(content, headers={"Cache-Control": "no-cache, no-store", "X-Accel-Buffering": "no"})
        self._enter, self._leave = partial(streams.enter, who), partial(streams.leave, who)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._enter()
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


def _encoded(message: Message) -> bytes:
    return format_sse_event(data_str=message.data, id=message.id)
