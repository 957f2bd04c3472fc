"""The REST API as an ASGI application: what `fathom serve` runs, and what tests call in process."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware

from orchestrator.api import audit, compare, costs, health, jobs, logs, machine, plans, prometheus, records, tokens
from orchestrator.api.auth import TokenGate
from orchestrator.api.capacity import Capacity
from orchestrator.api.desk import Desk
from orchestrator.api.limits import LOCAL_HOSTS, Bodies, Borders, Envelope, Limits, Rates
from orchestrator.api.links import add_links
from orchestrator.api.money import Ledgers
from orchestrator.api.parameters import require_known
from orchestrator.api.problems import MEDIA_TYPE, install
from orchestrator.api.streams import Streams
from orchestrator.api.trail import Begun, Trail
from orchestrator.controller.health import Health
from orchestrator.settings import Settings
from orchestrator.store.access import Access
from orchestrator.store.audit import Audit
from orchestrator.store.base import JobStore
from orchestrator.store.database import NAME, Database
from orchestrator.store.idempotency import Idempotency
from orchestrator.store.sqlite import SqliteStore

ROUTERS = (
    plans.router,
    jobs.router,
    logs.router,
    records.router,
    costs.router,
    compare.router,
    tokens.router,
    audit.router,
    machine.router,
    health.router,
    prometheus.router,
)
_ABOUT = """Submit, follow, change and compare training jobs, and know what each costs.

Every request but /livez and /readyz takes a bearer token. Errors are problem documents (RFC 9457); docs/problems.md
explains each code. Times are RFC 3339 in UTC, money is decimal strings."""


def make_app(
    store: JobStore,
    settings: Settings,
    *,
    capacity: Callable[[], Capacity],
    wake: Callable[[], None],
    hosts: Collection[str] = LOCAL_HOSTS,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    controller: Health | None = None,
    streams: Streams | None = None,
) -> FastAPI:
    """The application. `capacity` and `wake` are called from several threads; `hosts`: names that it answers under;
    `controller`: how it is, for readiness and metrics, where there is one.

    Tokens, remembered answers and the audit record are in the file of the store, or, where that has none, in the home.
    """
    database = store.database if isinstance(store, SqliteStore) else Database(settings.home / NAME)
    desk = Desk(
        store=store,
        settings=settings,
        database=database,
        access=Access(database),
        idempotency=Idempotency(database),
        audit=Audit(database),
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
        middleware=[
            Middleware(prometheus.Metered, metrics=metrics),
            Middleware(Envelope),
            Middleware(Trail, audit=desk.audit),
            Middleware(Borders, hosts=hosts),
            Middleware(TokenGate, access=desk.access),
            Middleware(Begun, audit=desk.audit),
            Middleware(Rates, rate=limits.rate, burst=limits.burst),
            Middleware(Bodies, limits=limits),
        ],
    )
    app.state.desk, app.state.streams, app.state.metrics, app.state.health = desk, streams, metrics, controller
    app.state.ledgers = Ledgers(settings.home)
    install(app)
    for router in ROUTERS:
        app.include_router(router, dependencies=[Depends(require_known)])
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


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
