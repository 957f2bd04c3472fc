"""Whether a request wants server-sent events, and how a stream is answered to it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Query, Request, Response

from orchestrator.api.desk import Desk
from orchestrator.api.following import Follower
from orchestrator.api.rights import Principal, sees
from orchestrator.api.streams import Streams
from orchestrator.errors import FathomError
from orchestrator.store.base import StoredJob

EVENT_STREAM = "text/event-stream"
Follow = Annotated[
    bool, Query(description=f"Server-sent events, until the job has ended; so does `Accept: {EVENT_STREAM}`.")
]
LastEventId = Annotated[
    str | None, Header(max_length=40, description="Id of the last event that was read: those after it are sent.")
]


def wants_stream(request: Request, *, follow: bool) -> bool:
    """Whether it shall go on."""
    accepted = request.headers.get("accept", "")
    return follow or any(part.partition(";")[0].strip().lower() == EVENT_STREAM for part in accepted.split(","))


def stream(request: Request, desk: Desk, caller: Principal, stored: StoredJob, follower: Follower) -> Response:
    """The answer; it ends when the caller's token does not count any more, or may not see the job."""
    streams: Streams = request.app.state.streams
    secret = desk.door.secret(request.headers)
    assert secret is not None, "the gate has let it through"

    def allowed() -> bool:
        try:
            return desk.door.authenticator.authenticate(secret) == caller and sees(caller, stored.namespace)
        except FathomError:
            return False

    return streams.answer(caller.name, follower, allowed=allowed)


def documented(description: str, ids: str) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that streams, too."""
    text = f"{description} As server-sent events: `id` is {ids}, the last event is `end` with the job's phase."
    event = {
        "type": "object",
        "description": "One event. A comment comes each 15 s where nothing happens.",
        "properties": {
            "id": {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]{1,15})?$"},
            "event": {"type": "string", "enum": ["message", "end"]},
            "data": {"type": "string"},
        },
        "required": ["data"],
    }
    return {200: {"description": text, "content": {EVENT_STREAM: {"schema": event}}}}
