"""Answers of the service as values or as errors of our own tree. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import (
    Conflict,
    FathomError,
    InvalidJob,
    NotFound,
    OverBudget,
    Problem,
    Unavailable,
    UsageError,
)

_BY_STATUS: dict[int, type[FathomError]] = {402: OverBudget, 404: NotFound, 409: Conflict, 412: Conflict}
_WAIT = frozenset({429, 502, 503, 504})
_MAX_TEXT = 300


@dataclass(frozen=True)
class Answer:
    """What came back, whoever brought it."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case names."""
    content: bytes = b""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:  # noqa: ANN401 - any JSON value
        """Unavailable where it is none."""
        try:
            return json.loads(self.content)
        except ValueError:
            raise Unavailable(f"the service's answer ({self.status}) is not JSON: {self.text()!r}") from None

    def text(self) -> str:
        """The beginning, for messages."""
        return self.content[:_MAX_TEXT].decode(errors="replace")

    def problem(self) -> dict[str, Any]:
        """The problem document (RFC 9457); empty where it is none."""
        if "json" not in self.headers.get("content-type", ""):
            return {}
        try:
            found = json.loads(self.content)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def code(self) -> str:
        """What programs know the problem by; empty where nothing is said."""
        return str(self.problem().get("code", ""))

    @property
    def retry_after(self) -> float | None:
        """Seconds that the service asks to wait."""
        text = self.headers.get("retry-after", "")
        return float(text) if text.isdigit() else None


def error_of(answer: Answer) -> FathomError:
    """The error that an answer stands for, as the service raised it."""
    found = answer.problem()
    if not found:
        return _unexpected(answer)
    problems = [_problem(one) for one in found.get("errors", []) if isinstance(one, dict)]
    kind = _kind(str(found.get("code", "")), answer.status)
    if kind is InvalidJob and problems:
        return InvalidJob(problems)
    said = found.get("detail") or found.get("title") or _of_kubernetes(found)
    lines = [str(said or f"the service answered {answer.status}")]
    lines += [f"  {problem}" for problem in problems]
    if answer.status >= 500 and (request := found.get("requestId")):
        lines.append(f"  in the service's log it is request {request}")
    error = (UsageError if kind is InvalidJob else kind)("\n".join(lines))
    if code := found.get("code"):
        error.__dict__["code"] = str(code)  # the service's own word, also where the tree has no class for it
    error.__dict__["problems"] = problems
    return error


def _of_kubernetes(found: Mapping[str, Any]) -> str:
    """What an API server says that does not lead to the service; empty for anything else."""
    if found.get("kind") != "Status" or not found.get("message"):
        return ""
    return f"the API server says: {found['message']}; FATHOM_SERVICE names the service, NAMESPACE/SCHEME:NAME:PORT"


def _unexpected(answer: Answer) -> FathomError:
    """Something else than our service speaks, or something between us and it."""
    if 300 <= answer.status < 400:
        where = answer.headers.get("location", "elsewhere")
        return UsageError(
            f"the address is answered with a redirection to {where}, which is not followed, because the token is for "
            "the address that was given only: set FATHOM_URL to the right one"
        )
    kind = Unavailable if answer.status in _WAIT or answer.status >= 500 else _kind("", answer.status)
    said = f": {text}" if (text := " ".join(answer.text().split())) else ""
    return kind(f"{answer.status} without a reason that Fathom knows{said}; is FATHOM_URL the address of its service?")


def _problem(one: Mapping[str, Any]) -> Problem:
    where = path_of(str(one.get("pointer") or "")) or str(one.get("parameter") or "")
    return Problem(where, str(one.get("detail", "")))


def path_of(pointer: str) -> str:
    """`/spec/training/tokens` (RFC 6901) as the user writes it: `spec.training.tokens`."""
    parts = pointer.removeprefix("#").removeprefix("/").split("/")
    return ".".join(part.replace("~1", "/").replace("~0", "~") for part in parts)


def _kind(code: str, status: int) -> type[FathomError]:
    """The class of the tree with this code, else the nearest to the status."""
    for kind in _tree(FathomError):
        if code and kind.code == code:
            return kind
    if status in _WAIT or status >= 500:
        return Unavailable
    return _BY_STATUS.get(status, UsageError)


def _tree(kind: type[FathomError]) -> Iterator[type[FathomError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _tree(below)
