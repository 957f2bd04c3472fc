"""`Idempotency-Key` on POST: the same request again has the same answer, and its effect once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request, Response

from orchestrator.api.desk import AtDesk, Caller
from orchestrator.errors import UsageError
from orchestrator.store.idempotency import Answer, Idempotency
from orchestrator.store.idempotency import Request as Remembered
from orchestrator.store.sqlite import SqliteStore

T = TypeVar("T")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
REPLAYED = "Idempotent-Replayed"
"""Header of an answer that was given before."""


class Once:
    """Of one request; without a key everything is simply done."""

    def __init__(
        self,
        idempotency: Idempotency,
        request: Remembered | None,
        transaction: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """`transaction`: which `act` and its remembered answer share."""
        self._idempotency = idempotency
        self._request = request
        self._transaction = transaction

    def __call__(self, prepare: Callable[[], T], act: Callable[[T], Response]) -> Response:
        """What `act` makes of what `prepare` found; `act` and remembering its answer are one transaction, unless the
        jobs are in a cluster: then a process that dies in between has done it, and whoever asks again is told that.

        `prepare` may take its time: nobody waits for it. Errors of both are raised, and not remembered.
        """
        if self._request is None:
            return act(prepare())
        if (before := self._idempotency.claim(self._request)) is not None:
            return Response(before.body, before.status, {**before.headers, REPLAYED: "true"})
        try:
            found = prepare()
            with self._transaction():
                response = act(found)
                self._idempotency.keep(self._request, _answer(response))
            return response
        except BaseException:
            self._idempotency.release(self._request)
            raise


def _answer(response: Response) -> Answer:
    kept = {name: value for name, value in response.headers.items() if name != "content-length"}
    return Answer(response.status_code, kept, bytes(response.body).decode())


async def _once(
    request: Request,
    desk: AtDesk,
    caller: Caller,
    idempotency_key: Annotated[
        str | None, Header(description="Any text of your own: the same request with it has the same answer for a day.")
    ] = None,
) -> Once:
    # another server is not waited for with the file of all others in our hands
    transaction = desk.database.write if isinstance(desk.store, SqliteStore) else nullcontext
    if idempotency_key is None:
        return Once(desk.idempotency, None, transaction)
    if not _KEY.fullmatch(idempotency_key) or len(request.headers.getlist("idempotency-key")) > 1:
        raise UsageError("Idempotency-Key must be given once, as 1 to 255 visible ASCII characters")
    said = request.url.query.encode() + b"\0" + await request.body()
    remembered = Remembered(
        key=idempotency_key,
        principal=caller.name,
        route=f"{request.method} {request.url.path}",
        digest=hashlib.sha256(said).hexdigest(),
    )
    return Once(desk.idempotency, remembered, transaction)


DoOnce = Annotated[Once, Depends(_once)]
