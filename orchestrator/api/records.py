"""`/v1/jobs/{namespace}/{name}/events` and `.../metrics`: what a job has reported, in pages or followed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, Field, create_model

from orchestrator.api.answers import problems
from orchestrator.api.archives import archive_of, standing
from orchestrator.api.auth import SeenJob, needs
from orchestrator.api.desk import AtDesk, Caller, Desk, Json
from orchestrator.api.following import RecordFollower, read_offset
from orchestrator.api.rights import Principal
from orchestrator.api.streaming import Follow, LastEventId, documented, stream, wants_stream
from orchestrator.launch.events import Event, Progress
from orchestrator.launch.pages import MAX_EVENTS, Entry, event_page
from orchestrator.schema import Part
from orchestrator.store.access import Role
from orchestrator.store.base import StoredJob
from orchestrator.store.document import timestamp

router = APIRouter(prefix="/v1", tags=["reading"])
_KINDS = get_args(get_args(Event)[0])
_UNREAD: Any = {"use_attribute_docstrings": False}
"""Of a class without source. pydantic would look for it through all frames and modules: seconds in a large process."""
_DATED: Any = reduce(
    or_,
    (
        create_model(
            f"{kind.__name__.strip('_')}Event", __base__=kind, __cls_kwargs__=_UNREAD, time=(AwareDatetime, ...)
        )
        for kind in _KINDS
    ),
)
"""Events whose time is a date, as the API says times."""


class MetricsRecord(Part):
    """The numbers of a step that was done. One that was done again, after a restart, comes again."""

    attempt: int = Field(ge=1)
    step: int = Field(ge=0)
    tokens: int = Field(ge=0)
    """Trained on up to this step."""
    time: AwareDatetime
    metrics: dict[str, float]
    """By the names of docs/metrics.md."""


class Following(Part):
    """Where a page ends."""

    next: str = Field(pattern=r"^[0-9]{1,15}$")
    """`after` of the next page; at the end, too, where more may come."""
    more: bool
    """Whether there is more already."""


class MetricsPage(Following):
    """In the order in which they were written."""

    items: list[MetricsRecord]


_OneOf = Annotated[_DATED, Field(discriminator="kind")]
EventsPage: Any = create_model("EventsPage", __base__=Following, __cls_kwargs__=_UNREAD, items=(list[_OneOf], ...))
After = Annotated[
    str, Query(max_length=15, pattern="^[0-9]*$", description="`next` of the page before, or the id of an event.")
]
Limit = Annotated[int, Query(ge=1, le=MAX_EVENTS, description="Items of a page.")]
_IDS = "the byte offset behind it"


def event_json(entry: Entry) -> Json:
    """An event as the API says it."""
    return entry.event.model_dump(mode="json", by_alias=True, exclude_none=True) | {"time": _moment(entry.event.time)}


def metrics_json(entry: Entry) -> Json:
    """The numbers of a step."""
    event = entry.event
    assert isinstance(event, Progress), "only these are asked for"
    known = {"attempt": event.attempt, "step": event.step, "tokens": event.tokens}
    return known | {"time": _moment(event.time), "metrics": event.metrics}


def _moment(time: float) -> str:
    return timestamp(datetime.fromtimestamp(time, UTC))


@router.get(
    "/jobs/{namespace}/{name}/events",
    operation_id="readEvents",
    summary="Read or follow what a job reports",
    response_model=EventsPage,
    dependencies=[needs(Role.READER)],
    responses={**problems("not-found"), **documented("Oldest first.", _IDS)},
)
def read_events(
    request: Request,
    stored: SeenJob,
    desk: AtDesk,
    caller: Caller,
    after: After = "",
    limit: Limit = 100,
    follow: Follow = False,
    last_event_id: LastEventId = None,
) -> Response:
    """Starts, steps, checkpoints, losses of workers, warnings and ends, of all attempts."""
    return _answer(request, desk, caller, stored, event_json, None, last_event_id or after, limit, follow)


@router.get(
    "/jobs/{namespace}/{name}/metrics",
    operation_id="readMetrics",
    summary="Read or follow a job's numbers",
    response_model=MetricsPage,
    dependencies=[needs(Role.READER)],
    responses={**problems("not-found"), **documented("Oldest first.", _IDS)},
)
def read_metrics(
    request: Request,
    stored: SeenJob,
    desk: AtDesk,
    caller: Caller,
    after: After = "",
    limit: Limit = 100,
    follow: Follow = False,
    last_event_id: LastEventId = None,
) -> Response:
    """A record for each step that was done, also those that were lost and done again."""
    return _answer(request, desk, caller, stored, metrics_json, "progress", last_event_id or after, limit, follow)


def _answer(
    request: Request,
    desk: Desk,
    caller: Principal,
    stored: StoredJob,
    show: Callable[[Entry], Json],
    kind: str | None,
    after: str,
    limit: int,
    follow: bool,
) -> Response:
    archive, offset = archive_of(desk, stored), read_offset(after or "0")
    if wants_stream(request, follow=follow):
        follower = RecordFollower(
            archive, standing(desk, stored), lambda entry: json.dumps(show(entry)), offset=offset, kind=kind
        )
        return stream(request, desk, caller, stored, follower)
    page = event_page(archive.events(), offset, limit=limit, kind=kind)
    items = [show(entry) for entry in page.entries]
    return JSONResponse({"items": items, "next": str(page.next), "more": page.more})
