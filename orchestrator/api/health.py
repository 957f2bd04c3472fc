"""`/livez` and `/readyz`: whether the service answers, and whether it can work; without a token, and without facts."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from orchestrator.api.desk import AtDesk, Desk
from orchestrator.controller.health import Health
from orchestrator.errors import FathomError
from orchestrator.store.base import Query

router = APIRouter(tags=["service"])
_LOG = logging.getLogger(__name__)
_NOT_READY = {"description": "A line for each part that does not work; the log says why", "content": {"text/plain": {}}}


@router.get("/livez", operation_id="isAlive", summary="Whether the service answers", response_class=PlainTextResponse)
async def is_alive() -> PlainTextResponse:
    """Whoever supervises the service starts it again where this is not answered."""
    return PlainTextResponse("ok\n")


@router.get(
    "/readyz",
    operation_id="isReady",
    summary="Whether the service can work",
    response_class=PlainTextResponse,
    responses={503: _NOT_READY},
)
def is_ready(request: Request, desk: AtDesk) -> PlainTextResponse:
    """Its job store can be read, and its controller looks at the jobs; in a cluster, what it needs there is there."""
    cluster = request.app.state.cluster
    lacking = () if cluster is None else cluster.lacking()
    failing = [*_failing(desk, request.app.state.health), *lacking]
    if failing:
        return PlainTextResponse("".join(f"not ready: {part}\n" for part in failing), 503)
    return PlainTextResponse("ok\n")


def _failing(desk: Desk, health: Health | None) -> Iterator[str]:
    try:
        desk.store.documents(Query(limit=1))
    except FathomError as error:
        _LOG.warning("the job store cannot be read: %s", error)
        yield "store"
    if health is not None and (trouble := health.trouble()) is not None:
        _LOG.warning(trouble)
        yield "controller"
