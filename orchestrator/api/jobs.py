"""`/v1/jobs`: submit, list, read, change, end and forget. Wishes only: the controller makes them true."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from json import dumps
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response

from orchestrator.api.answers import job_response, problems
from orchestrator.api.auth import Name, Namespace, SeenJob, needs
from orchestrator.api.capacity import never
from orchestrator.api.desk import AtDesk, Caller, Desk
from orchestrator.api.documents import JobDocument, JobList, JobPatch, JobRequest
from orchestrator.api.once import DoOnce, Once
from orchestrator.api.patch import patched
from orchestrator.api.plans import load_basis, planned_now, price_of, require_currency
from orchestrator.api.preconditions import require_match
from orchestrator.api.rights import Principal, require_role, require_seen, seen_by
from orchestrator.api.signed import require_fresh, verify
from orchestrator.controller.admission import check
from orchestrator.controller.limit import require_limit
from orchestrator.controller.record import Record
from orchestrator.errors import (
    Conflict,
    InvalidJob,
    NotFound,
    PreconditionFailed,
    Problem,
    Unavailable,
    UsageError,
)
from orchestrator.launch.base import RunFolder
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus, Phase
from orchestrator.store.access import Role
from orchestrator.store.base import Query as Wanted
from orchestrator.store.base import StoredJob, Wish

router = APIRouter(prefix="/v1", tags=["jobs"])
_PATCH = {"$ref": f"#/components/schemas/{JobPatch.__name__}"}
_READER, _RUNNER = [needs(Role.READER)], [needs(Role.RUNNER)]
_CHANGED = problems("not-found", "conflict", "precondition-failed")
_ONCE = ("idempotency-in-flight", "idempotency-mismatch", "invalid-json", "too-large", "unsupported-media")
_ACTED = problems("not-found", "conflict", "precondition-failed", *_ONCE[:2])

IfMatch = Annotated[
    list[str] | None, Header(description="ETags of the state that is to be changed; it is changed in no other.")
]
"""Headers that come several times are one list."""
Force = Annotated[
    bool, Query(description="End it at once, without a last checkpoint, also where it is writing that already.")
]


@router.post(
    "/jobs",
    operation_id="createJob",
    summary="Submit a job",
    status_code=201,
    response_model=JobDocument,
    dependencies=_RUNNER,
    responses={
        **problems("invalid-job", "over-budget", "conflict", "stale-plan", *_ONCE),
        200: {"model": JobDocument, "description": "With `dryRun`: the job as it would be"},
    },
)
def create_job(
    body: JobRequest,
    request: Request,
    desk: AtDesk,
    caller: Caller,
    once: DoOnce,
    dry_run: Annotated[bool, Query(alias="dryRun", description="Only check it; nothing is kept.")] = False,
) -> Response:
    """It is checked as `fathom train` does: its form, its data, its price, the money of its team. Then it waits for the
    controller in phase Pending."""
    job = body.job.job(caller)
    request.state.job = f"{job.metadata.namespace}/{job.metadata.name}"
    require_role(caller, Role.RUNNER, job.metadata.namespace)

    def prepare() -> None:
        basis = load_basis(desk.settings)
        if body.plan is not None:
            planned = verify(body.plan, desk.settings.signing_key())
            require_fresh(planned, planned_now(job, price_of(job, basis), desk, until=0), datetime.now(UTC))
        with desk.far.read(job, caller.name):
            _require_possible(job, desk)

    def act(_: None) -> Response:
        if dry_run:
            return job_response(_would_be(job, caller, desk))
        stored = desk.store.create(job, by=caller.name)
        return job_response(stored, 201, {"Location": _path(stored)})

    response = once(prepare, act)
    desk.wake()
    return response


def _require_possible(job: TrainingJob, desk: Desk) -> None:
    try:
        check(job, desk.settings, desk.launcher)
    except UsageError as error:  # a file of the operator's
        raise Unavailable(str(error)) from error
    if unfit := never(job, desk.capacity()):
        raise InvalidJob([Problem("spec.compute.gpus", unfit)])


def _would_be(job: TrainingJob, caller: Principal, desk: Desk) -> StoredJob:
    """What would be stored; Conflict if the name is taken."""
    namespace, name = job.metadata.namespace, job.metadata.name
    try:
        there = desk.store.get(namespace, name)
    except NotFound:
        now = datetime.now(UTC)
        return StoredJob(str(uuid.UUID(int=0)), Wish(job), JobStatus(), 1, 1, now, caller.name, folder="")
    raise Conflict(f"{namespace}/{name} exists already ({there.status.phase}): give the job another name")


@router.get(
    "/jobs",
    operation_id="listJobs",
    summary="List jobs, newest first",
    response_model=JobList,
    dependencies=_READER,
    responses=problems("not-found"),
)
def list_jobs(
    request: Request,
    desk: AtDesk,
    caller: Caller,
    namespace: Annotated[str | None, Query(max_length=63, description="Of this team only.")] = None,
    phase: Annotated[list[Phase] | None, Query(description="In one of these phases only.")] = None,
    name: Annotated[str, Query(max_length=40, description="Only those whose name contains this.")] = "",
    limit: Annotated[int, Query(ge=1, le=1000, description="Jobs of one page.")] = 100,
    cursor: Annotated[str, Query(max_length=40, description="`next` of the page before.")] = "",
) -> Response:
    """Pages do not shift while jobs come and go."""
    wanted = Wanted(seen_by(caller, namespace), frozenset(phase or ()), name, limit, cursor)
    page = desk.store.texts(wanted)
    headers = {}
    if page.next:
        following = request.url.include_query_params(cursor=page.next)
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    body = f'{{"items":[{",".join(page.texts)}],"next":{dumps(page.next)}}}'
    return Response(body, headers=headers, media_type="application/json")


@router.get(
    "/jobs/{namespace}/{name}",
    operation_id="getJob",
    summary="Read a job",
    response_model=JobDocument,
    dependencies=_READER,
    responses=problems("not-found"),
)
def get_job(job: SeenJob) -> JSONResponse:
    """What is wished of it, and how it stands."""
    return job_response(job)


@router.patch(
    "/jobs/{namespace}/{name}",
    operation_id="patchJob",
    summary="Change a job",
    response_model=JobDocument,
    dependencies=_RUNNER,
    responses={**_CHANGED, **problems("invalid-job", "over-budget", *_ONCE[2:])},
    openapi_extra={"requestBody": {"content": {"application/merge-patch+json": {"schema": _PATCH}}}},
)
def patch_job(
    namespace: Namespace, name: Name, patch: JobPatch, desk: AtDesk, caller: Caller, if_match: IfMatch = None
) -> JSONResponse:
    """A merge patch (RFC 7396) of the fields that may change once a job is accepted: `budget.limit`, `suspend`,
    `retry`, `tracking.tags`, and `queue.priorityClass` until it is admitted."""

    def edit(stored: StoredJob) -> Wish:
        _require_wanted(stored, "changed")
        job = patched(stored, patch.root)
        if stored.wish.job.spec.budget is None and job.spec.budget is not None:
            require_currency(job.spec.budget, price_of(job, load_basis(desk.settings)))
        _require_limit(stored, job, desk)
        return replace(stored.wish, job=job)

    return job_response(_changed(desk, caller, namespace, name, if_match, edit))


def _require_limit(stored: StoredJob, job: TrainingJob, desk: Desk) -> None:
    """A limit that the run cannot keep, or its team not pay, is refused here, where a person is told."""
    budget, folder = job.spec.budget, RunFolder(desk.settings.home / stored.folder)
    if budget is None or budget == stored.wish.job.spec.budget or not folder.job.exists():
        return
    try:
        require_limit(Record.open(folder.root), budget, desk.settings)
    except UsageError as error:
        raise InvalidJob([Problem("spec.budget.limit", str(error))]) from None


@router.delete(
    "/jobs/{namespace}/{name}",
    operation_id="deleteJob",
    summary="End a job and forget it",
    status_code=202,
    response_model=JobDocument,
    dependencies=_RUNNER,
    responses=_CHANGED,
)
def delete_job(
    namespace: Namespace,
    name: Name,
    desk: AtDesk,
    caller: Caller,
    keep_files: Annotated[bool, Query(alias="keepFiles", description="Leave the run's folder where it is.")] = False,
    force: Force = False,
    if_match: IfMatch = None,
) -> JSONResponse:
    """It is ordered to save and to stop; once nothing of it runs its folder is removed, and it is forgotten."""

    def edit(stored: StoredJob) -> Wish:
        wish, now = stored.wish, datetime.now(UTC)
        kept, forced = wish.keep_files or keep_files, wish.force or force
        return replace(wish, deleted_at=wish.deleted_at or now, keep_files=kept, force=forced)

    return job_response(_changed(desk, caller, namespace, name, if_match, edit), 202)


def _action(verb: str, summary: str, edit: Callable[[StoredJob], Wish], text: str) -> None:
    """A route `:verb` that changes the wish."""

    @router.post(
        f"/jobs/{{namespace}}/{{name}}:{verb}",
        operation_id=f"{verb}Job",
        summary=summary,
        description=text,
        response_model=JobDocument,
        dependencies=_RUNNER,
        responses=_ACTED,
    )
    def act_on_job(
        namespace: Namespace, name: Name, desk: AtDesk, caller: Caller, once: DoOnce, if_match: IfMatch = None
    ) -> Response:
        return _acted(desk, once, lambda: _changed(desk, caller, namespace, name, if_match, edit))


def _acted(desk: Desk, once: Once, change: Callable[[], StoredJob]) -> Response:
    response = once(lambda: None, lambda _: job_response(change()))
    desk.wake()
    return response


@router.post(
    "/jobs/{namespace}/{name}:cancel",
    operation_id="cancelJob",
    summary="End a job for good",
    response_model=JobDocument,
    dependencies=_RUNNER,
    responses=_ACTED,
)
def cancel_job(
    namespace: Namespace,
    name: Name,
    desk: AtDesk,
    caller: Caller,
    once: DoOnce,
    force: Force = False,
    if_match: IfMatch = None,
) -> Response:
    """It writes a last checkpoint, ends, and is Cancelled. Nothing happens to one that has ended."""

    def edit(stored: StoredJob) -> Wish:
        wish = stored.wish
        if stored.status.phase.terminal:
            return wish
        return replace(wish, cancelled_at=wish.cancelled_at or datetime.now(UTC), force=wish.force or force)

    return _acted(desk, once, lambda: _changed(desk, caller, namespace, name, if_match, edit))


def _suspended(stored: StoredJob) -> Wish:
    _require_wanted(stored, "suspended")
    if stored.status.phase.terminal:
        raise Conflict(f"{_named(stored)} has ended ({stored.status.phase}): there is nothing to suspend")
    return _with_suspend(stored.wish, suspend=True)


def _resumed(stored: StoredJob) -> Wish:
    _require_wanted(stored, "resumed")
    phase, wish = stored.status.phase, stored.wish
    if phase in (Phase.SUCCEEDED, Phase.CANCELLED):
        raise Conflict(f"{_named(stored)} has ended ({phase}): submit it under another name to train again")
    if not wish.job.spec.suspend and phase not in (Phase.SUSPENDED, Phase.FAILED):
        return wish
    if stored.status.observed_generation < stored.generation and not wish.job.spec.suspend and wish.resumed:
        return wish  # resumed already, and the controller has not seen it yet
    granted = max(stored.status.attempt_count, wish.granted_after)
    return replace(_with_suspend(wish, suspend=False), granted_after=granted, resumed=wish.resumed + 1)


_action(
    "suspend", "Let a job wait", _suspended,
    "It writes a checkpoint and lets go of its machines until it is resumed.",
)  # fmt: skip
_action(
    "resume", "Let a job go on", _resumed,
    "A suspended or failed job goes on from its last checkpoint, with all its attempts granted anew. Nothing happens "
    "to one that goes on.",
)  # fmt: skip


def _changed(
    desk: Desk,
    caller: Principal,
    namespace: str,
    name: str,
    if_match: Sequence[str] | None,
    edit: Callable[[StoredJob], Wish],
) -> StoredJob:
    """The job with another wish. Made of the state that was looked at, or not at all; without If-Match it is looked at
    again where somebody else was quicker."""
    require_seen(caller, namespace, name)
    while True:
        stored = desk.store.get(namespace, name)
        conditional = require_match(if_match or (), stored)
        wish = edit(_in_force(stored, desk))
        try:
            changed = desk.store.change(
                namespace,
                name,
                lambda _, wish=wish: wish,  # type: ignore[misc]  # bound now
                generation=stored.generation,
                uid=stored.uid,
            )
        except Conflict as error:
            if conditional:
                raise PreconditionFailed(str(error)) from None
            continue
        desk.wake()
        return changed


def _in_force(stored: StoredJob, desk: Desk) -> StoredJob:
    """With the limit that is in force: `fathom budget FOLDER` changes it in the run's folder, and the controller, which
    takes it over, looks there only while it has something to do with the job."""
    if stored.status.observed_generation < stored.generation:
        return stored  # what is wished is newer than what is in the folder
    try:
        budget = Record.open(desk.settings.home / stored.folder).job.spec.budget
    except (NotFound, UsageError):
        return stored
    if budget is None or budget == stored.wish.job.spec.budget:
        return stored
    spec = stored.wish.job.spec.model_copy(update={"budget": budget})
    return replace(stored, wish=replace(stored.wish, job=stored.wish.job.model_copy(update={"spec": spec})))


def _require_wanted(stored: StoredJob, done: str) -> None:
    """Conflict for a job that is ordered to end for good."""
    if stored.wish.deleted_at is not None or stored.wish.cancelled_at is not None:
        ending = "deleted" if stored.wish.deleted_at is not None else "cancelled"
        raise Conflict(f"{_named(stored)} is being {ending}, and cannot be {done} any more")


def _with_suspend(wish: Wish, *, suspend: bool) -> Wish:
    if wish.job.spec.suspend is suspend:
        return wish
    spec = wish.job.spec.model_copy(update={"suspend": suspend})
    return replace(wish, job=wish.job.model_copy(update={"spec": spec}))


def _named(stored: StoredJob) -> str:
    return f"{stored.namespace}/{stored.name}"


def _path(stored: StoredJob) -> str:
    return f"/v1/jobs/{stored.namespace}/{stored.name}"
