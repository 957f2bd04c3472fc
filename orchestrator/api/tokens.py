"""`/v1/tokens`: who may do what. A secret is in the answer that makes the token, and nowhere else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, Field

from orchestrator.api.answers import problems
from orchestrator.api.auth import needs
from orchestrator.api.desk import AtDesk, Caller, Json
from orchestrator.errors import Conflict
from orchestrator.schema import Part
from orchestrator.store.access import NAME_PATTERN, Role, Token
from orchestrator.store.document import timestamp

router = APIRouter(prefix="/v1", tags=["access"])
_ADMIN = [needs(Role.ADMIN)]
_LONGEST_DAYS = 3650
TokenName = Annotated[str, Path(max_length=63, pattern=NAME_PATTERN, description="Of the token.", examples=["ann"])]


class TokenRequest(Part):
    """A token that is to be made."""

    name: str = Field(max_length=63, pattern=NAME_PATTERN, examples=["ann"])
    """Who it is for; given once, so that the audit record stays clear."""
    role: Role
    """What it allows: reader looks, runner runs jobs, admin gives tokens."""
    team: str | None = Field(None, max_length=63, pattern=NAME_PATTERN, examples=["vision"])
    """The only namespace that it sees; absent: all. An admin is one of all."""
    days: float | None = Field(None, gt=0, le=_LONGEST_DAYS, examples=[30])
    """After which it counts no more; absent: it lasts until it is revoked."""


class TokenDocument(Part):
    """A token, without its secret."""

    name: str
    role: Role
    team: str | None = None
    """The only namespace that it sees; absent: all."""
    created: AwareDatetime
    created_by: str
    """Name of the token that made it."""
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    """Since when it counts no more."""


class NewToken(TokenDocument):
    """A token that was made just now."""

    secret: str
    """Shown once: only its hash is kept."""


class TokenList(Part):
    """All that were ever made, by name."""

    items: list[TokenDocument]
    next: str = ""
    """Always empty: there is one page."""


@router.get(
    "/tokens",
    operation_id="listTokens",
    summary="List tokens",
    response_model=TokenList,
    dependencies=_ADMIN,
    responses=problems(),
)
def list_tokens(desk: AtDesk) -> JSONResponse:
    """Those that count no more, too."""
    return JSONResponse({"items": [_document(token) for token in desk.access.tokens()], "next": ""})


@router.post(
    "/tokens",
    operation_id="createToken",
    summary="Make a token",
    status_code=201,
    response_model=NewToken,
    dependencies=_ADMIN,
    responses=problems("conflict", "invalid-json", "too-large", "unsupported-media"),
)
def create_token(body: TokenRequest, desk: AtDesk, caller: Caller) -> JSONResponse:
    """The secret is in this answer only. An Idempotency-Key has no effect here, because a secret is never kept: a
    second request is refused, as the name is given."""
    until = None if body.days is None else datetime.now(UTC) + timedelta(days=body.days)
    token, secret = desk.access.make(body.name, body.role, by=caller.name, team=body.team, expires_at=until)
    return JSONResponse({**_document(token), "secret": secret}, 201, {"Location": f"/v1/tokens/{token.name}"})


@router.delete(
    "/tokens/{name}",
    operation_id="revokeToken",
    summary="Revoke a token",
    response_model=TokenDocument,
    dependencies=_ADMIN,
    responses=problems("not-found", "conflict"),
)
def revoke_token(name: TokenName, desk: AtDesk, caller: Caller) -> JSONResponse:
    """It counts no more, from the next request on."""
    if name == caller.name:
        raise Conflict(f"{name} is the token that you ask with: revoke it with another admin's, so that one is left")
    return JSONResponse(_document(desk.access.revoke(name)))


def _document(token: Token) -> Json:
    times = {"created": token.created_at, "expires": token.expires_at, "revoked": token.revoked_at}
    return {
        "name": token.name,
        "role": token.role.value,
        **({} if token.team is None else {"team": token.team}),
        "createdBy": token.created_by,
        **{name: timestamp(moment) for name, moment in times.items() if moment is not None},
    }
