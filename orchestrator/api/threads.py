"""Threads for short look-ups on the way to the application: requests that take long must not keep others out.

Routes run in the usual threads; if all of those wait, e.g. for another machine, tokens are still looked up here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync

T = TypeVar("T")
_THREADS = 8
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("_limiter")


async def quick(call: Callable[[], T]) -> T:
    """What `call` returns; it must not take long."""
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_THREADS)
        _limiter.set(limiter)
    return await run_sync(call, limiter=limiter)
