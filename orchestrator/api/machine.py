"""`/v1/capacity`: the machine."""

from __future__ import annotations

import logging

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from orchestrator.api.answers import problems
from orchestrator.api.auth import needs
from orchestrator.api.capacity import Slots
from orchestrator.api.desk import AtDesk, Caller, Json
from orchestrator.api.rights import sees
from orchestrator.schema import Part
from orchestrator.store.access import Role

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

    total: SlotsDocument | None
    """null: a cluster, which shares out its machines itself."""
    used: SlotsDocument
    holders: list[HolderDocument]
    """Of namespaces that you see."""


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
    seen = {one: sees(caller, one) for one in {holder.namespace for holder in found.holders}}
    holders = [one for one in found.holders if seen[one.namespace]]
    return JSONResponse(
        {
            "total": None if found.total is None else _slots(found.total),
            "used": _slots(found.used),
            "holders": [{"namespace": one.namespace, "name": one.name, **_slots(one.slots)} for one in holders],
        }
    )


def _slots(slots: Slots) -> Json:
    return {"cpus": slots.cpus, "gpus": slots.gpus}
