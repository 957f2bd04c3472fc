"""schemathesis asks the real application what its OpenAPI document promises, and finds nothing but what is planted.

With an admin's token, at least 100 examples of each operation, most of them answered with success; then requests that
break the document, and stories of requests that go on with what those before have made.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from support.probing import World, operations, stories

pytestmark = pytest.mark.processes
EXAMPLES, WRONG_EXAMPLES = 100, 20
SHARDS = 4
"""Of the operations, so that no test takes long."""
_SUCCESSES, _LEAST = 0.6, 0.5
"""Of all answers, and of those of any one operation."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World.make(tmp_path_factory.mktemp("api") / "home")
    yield made
    made.runs.close()


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_operation_keeps_what_its_document_promises(world: World, shard: int) -> None:
    asked = list(operations(world))[shard::SHARDS]
    assert asked
    for operation in asked:
        world.ask(operation, examples=EXAMPLES)
        answers = world.answers[operation]
        assert answers.total() >= EXAMPLES, (operation, answers)
        assert world.kept(operation) >= _LEAST, (operation, answers)
    together = sum((world.answers[operation] for operation in asked), Counter[int]())
    assert sum(number for status, number in together.items() if status < 300) >= _SUCCESSES * together.total()


def test_requests_that_break_the_document_are_refused(tmp_path: Path) -> None:
    world = World.make(tmp_path / "home")
    for operation, breakable in operations(world).items():
        if breakable:
            world.ask(operation, examples=WRONG_EXAMPLES, mode=GenerationMode.NEGATIVE)
    world.runs.close()


def test_stories_of_requests_keep_what_their_documents_promise(tmp_path: Path) -> None:
    world = World.make(tmp_path / "home")
    counted = stories(world, examples=25, steps=10)
    world.runs.close()
    done = {operation for operation, status in counted if status < 300}
    assert {"createJob", "getJob", "cancelJob", "deleteJob", "createToken", "revokeToken"} <= done
    gone = {operation for operation, status in counted if status == 404}
    assert gone & {"getJob", "patchJob", "cancelJob", "suspendJob", "resumeJob", "deleteJob"}, "after it was deleted"


# ------------------------------------------------------------------ what is planted is found

Answer = tuple[int, str, Any]
"""Status, media type, document."""


@dataclass
class Planted:
    """The application with a defect in its answers to requests of one kind."""

    app: ASGIApp
    request: str
    """Pattern of `METHOD path?query`."""
    change: Callable[[Answer], Answer]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = scope["query_string"].decode()
        if not re.fullmatch(self.request, f"{scope['method']} {scope['path']}?{query}"):
            await self.app(scope, receive, send)
            return
        begun: Message = {}
        body = b""

        async def keep(message: Message) -> None:
            nonlocal begun, body
            begun = message if message["type"] == "http.response.start" else begun
            body += message.get("body", b"")

        await self.app(scope, receive, keep)
        kind = dict(begun["headers"]).get(b"content-type", b"").decode()
        status, kind, document = self.change((begun["status"], kind, json.loads(body)))
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})
        await send({"type": "http.response.body", "body": json.dumps(document).encode()})


def _set(path: str, value: object) -> Callable[[Answer], Answer]:
    """In answers of success."""

    def change(answer: Answer) -> Answer:
        status, kind, document = answer
        if status < 300:
            *way, last = path.split(".")
            inner = document
            for part in way:
                inner = inner[part]
            inner[last] = value
        return status, kind, document

    return change


ANY = GenerationMode.POSITIVE, 20
DEFECTS: dict[str, tuple[str, str, Callable[[Answer], Answer], tuple[GenerationMode, int], str]] = {
    "a field that the document does not have": (
        "readCost", r"GET .*/cost\?", _set("secret", 1), ANY, "Response violates schema",
    ),
    "a number in the place of text": (
        "getJob", r"GET /v1/jobs/[^/]+/[^/]+\?", _set("metadata.uid", 7), ANY, "Response violates schema",
    ),
    "a status that is not documented": (
        "listJobs", r"GET /v1/jobs\?.*", lambda answer: (206, *answer[1:]), ANY, "Undocumented status code",
    ),
    "another media type": (
        "whoAmI", r"GET /v1/me\?", lambda answer: (answer[0], "text/html", answer[2]), ANY, "Undocumented Content-Type",
    ),
    "a crash that takes an unlikely value": (
        "listAudit", r"GET /v1/audit\?.*limit=[5-9]\d\d.*", lambda answer: (500, *answer[1:]),
        (GenerationMode.POSITIVE, 100), "Server error",
    ),
    "nonsense that is accepted": (
        "listJobs", r"GET /v1/jobs\?.+", lambda answer: (200, "application/json", {"items": [], "next": ""}),
        (GenerationMode.NEGATIVE, 20), "Schema-violating request accepted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(name: str, tmp_path: Path) -> None:
    operation, request, change, (mode, examples), words = DEFECTS[name]
    world = World.make(tmp_path / "home", lambda app: Planted(app, request, change))
    with pytest.raises(FailureGroup, match=words):
        world.ask(operation, examples=examples, mode=mode)
    world.runs.close()


def test_a_job_that_is_there_after_it_was_deleted_is_found(tmp_path: Path) -> None:
    world = World.make(tmp_path / "home")
    with pytest.raises(FailureGroup, match="Deleted resource still available"):
        stories(world, examples=60, steps=10, forgets=False)
    world.runs.close()
