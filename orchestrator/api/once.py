"""`Idempotency-Key` on POST: the same request again has the same answer, and its effect once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request, Response

from orchestrator.api.desk import AtDesk, Caller
from orchestrator.errors import UsageError
from orchestrator.store.database import Database
from orchestrator.store.idempotency import Answer, Idempotency
from orchestrator.store.idempotency import Request as Remembered

T = TypeVar("T")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
REPLAYED = "Idempotent-Replayed"
"""Header of an answer that was given before."""


class Once:
    """Of one request; without a key everything is simply done."""

    def __init__(self, idempotency: Idempotency, database: Database, request: Remembered | None) -> None:
        self._idempotency = idempotency
        self._database = database
        self._request = request

    def __call__(self, prepare: Callable[[], T], act: Callable[[T], Response]) -> Response:
        """What `act` makes of what `prepare` found; `act` and remembering its answer are one transaction.

        `prepare` may take its time: nobody waits for it. Errors of both are raised, and not remembered.
        """
        if self._request is None:
            return act(prepare())
        if (before := self._idempotency.claim(self._request)) is not None:
            return Response(before.body, before.status, {**before.headers, REPLAYED: "true"})
        try:
            found = prepare()
            with self._database.write():
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
    if idempotency_key is None:
        return Once(desk.idempotency, desk.database, None)
    if not _KEY.fullmatch(idempotency_key) or len(request.headers.getlist("idempotency-key")) > 1:
        raise UsageError("Idempotency-Key must be given once, as 1 to 255 visible ASCII characters")
    said = request.url.query.encode() + b"\0" + await request.body()
    remembered = Remembered(
        key=idempotency_key,
        principal=caller.name,
        route=f"{request.method} {request.url.path}",
        digest=hashlib.sha256(said).hexdigest(),
    )
    return Once(desk.idempotency, desk.database, remembered)


DoOnce = Annotated[Once, Depends(_once)]
