"""Answers about jobs, and what every route's documentation says of errors."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from orchestrator.api.desk import Json
from orchestrator.api.preconditions import etag
from orchestrator.api.problems import CODES, MEDIA_TYPE, ProblemDocument
from orchestrator.store.base import StoredJob
from orchestrator.store.document import document

_ALWAYS = (
    "usage",
    "unauthorized",
    "forbidden",
    "foreign-host",
    "invalid-request",
    "rate-limited",
    "internal",
    "unavailable",
)


def job_response(stored: StoredJob, status: int = 200, headers: dict[str, str] | None = None) -> JSONResponse:
    """A job, with its ETag."""
    return JSONResponse(document(stored), status, {"ETag": etag(stored), **(headers or {})})


def problems(*codes: str) -> dict[int | str, Json]:
    """`responses=` of a route: these errors, and those that every route has."""
    by_status: dict[int | str, list[str]] = {}
    for code in (*_ALWAYS, *codes):
        by_status.setdefault(CODES[code][0], []).append(code)
    return {status: _documented(found) for status, found in sorted(by_status.items(), key=lambda item: str(item[0]))}


def _documented(codes: list[str]) -> Json:
    answer: dict[str, Any] = {
        "model": ProblemDocument,
        "description": "; ".join(f"{CODES[code][1]} (`{code}`)" for code in codes),
        "content": {MEDIA_TYPE: {}},
    }
    return answer
