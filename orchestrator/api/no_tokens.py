"""`/v1/tokens` in a cluster: there are none, and whoever looks for them is told where tokens come from there."""

from __future__ import annotations

from fastapi import APIRouter

from orchestrator.api.auth import needs
from orchestrator.errors import NotFound
from orchestrator.store.access import Role

router = APIRouter(prefix="/v1", include_in_schema=False, dependencies=[needs(Role.READER)])


@router.api_route("/tokens", methods=["GET", "POST"])
@router.api_route("/tokens/{token}", methods=["DELETE"])
def refuse_tokens() -> None:
    """NotFound."""
    raise NotFound(
        "in a cluster Fathom has no tokens of its own: `kubectl create token ACCOUNT --audience=AUDIENCE` mints one, "
        "and roles on trainingjobs.fathom.dev say what it may; docs/security.md"
    )
