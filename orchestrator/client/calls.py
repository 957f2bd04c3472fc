"""Every request of the client, and how its answer is read. Pure: no I/O, no clock; both clients send what is made here.

Paths, methods and documents are those of the service's OpenAPI document.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from orchestrator.client.answers import Answer
from orchestrator.client.values import Given, Job, Me, PlannedJob, Token
from orchestrator.errors import Unavailable
from orchestrator.jobfile import load_job, make_job
from orchestrator.spec import TrainingJob

T = TypeVar("T")
G = TypeVar("G", bound=Given)
Document = dict[str, Any]
_RECORDS = 1000
"""Events or steps of one page: as many as the service gives."""
JobSource = TrainingJob | Mapping[str, Any] | Path
"""A job, its document, or the file that it is in."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, whoever sends it."""

    method: str
    path: str
    read: Callable[[Answer], T]
    query: Sequence[tuple[str, str]] = ()
    body: object = None
    """JSON, None for none."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again though it may have arrived."""
        return self.method == "GET" or "Idempotency-Key" in self.headers


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some items, and the cursor of those that follow."""

    items: Sequence[T]
    next: str
    more: bool
    """Whether there is more already; `next` of records is also where later ones will be."""


def job_of(source: JobSource, team: str | None = None) -> TrainingJob:
    """The job, in the given team where it names none; InvalidJob lists all that is wrong with it."""
    if isinstance(source, Path):
        job = load_job(source)
    elif isinstance(source, TrainingJob):
        job = source
    else:
        job = make_job(_copied(source))
    if team is None or "namespace" in job.metadata.model_fields_set:
        return job
    named = job.metadata.model_copy(update={"namespace": team})
    return job.model_copy(update={"metadata": named})


def _copied(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, Mapping):
        return {key: _copied(child) for key, child in value.items()}
    return [_copied(child) for child in value] if isinstance(value, list | tuple) else value


def given(job: TrainingJob) -> Document:
    """The document with what was given and nothing else: what is absent is chosen by the service."""
    document = job.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    return {"apiVersion": job.api_version, "kind": job.kind, **{k: v for k, v in document.items() if k != "status"}}


# Jobs


def plan(job: TrainingJob) -> Call[PlannedJob]:
    return _post("/v1/plans", _reads(PlannedJob), {"job": given(job)})


def create(job: TrainingJob, plan_id: str | None, *, dry_run: bool) -> Call[Job]:
    body = {"job": given(job)} | ({"plan": plan_id} if plan_id else {})
    return _post("/v1/jobs", _reads(Job), body, query=[("dryRun", "true")] if dry_run else [])


def get(team: str, name: str) -> Call[Job]:
    return Call("GET", job_path(team, name), _reads(Job))


def jobs(*, team: str | None, phases: Sequence[str], name: str | None, limit: int, cursor: str) -> Call[Page[Job]]:
    query = [("phase", phase) for phase in phases]
    query += [(key, value) for key, value in (("namespace", team), ("name", name), ("cursor", cursor)) if value]
    return Call("GET", "/v1/jobs", _page(_job), [*query, ("limit", str(limit))])


def patch(team: str, name: str, change: Document, etag: str | None) -> Call[Job]:
    headers = {"Content-Type": "application/merge-patch+json"} | ({"If-Match": etag} if etag else {})
    return Call("PATCH", job_path(team, name), _reads(Job), body=change, headers=headers)


def act(team: str, name: str, verb: str, *, force: bool = False) -> Call[Job]:
    """`verb`: cancel, suspend or resume; `force`: of cancel."""
    return _post(f"{job_path(team, name)}:{verb}", _reads(Job), query=[("force", "true")] if force else [])


def delete(team: str, name: str, *, keep_files: bool, force: bool) -> Call[None]:
    wanted = {"keepFiles": keep_files, "force": force}
    query = [(key, "true") for key, value in wanted.items() if value]
    return Call("DELETE", job_path(team, name), _nothing, query)


def document(path: str, query: Sequence[tuple[str, str]] = ()) -> Call[Document]:
    """A read whose JSON is passed on as it is."""
    return Call("GET", path, _document, query)


def records(team: str, name: str, kind: str, after: str) -> Call[Page[Document]]:
    """`kind`: events or metrics; `after`: where the page before ended."""
    query = [("after", after)] if after else []
    return Call("GET", f"{job_path(team, name)}/{kind}", _page(dict), [*query, ("limit", str(_RECORDS))])


def stream(team: str, name: str, kind: str, query: Sequence[tuple[str, str]], last: str) -> Call[None]:
    """Server-sent events of logs, events or metrics, those after `last`; a tail is of the beginning only."""
    kept = [(key, value) for key, value in query if not (last and key == "tail")]
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    resumed = {"Last-Event-ID": last} if last else {}
    path = f"{job_path(team, name)}/{kind}"
    return Call("GET", path, _nothing, [*kept, ("follow", "true")], headers=headers | resumed)


def log(team: str, name: str, query: Sequence[tuple[str, str]]) -> Call[None]:
    """The log as text, as far as it goes now."""
    return Call("GET", f"{job_path(team, name)}/logs", _nothing, query, headers={"Accept": "text/plain"})


# The rest


def me() -> Call[Me]:
    return Call("GET", "/v1/me", _reads(Me))


def make_token(name: str, role: str, team: str | None, days: float | None) -> Call[Token]:
    wanted: Document = {"name": name, "role": role, "team": team, "days": days}
    body = {key: value for key, value in wanted.items() if value is not None}
    return Call("POST", "/v1/tokens", _reads(Token), body=body)  # not repeatable: the secret is in one answer only


def tokens() -> Call[list[Token]]:
    return Call("GET", "/v1/tokens", lambda answer: list(_page(_token)(answer).items))


def revoke_token(name: str) -> Call[None]:
    return Call("DELETE", f"/v1/tokens/{name}", _nothing)


# Parts


def job_path(team: str, name: str) -> str:
    return f"/v1/jobs/{team}/{name}"


def _post(
    path: str, read: Callable[[Answer], T], body: object = None, query: Sequence[tuple[str, str]] = ()
) -> Call[T]:
    """With a key of its own, so that a second one that the service gets is answered as the first was."""
    return Call("POST", path, read, query, body, {"Idempotency-Key": secrets.token_hex(16)})


def _reads(kind: type[G]) -> Callable[[Answer], G]:
    return lambda answer: _value(kind, answer.json())


def _value(kind: type[G], found: object) -> G:
    try:
        return kind.model_validate(found, by_alias=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Unavailable(
            f"the service's answer is no {kind.__name__} as this client knows it ({where}: {first['msg']}): are "
            "client and service of the same version?"
        ) from None


def _job(found: object) -> Job:
    return _value(Job, found)


def _token(found: object) -> Token:
    return _value(Token, found)


def _page(item: Callable[[Any], T]) -> Callable[[Answer], Page[T]]:
    def read(answer: Answer) -> Page[T]:
        found = _document(answer)
        following = str(found.get("next") or "")
        return Page([item(one) for one in found.get("items", [])], following, bool(found.get("more", following)))

    return read


def _document(answer: Answer) -> Document:
    found = answer.json()
    if not isinstance(found, dict):
        raise Unavailable(f"the service's answer is no object: {answer.text()!r}")
    return found


def _nothing(_: Answer) -> None:
    return None
