"""What every route works with, and who is asking. Handed to the routes by FastAPI's dependencies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from orchestrator.api.capacity import Capacity
from orchestrator.api.far import Far
from orchestrator.api.rights import Door, Principal
from orchestrator.controller.inbox import Inboxes
from orchestrator.launch.base import Launcher
from orchestrator.settings import Settings
from orchestrator.store.access import Access
from orchestrator.store.audit import Audit
from orchestrator.store.base import JobStore
from orchestrator.store.database import Database
from orchestrator.store.idempotency import Idempotency


@dataclass(frozen=True)
class Desk:
    """Everything behind the API."""

    store: JobStore
    settings: Settings
    database: Database
    """Of tokens, answers and audit records."""
    door: Door
    """How callers say who they are."""
    access: Access
    """The tokens of this service, which a cluster has no use for."""
    idempotency: Idempotency
    audit: Audit
    inboxes: Inboxes
    """Of deliveries."""
    launcher: Launcher | None
    """By which jobs that are submitted are checked; None: they run on this machine."""
    capacity: Callable[[], Capacity]
    wake: Callable[[], None]
    """Tells the controller that a wish was changed."""
    far: Far = field(default_factory=Far)
    """Requests that read from other machines."""


async def _desk(request: Request) -> Desk:
    found: Desk = request.app.state.desk
    return found


async def _caller(request: Request) -> Principal:
    found: Principal = request.state.caller
    return found


AtDesk = Annotated[Desk, Depends(_desk)]
Caller = Annotated[Principal, Depends(_caller)]
"""Who asks; `orchestrator.api.auth` has seen to it that somebody does."""
Json = dict[str, Any]
