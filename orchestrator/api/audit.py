"""`/v1/audit`: who changed what, and who tried to."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime

from orchestrator.api.answers import problems
from orchestrator.api.auth import needs
from orchestrator.api.desk import AtDesk, Json
from orchestrator.schema import Part
from orchestrator.store.access import Role
from orchestrator.store.audit import AuditRecord
from orchestrator.store.document import timestamp

router = APIRouter(prefix="/v1", tags=["access"], dependencies=[needs(Role.ADMIN)])


class AuditDocument(Part):
    """A request that changed something, or would have."""

    at: AwareDatetime
    principal: str
    """Name of the token; empty: none that counts."""
    method: str
    path: str
    """With its query."""
    outcome: Literal["done", "denied", "refused", "failed", "unknown"]
    """denied: who asks may not; refused: it cannot be; failed: our fault; unknown: nobody saw the end."""
    status: int | None = None
    """Of the HTTP answer."""
    request_id: str
    groups: list[str] = []
    """In which the cluster counts the principal: 500 characters of them, so that the last may be cut off."""
    job: str | None = None
    """`NAMESPACE/NAME` of the body, for a job that is submitted; of others the path has it."""
    digest: str | None = None
    """SHA-256 of the body, in hexadecimal digits."""


class AuditList(Part):
    """Newest first."""

    items: list[AuditDocument]
    next: str
    """Cursor of the next page; empty at the end."""


@router.get(
    "/audit",
    operation_id="listAudit",
    summary="Who changed what",
    response_model=AuditList,
    responses=problems(),
)
def list_audit(
    desk: AtDesk,
    limit: Annotated[int, Query(ge=1, le=1000, description="Records of one page.")] = 100,
    cursor: Annotated[str, Query(max_length=40, description="`next` of the page before.")] = "",
) -> JSONResponse:
    """Each request with another method than GET, but plans, whatever came of it; newest first."""
    page = desk.audit.records(limit=limit, after=cursor)
    return JSONResponse({"items": [_document(record) for record in page.records], "next": page.next})


def _document(record: AuditRecord) -> Json:
    deed = record.deed
    return {
        "at": timestamp(record.at),
        "principal": deed.principal,
        "method": deed.method,
        "path": deed.path,
        "outcome": record.outcome,
        **({} if record.status is None else {"status": record.status}),
        "requestId": deed.request_id,
        **({"groups": deed.groups.split(",")} if deed.groups else {}),
        **({"job": deed.job} if deed.job else {}),
        **({"digest": deed.digest} if deed.digest else {}),
    }
