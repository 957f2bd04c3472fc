"""`GET /v1/compare`: runs side by side, as JSON or, for whoever asks for HTML, as one page."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response

from orchestrator.api.answers import problems
from orchestrator.api.auth import needs
from orchestrator.api.desk import AtDesk, Caller, Desk
from orchestrator.api.rights import Principal, require_seen
from orchestrator.compare.comparison import LEAST, MOST, compare
from orchestrator.compare.document import Comparison
from orchestrator.compare.facts import Axis, RunFacts
from orchestrator.compare.load import load_run
from orchestrator.compare.page import compare_page
from orchestrator.errors import NotFound, Unavailable, UsageError
from orchestrator.store.access import Role
from orchestrator.store.base import StoredJob

router = APIRouter(prefix="/v1", tags=["jobs"], dependencies=[needs(Role.READER)])
_PAGE = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
"""The page has a style of its own and loads nothing."""
_NAME = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z]([-a-z0-9]*[a-z0-9])?$"

JobName = Annotated[str, Query(max_length=104, pattern=_NAME)]


@router.get(
    "/compare",
    operation_id="compareJobs",
    summary="Put the runs of jobs side by side",
    response_model=Comparison,
    responses={
        **problems("not-found"),
        200: {
            "description": "The comparison; with `Accept: text/html` a page that needs no other file",
            "content": {"text/html": {"schema": {"type": "string"}}},
        },
    },
)
def compare_jobs(
    desk: AtDesk,
    caller: Caller,
    job: Annotated[
        list[JobName],
        Query(min_length=LEAST, max_length=MOST, description="TEAM/NAME, or NAME in your own team; several times."),
    ],
    by: Annotated[Axis, Query(description="At equal what the runs are compared first.")] = Axis.dollars,
    metric: Annotated[
        str | None, Query(max_length=250, description="By default eval/bits_per_byte; train/loss where one has none.")
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """As they are now: those that still run are compared as far as they are, with a caution."""
    found = compare([_facts(_stored(name, desk, caller), desk) for name in _different(job)], by, metric)
    if _wants_page(accept):
        return Response(compare_page(found), media_type="text/html", headers=_PAGE)
    return Response(found.model_dump_json(by_alias=True), media_type="application/json")


def _different(names: list[str]) -> list[str]:
    """UsageError for a name that comes twice, before anything is read."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"the job {twice} is named twice: name it once")
    return names


def _stored(name: str, desk: Desk, caller: Principal) -> StoredJob:
    namespace, _, job = name.rpartition("/")
    namespace = namespace or caller.team or "default"
    require_seen(caller, namespace, job)
    return desk.store.get(namespace, job)


def _facts(stored: StoredJob, desk: Desk) -> RunFacts:
    """Of the run's folder, which a job that waits does not have yet; its phase is the store's."""
    try:
        found = load_run(desk.settings.home / stored.folder)
    except NotFound:
        return RunFacts(stored.name, stored.namespace, stored.uid, stored.status.phase)
    except UsageError as error:  # a file of the operator's
        raise Unavailable(str(error)) from error
    return replace(found, uid=stored.uid, phase=stored.status.phase)


def _wants_page(accept: str) -> bool:
    """Whether HTML stands before JSON; programs that accept anything get JSON."""
    kinds = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    order = [kind for kind in kinds if kind in ("text/html", "application/json")]
    return order[:1] == ["text/html"]
