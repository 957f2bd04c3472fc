"""The REST API as an ASGI application: what `fathom serve` runs, and what tests call in process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from orchestrator.api import (
    audit,
    compare,
    costs,
    deliveries,
    health,
    jobs,
    logs,
    machine,
    me,
    no_tokens,
    plans,
    prometheus,
    records,
    tokens,
)
from orchestrator.api.auth import TokenGate
from orchestrator.api.capacity import Capacity
from orchestrator.api.deliveries import Pods
from orchestrator.api.desk import Desk
from orchestrator.api.limits import LOCAL_HOSTS, Bodies, Borders, Envelope, Limits, Rates
from orchestrator.api.links import add_links
from orchestrator.api.money import Ledgers
from orchestrator.api.parameters import require_known
from orchestrator.api.problems import MEDIA_TYPE, install
from orchestrator.api.rights import Door
from orchestrator.api.streams import Streams
from orchestrator.api.trail import Begun, Trail
from orchestrator.controller.health import Health
from orchestrator.controller.inbox import Inboxes
from orchestrator.launch.base import Launcher
from orchestrator.launch.delivery import PATH as DELIVERIES
from orchestrator.settings import Settings
from orchestrator.store.access import Access
from orchestrator.store.audit import Audit
from orchestrator.store.base import JobStore
from orchestrator.store.database import NAME, Database
from orchestrator.store.idempotency import Idempotency
from orchestrator.store.sqlite import SqliteStore

_EVERYWHERE = (
    plans.router,
    jobs.router,
    logs.router,
    records.router,
    costs.router,
    compare.router,
    me.router,
    audit.router,
    machine.router,
    health.router,
    prometheus.router,
)
ROUTERS = (*_EVERYWHERE, tokens.router)
"""Of a laptop."""
CLUSTER_ROUTERS = (*_EVERYWHERE, deliveries.router, no_tokens.router)
_ABOUT = """Submit, follow, change and compare training jobs, and know what each costs.

Every request but /livez and /readyz takes a bearer token. Errors are problem documents (RFC 9457); docs/problems.md
explains each code. Times are RFC 3339 in UTC, money is decimal strings."""
_HINT = "that of your own service is in its home, admin.token"


@dataclass(frozen=True)
class InCluster:
    """What is other there than on a laptop."""

    door: Door
    """How people, and pods that deliver, say who they are."""
    pods: Pods
    launcher: Launcher
    """By which jobs that are submitted are checked."""
    lacking: Callable[[], Sequence[str]]
    """What a service that is ready must have and has not, in words; called from several threads."""


def make_app(
    store: JobStore,
    settings: Settings,
    *,
    capacity: Callable[[], Capacity],
    wake: Callable[[], None],
    hosts: Collection[str] | None = LOCAL_HOSTS,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    controller: Health | None = None,
    streams: Streams | None = None,
    cluster: InCluster | None = None,
) -> FastAPI:
    """The application. `capacity` and `wake` are called from several threads; `hosts`: names that it answers under,
    None: any; `controller`: how it is, for readiness and metrics, where there is one.

    Tokens, remembered answers and the audit record are in the file of the store, or, where that has none, in the home.
    """
    database = store.database if isinstance(store, SqliteStore) else Database(settings.home / NAME)
    access = Access(database)
    if cluster is not None:
        limits = replace(limits, others={DELIVERIES: deliveries.LIMITS})
    door = Door(access, _HINT) if cluster is None else cluster.door
    desk = Desk(
        store=store,
        settings=settings,
        database=database,
        door=door,
        access=access,
        idempotency=Idempotency(database),
        audit=Audit(database),
        inboxes=Inboxes(),
        launcher=None if cluster is None else cluster.launcher,
        capacity=capacity,
        wake=wake,
    )
    desk.idempotency.clear()
    streams = streams or Streams()
    metrics = prometheus.Metrics(store.tally, capacity, streams, controller)
    app = FastAPI(
        title="Fathom",
        version="v1",
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        routes=list(_routes(cluster=cluster is not None)),
        middleware=[
            Middleware(prometheus.Metered, metrics=metrics),
            Middleware(Envelope),
            Middleware(Trail, audit=desk.audit),
            Middleware(Borders, hosts=hosts),
            Middleware(TokenGate, door=door),
            Middleware(Begun, audit=desk.audit),
            Middleware(Rates, limits=limits),
            Middleware(Bodies, limits=limits),
        ],
    )
    app.state.desk, app.state.streams, app.state.metrics, app.state.health = desk, streams, metrics, controller
    app.state.ledgers = Ledgers(settings.home)
    app.state.cluster = cluster
    install(app)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


@cache
def _routes(*, cluster: bool) -> tuple[BaseRoute, ...]:
    """All applications share them: FastAPI takes a fifth of a second to read their signatures."""
    together = APIRouter()
    for router in CLUSTER_ROUTERS if cluster else ROUTERS:
        together.include_router(router, dependencies=[Depends(require_known)])
    return tuple(together.routes)


def _document(app: FastAPI) -> dict[str, Any]:
    """OpenAPI: FastAPI's, with errors of the media type that they have."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path in found["paths"].values():
            for operation in path.values():
                for status, answer in operation.get("responses", {}).items():
                    if status >= "400" and MEDIA_TYPE in answer.get("content", {}):
                        [schema] = [body for kind, body in answer["content"].items() if kind != MEDIA_TYPE]
                        answer["content"] = {MEDIA_TYPE: schema}
        add_links(found)
        app.openapi_schema = found
    return app.openapi_schema
