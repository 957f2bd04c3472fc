from __future__ import annotations

import pickle

import pytest

from orchestrator import errors
from orchestrator.errors import Conflict, FathomError, InvalidJob, Problem

TABLE = {
    "InvalidJob": ("invalid-job", 422, 2),
    "UsageError": ("usage", 400, 2),
    "Unauthorized": ("unauthorized", 401, 2),
    "Forbidden": ("forbidden", 403, 2),
    "NotFound": ("not-found", 404, 3),
    "Conflict": ("conflict", 409, 4),
    "StalePlan": ("stale-plan", 409, 4),
    "Fenced": ("fenced", 409, 4),
    "PreconditionFailed": ("precondition-failed", 412, 4),
    "IdempotencyMismatch": ("idempotency-mismatch", 422, 4),
    "IdempotencyInFlight": ("idempotency-in-flight", 409, 4),
    "OverBudget": ("over-budget", 402, 5),
    "RateLimited": ("rate-limited", 429, 1),
    "RunFailed": ("run-failed", 500, 1),
    "Unavailable": ("unavailable", 503, 1),
    "Interrupted": ("interrupted", 499, 130),
}


def test_every_error_has_its_codes() -> None:
    """Other modules may tell one kind of a Conflict from another for their own use; it answers as a Conflict does."""
    kinds = [*FathomError.__subclasses__(), *Conflict.__subclasses__()]
    kinds = [kind for kind in kinds if kind.__module__ == errors.__name__]
    found = {kind.__name__: (kind.code, kind.http_status, kind.exit_code) for kind in kinds}
    assert found == TABLE


@pytest.mark.parametrize("name", TABLE)
def test_the_drawing_tells_the_truth(name: str) -> None:
    [line] = [line for line in (errors.__doc__ or "").splitlines() if f"─ {name} " in line]
    _, status, code = TABLE[name]
    words = line.replace("│", "").split()
    assert words[1:3] == [name, str(status)]
    assert words[3:5] == ["exit", str(code)] or issubclass(getattr(errors, name), Conflict)


def test_invalid_job_lists_problems_one_a_line() -> None:
    error = InvalidJob([Problem("spec.training.tokens", "too few"), Problem("", "whole file")])
    assert str(error) == "spec.training.tokens: too few\nwhole file"


def test_invalid_job_shows_twenty_and_keeps_all() -> None:
    error = InvalidJob([Problem(f"p{number}", "bad") for number in range(25)])
    lines = str(error).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 5 more"
    assert len(error.problems) == 25


def test_invalid_job_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(InvalidJob([Problem("a", "b")])))
    assert error.problems == [Problem("a", "b")]
    assert str(error) == "a: b"


def test_when_to_try_again_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(errors.RateLimited("too many", 2.5)))
    assert (str(error), error.retry_after) == ("too many", 2.5)
