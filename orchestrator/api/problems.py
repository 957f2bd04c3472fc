"""Errors as documents: RFC 9457, with a code for programs and JSON pointers (RFC 6901) to what is wrong.

Invariants: whatever goes wrong is answered in this form; an error that we did not foresee says nothing of the inside,
only the id under which the log has it. `CODES` is the whole list; docs/problems.md explains each, and a test holds the
two together.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from orchestrator.errors import FathomError, InvalidJob, Problem, RateLimited
from orchestrator.schema import Part

TYPE = "https://fathom.dev/problems/"
MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 100
"""Of one answer: a body of nonsense has thousands."""
_LOG = logging.getLogger(__name__)


class Fault(Part):
    """One thing that is wrong."""

    pointer: str = Field(examples=["/spec/training/tokens"])
    """JSON pointer into the job, or into the body of the request; empty: none."""
    detail: str
    """What was found, what is wanted."""
    parameter: str | None = None
    """The parameter or header that is wrong, where it is not the body."""


class ProblemDocument(Part):
    """An error (RFC 9457)."""

    type: str = Field(examples=[TYPE + "not-found"])
    """A page about this kind of error."""
    title: str
    """The kind of error in words."""
    status: int
    """Of the HTTP answer."""
    detail: str
    """What is wrong here, the numbers, and what to do."""
    instance: str
    """The path that was asked for."""
    code: str = Field(examples=["not-found"])
    """The kind of error for programs; docs/problems.md lists all."""
    errors: list[Fault] = []
    """Everything that is wrong, one by one."""
    request_id: str
    """Under which the service's log has it."""


CODES: dict[str, tuple[int, str]] = {
    "usage": (400, "The request is wrong"),
    "invalid-json": (400, "The body is not usable JSON"),
    "invalid-request": (422, "The request does not have the form that is wanted"),
    "invalid-job": (422, "The job cannot run as it is written"),
    "unauthorized": (401, "A token is needed"),
    "forbidden": (403, "The token does not allow it"),
    "foreign-origin": (403, "Pages of other sites may not call this service"),
    "foreign-host": (421, "This service does not answer under that name"),
    "not-found": (404, "There is nothing of that name"),
    "method-not-allowed": (405, "The method is not for this address"),
    "slow-request": (408, "The body did not arrive in time"),
    "conflict": (409, "It exists already, or changed meanwhile"),
    "fenced": (409, "The attempt counts no more"),
    "stale-plan": (409, "The plan is not what would run now"),
    "idempotency-in-flight": (409, "The request with this key is still being worked on"),
    "idempotency-mismatch": (422, "The key came with another request before"),
    "precondition-failed": (412, "It is not in the state that If-Match names"),
    "too-large": (413, "The request is too large"),
    "unsupported-media": (415, "The body has another type than is wanted"),
    "rate-limited": (429, "Too many requests"),
    "over-budget": (402, "The budget does not allow it"),
    "unavailable": (503, "Something that the service needs does not work now"),
    "internal": (500, "The service has failed"),
}
"""Code -> HTTP status and title."""
_BY_STATUS = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 415: "unsupported-media"}


@dataclass(eq=False)
class Refusal(Exception):
    """An error of HTTP alone, which the tree of `orchestrator.errors` does not know."""

    code: str
    detail: str
    errors: Sequence[Fault] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


def pointer(path: str) -> str:
    """`spec.tracking.tags.a` -> `/spec/tracking/tags/a`; a text that is no path of fields has none."""
    if not path or " " in path:
        return ""
    return "".join("/" + _escaped(part) for part in path.split("."))


def problem_response(
    scope: Scope,
    code: str,
    detail: str,
    *,
    errors: Sequence[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer; the request's id is that which `api.limits` gave it."""
    status, title = CODES[code]
    document = ProblemDocument(
        type=TYPE + code,
        title=title,
        status=status,
        detail=detail,
        instance=printable(scope.get("path", "")),
        code=code,
        errors=list(errors[:MAX_ERRORS]),
        request_id=scope.get("state", {}).get("request_id", ""),
    )
    return JSONResponse(document.document(), status, dict(headers or {}), media_type=MEDIA_TYPE)


async def refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
    """The same from outside the application."""
    response = problem_response(scope, refusal.code, refusal.detail, errors=refusal.errors, headers=refusal.headers)
    await response(scope, receive, send)


def error_response(scope: Scope, error: FathomError) -> JSONResponse:
    """An error of our own tree."""
    faults = [_fault(problem) for problem in error.problems] if isinstance(error, InvalidJob) else []
    headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'} if error.code == "unauthorized" else {}
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    code = error.code if error.code in CODES else "internal"
    return problem_response(scope, code, printable(str(error), 10_000), errors=faults, headers=headers)


def printable(text: str, limit: int = 500) -> str:
    """Bounded text that every encoding holds: what comes over the wire may be half a character."""
    return text[:limit].encode(errors="replace").decode()


def install(app: FastAPI) -> None:
    """Answer all errors of the application in this form."""
    app.add_exception_handler(FathomError, _on_error)
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FathomError)
    if error.http_status >= 500:
        _LOG.error("request %s: %s", request.state.request_id, error, exc_info=error)
    return error_response(request.scope, error)


async def _on_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return problem_response(request.scope, error.code, error.detail, errors=error.errors, headers=error.headers)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [_parameter_fault(detail) for detail in error.errors()[:MAX_ERRORS]]
    detail = "; ".join(f"{fault.parameter or fault.pointer or 'body'}: {fault.detail}" for fault in faults[:5])
    return problem_response(request.scope, "invalid-request", printable(detail, 2000), errors=faults)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    """What FastAPI and Starlette refuse themselves."""
    assert isinstance(error, HTTPException)
    code, headers, detail = _BY_STATUS.get(error.status_code, "usage"), dict(error.headers or {}), str(error.detail)
    if code == "not-found":
        detail = "nothing is at this address: GET /openapi.json lists what there is"
    elif code == "method-not-allowed":
        headers["Allow"] = ", ".join(_methods(request))
        detail = f"{request.method} is not for this address, but {headers['Allow']}"
    return problem_response(request.scope, code, printable(detail), headers=headers)


def _methods(request: Request) -> list[str]:
    """What the address is for, by all routes that it has."""
    found = set[str]()
    for path, operations in request.app.openapi()["paths"].items():
        if compile_path(path)[0].match(request.url.path):
            found |= {method.upper() for method in operations}
    return sorted(found)


def _fault(problem: Problem) -> Fault:
    at = pointer(problem.path)
    return Fault(pointer=printable(at), detail=printable(problem.message if at else str(problem), 2000))


def _parameter_fault(detail: Mapping[str, Any]) -> Fault:
    """One finding of FastAPI's: in the body, or in a parameter."""
    where, *location = detail["loc"]
    message = printable(str(detail["msg"]))
    if where == "body":
        return Fault(pointer=printable("".join("/" + _escaped(str(part)) for part in location)), detail=message)
    return Fault(pointer="", parameter=printable(".".join(map(str, location))), detail=message)


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
