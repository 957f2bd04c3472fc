"""A merge patch (RFC 7396) of a job: what may change, changes; all else is refused by pointer. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from orchestrator.errors import InvalidJob, Problem
from orchestrator.jobfile import make_job
from orchestrator.spec import TrainingJob
from orchestrator.spec_words import ADMITTED, BELOW_SPENT, FIXED, MUTABLE, WAITING
from orchestrator.store.base import StoredJob
from orchestrator.store.document import document

Json = dict[str, Any]
_USERS = ("name", "namespace")


def patched(stored: StoredJob, patch: Json) -> TrainingJob:
    """The job after the patch. InvalidJob lists everything that it must not change, or that makes no job."""
    before = document(stored)
    after: Json = merged(before, patch)
    problems = [_fixed(path) for path in changes(_ours(before), _ours(after))]
    try:
        job = make_job(_theirs(after))
    except InvalidJob as error:
        raise InvalidJob([*problems, *error.problems]) from None
    found = changes(stored.wish.job.document(), job.document())
    problems += [problem for path in found if (problem := _problem(path, job, stored)) is not None]
    if problems:
        raise InvalidJob(problems)
    return job


def merged(target: Any, patch: Any) -> Any:  # noqa: ANN401 - any JSON values
    """RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def changes(before: Any, after: Any, path: str = "") -> Iterator[str]:  # noqa: ANN401 - any JSON values
    """Paths of the leaves that differ, come or go."""
    if before == after:
        return
    olds, news = (one if isinstance(one, dict) else {} for one in (before, after))
    if not olds and not news:
        yield path
    for key in sorted({*olds, *news}):
        yield from changes(olds.get(key), news.get(key), f"{path}.{key}" if path else key)


def _ours(document: Json) -> Json:
    """What Fathom says in it."""
    metadata = document.get("metadata")
    facts = metadata if isinstance(metadata, dict) else {}
    return {
        "metadata": {key: value for key, value in facts.items() if key not in _USERS},
        "status": document.get("status"),
    }


def _theirs(document: Json) -> Json:
    """What a person says in it."""
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        document = {**document, "metadata": {key: metadata[key] for key in _USERS if key in metadata}}
    return {key: value for key, value in document.items() if key != "status"}


def _problem(path: str, job: TrainingJob, stored: StoredJob) -> Problem | None:
    """Why this may not become what `job` says; None if it may."""
    first_budget = path.startswith("spec.budget.") and stored.wish.job.spec.budget is None
    if not first_budget and not any(path == field or path.startswith(f"{field}.") for field in MUTABLE):
        return _fixed(path)
    if path == "spec.queue.priorityClass" and stored.status.phase not in WAITING:
        return Problem(path, ADMITTED.format(phase=stored.status.phase))
    budget, cost = job.spec.budget, stored.status.cost
    if path == "spec.budget.limit" and budget and cost and budget.amount < Decimal(cost.spent):
        return Problem(path, BELOW_SPENT.format(limit=budget.limit, spent=cost.spent, currency=cost.currency))
    return None


def _fixed(path: str) -> Problem:
    if path.partition(".")[0] == "status" or (path.startswith("metadata.") and path.partition(".")[2] not in _USERS):
        return Problem(path, "is written by Fathom: leave it out")
    return Problem(path, FIXED)
