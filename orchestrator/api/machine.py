"""`/v1/capacity`, `/livez`, `/readyz`: the machine and the service."""

from __future__ import annotations

import logging

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import Field

from orchestrator.api.answers import problems
from orchestrator.api.auth import needs
from orchestrator.api.capacity import Slots
from orchestrator.api.desk import AtDesk, Caller, Json
from orchestrator.errors import FathomError
from orchestrator.schema import Part
from orchestrator.store.access import Role
from orchestrator.store.base import Query

router = APIRouter(tags=["service"])
_LOG = logging.getLogger(__name__)


class SlotsDocument(Part):
    """Processor cores and GPUs."""

    cpus: int = Field(ge=0)
    gpus: int = Field(ge=0)


class HolderDocument(SlotsDocument):
    """A job that holds some."""

    namespace: str
    name: str


class CapacityDocument(Part):
    """What the machine lends to jobs."""

    total: SlotsDocument
    used: SlotsDocument
    holders: list[HolderDocument]
    """Of your team only, with the token of a team."""


@router.get(
    "/v1/capacity",
    operation_id="getCapacity",
    summary="What is free, and who has the rest",
    response_model=CapacityDocument,
    dependencies=[needs(Role.READER)],
    responses=problems(),
)
def get_capacity(desk: AtDesk, caller: Caller) -> JSONResponse:
    """Slots of this machine."""
    found = desk.capacity()
    holders = [one for one in found.holders if caller.team in (None, one.namespace)]
    return JSONResponse(
        {
            "total": _slots(found.total),
            "used": _slots(found.used),
            "holders": [{"namespace": one.namespace, "name": one.name, **_slots(one.slots)} for one in holders],
        }
    )


@router.get("/livez", operation_id="isAlive", summary="Whether the service answers", response_class=PlainTextResponse)
async def is_alive() -> PlainTextResponse:
    """Without a token, and without facts."""
    return PlainTextResponse("ok\n")


@router.get(
    "/readyz",
    operation_id="isReady",
    summary="Whether the service can work",
    response_class=PlainTextResponse,
    responses={
        503: {"description": "Its job store does not work now; the log says why", "content": {"text/plain": {}}}
    },
)
def is_ready(desk: AtDesk) -> PlainTextResponse:
    """Without a token, and without facts."""
    try:
        desk.store.documents(Query(limit=1))
    except FathomError as error:
        _LOG.error("not ready: %s", error)
        return PlainTextResponse("not ready\n", 503)
    return PlainTextResponse("ok\n")


def _slots(slots: Slots) -> Json:
    return {"cpus": slots.cpus, "gpus": slots.gpus}
