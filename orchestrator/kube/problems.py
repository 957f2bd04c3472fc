"""What the API server refused, as errors of ours. Pure; the one place that knows its codes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import (
    Conflict,
    FathomError,
    Forbidden,
    InvalidJob,
    NotFound,
    Problem,
    RateLimited,
    Unauthorized,
    Unavailable,
    UsageError,
)
from orchestrator.kube.resources import Json

_SHOWN = 500
_LONGEST_WAIT = 300.0


class Gone(Unavailable):
    """The server no longer knows the state that a list or a watch was to go on from: list anew."""


class TryLater(Unavailable):
    """The server said when it is worth trying again."""

    def __init__(self, message: str, retry_after: float) -> None:
        """`retry_after`: seconds."""
        super().__init__(message, retry_after)  # both: an exception is unpickled by calling its class
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


def refusal(doing: str, status: int, headers: Mapping[str, str] | None, body: str | None) -> FathomError:
    """The error for an answer. `doing`: verb and target, e.g. `create Pod team-a/x`."""
    said = _said(body)
    words = f"{doing}: {_words(said, body) or f'the API server answered {status}'}"
    after = _retry_after(headers or {}, said)
    return error_for(status, words, after, said)


def error_for(status: int, words: str, after: float | None, said: Json) -> FathomError:
    """The class by HTTP status; `after`: seconds that the server asked to wait."""
    match status:
        case 401:
            return Unauthorized(f"{words}: check the token or kubeconfig that Fathom was given")
        case 403:
            return Forbidden(f"{words}: ask who runs the cluster for that right, or for more quota")
        case 404:
            return NotFound(f"{words}: check namespace and name, and that the kind is installed")
        case 409:
            return Conflict(f"{words}: read it again, then repeat")
        case 410:
            return Gone(f"{words}: what was read is too old, list anew")
        case 422:
            return InvalidJob(_problems(words, said))
        case 429:
            return RateLimited(
                f"{words}: the API server has too much to do, try later", 1.0 if after is None else after
            )
        case _ if 400 <= status < 500:
            return UsageError(f"{words} (HTTP {status})")
        case _ if after is not None:
            return TryLater(f"{words} (HTTP {status}): try later", after)
        case _:
            return Unavailable(f"{words} (HTTP {status}): see whether the API server is well")


def said_in_watch(doing: str, status: Json) -> FathomError:
    """The error for an ERROR event, which holds a Status."""
    code = status.get("code")
    return refusal(doing, code if isinstance(code, int) else 500, None, json.dumps(status))


def wait_asked(error: BaseException) -> float:
    """Seconds that the server asked to wait; 0 if it asked for nothing."""
    return error.retry_after if isinstance(error, RateLimited | TryLater) else 0.0


def _said(body: str | None) -> Json:
    try:
        said: Any = json.loads(body or "")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _words(said: Json, body: str | None) -> str:
    message = said.get("message")
    return (message if isinstance(message, str) and message else " ".join((body or "").split()))[:_SHOWN]


def _retry_after(headers: Mapping[str, str], said: Json) -> float | None:
    """From the header, then from the Status; nonsense counts as absent."""
    details = said.get("details")
    found = [headers.get("Retry-After"), details.get("retryAfterSeconds") if isinstance(details, dict) else None]
    for one in found:
        try:
            seconds = float(one)  # type: ignore[arg-type]  # None and dates are what the clause below is for
        except (TypeError, ValueError):
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, _LONGEST_WAIT)
    return None


def _problems(words: str, said: Json) -> list[Problem]:
    details = said.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    found = [
        Problem(str(one.get("field") or ""), str(one["message"]))
        for one in (causes if isinstance(causes, list) else [])
        if isinstance(one, dict) and one.get("message")
    ]
    return found or [Problem("", words)]
