"""`/v1/me`: who asks."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime

from orchestrator.api.answers import problems
from orchestrator.api.auth import needs
from orchestrator.api.desk import Caller
from orchestrator.api.threads import quick
from orchestrator.schema import Part
from orchestrator.store.access import Role

router = APIRouter(prefix="/v1", tags=["access"])


class Me(Part):
    """Who asks."""

    name: str
    role: Role | None = None
    """What it may do wherever it sees something; absent in a cluster for those who may nothing in all namespaces: there
    each has its own rights."""
    team: str | None = None
    """The only namespace that it sees; absent: all, or, in a cluster, those where it may read jobs."""
    expires: AwareDatetime | None = None


@router.get(
    "/me",
    operation_id="whoAmI",
    summary="Who the token is",
    response_model=Me,
    dependencies=[needs(Role.READER)],
    responses=problems(),
)
async def who_am_i(caller: Caller) -> JSONResponse:
    """Of whoever asks."""
    return JSONResponse(await quick(caller.about))
