"""`/v1/jobs/{namespace}/{name}/logs`: what a job has printed, as text, or followed while it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from orchestrator.api.answers import problems
from orchestrator.api.archives import archive_of, standing
from orchestrator.api.auth import SeenJob, needs
from orchestrator.api.desk import AtDesk, Caller
from orchestrator.api.following import LogFollower, Place, beginning, resumed
from orchestrator.api.streaming import Follow, LastEventId, documented, stream, wants_stream
from orchestrator.launch.archive import Archive, Source
from orchestrator.launch.logtext import log_piece
from orchestrator.store.access import Role

router = APIRouter(prefix="/v1", tags=["reading"])
MAX_TAIL = 1_000_000
_PIECE = 256 << 10


@router.get(
    "/jobs/{namespace}/{name}/logs",
    operation_id="readLogs",
    summary="Read or follow a job's log",
    response_class=PlainTextResponse,
    dependencies=[needs(Role.READER)],
    responses={**problems("not-found"), **documented("The log as it is now.", "`<attempt>.<byte offset>`")},
)
def read_logs(
    request: Request,
    stored: SeenJob,
    desk: AtDesk,
    caller: Caller,
    attempt: Annotated[
        int | None, Query(ge=1, le=10_000, description="Of this attempt only; absent: the newest, and those after it.")
    ] = None,
    tail: Annotated[int | None, Query(ge=0, le=MAX_TAIL, description="Begin with the last so many lines.")] = None,
    follow: Follow = False,
    last_event_id: LastEventId = None,
) -> Response:
    """Escape sequences are taken out and control characters made visible, so that a terminal may show it. A line longer
    than a piece (32 KiB where it is followed) comes in parts."""
    archive = archive_of(desk, stored)
    if not wants_stream(request, follow=follow):
        place = beginning(archive, attempt, tail)
        return StreamingResponse(_text(archive, place), media_type="text/plain")
    place = resumed(archive, last_event_id) if last_event_id else beginning(archive, attempt, tail)
    follower = LogFollower(archive, standing(desk, stored), place, alone=attempt is not None)
    return stream(request, desk, caller, stored, follower)


def _text(archive: Archive, place: Place) -> Iterator[str]:
    """From a place to the end as it is now, however much that is, in pieces."""
    return _pieces(archive.log(place.attempt), place.offset) if place.attempt else iter(())


def _pieces(source: Source, offset: int) -> Iterator[str]:
    end = source.size()
    while offset < end and (piece := log_piece(source, offset, final=True, limit=min(_PIECE, end - offset))):
        yield piece.text + "\n" * piece.whole
        offset = piece.next
