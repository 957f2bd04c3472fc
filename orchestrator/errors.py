"""The errors a user may see: raised everywhere in `orchestrator`, turned into text or codes at the edges.

    FathomError
    ├── InvalidJob     422  exit 2     the job cannot run as it is written
    ├── UsageError     400  exit 2     the command or request is wrong
    ├── Unauthorized   401  exit 2     no token, or none that counts
    ├── Forbidden      403  exit 2     the token does not allow it
    ├── NotFound       404  exit 3     what was named does not exist
    ├── Conflict       409  exit 4     it exists already, or changed meanwhile
    │   ├── StalePlan             409   what was planned is not what would run now
    │   ├── Fenced                409   a newer attempt of the job has begun, or this one is over
    │   ├── PreconditionFailed    412   If-Match names another state than the present one
    │   ├── IdempotencyMismatch   422   the Idempotency-Key came with another request before
    │   └── IdempotencyInFlight   409   the request with that key is still being worked on
    ├── OverBudget     402  exit 5     the budget does not allow it
    ├── RateLimited    429  exit 1     more at once, or in a minute, than a token may
    ├── RunFailed      500  exit 1     a run ended without success
    ├── Unavailable    503  exit 1     what is needed does not work now, e.g. the disk is full
    └── Interrupted    499  exit 130   a person stopped it

Every message says what is wrong, the numbers involved, and what to do. A test holds tree, codes and this
drawing together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

_SHOWN = 20


class FathomError(Exception):
    """Base of all errors meant for users; `code` is stable and may be relied on by programs."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a job."""

    path: str
    """The field as the user writes it, e.g. `spec.training.tokens`; or a file name; may be empty."""
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidJob(FathomError):
    """The job cannot run as it is written; `problems` holds all that was found, `str()` the first 20."""

    code = "invalid-job"
    http_status = 422
    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "an invalid job has at least one problem"
        super().__init__(list(problems))  # the argument itself: an exception is unpickled by calling its class
        self.problems = list(problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:_SHOWN]]
        hidden = len(self.problems) - len(lines)
        return "\n".join([*lines, f"... and {hidden} more"] if hidden else lines)


class UsageError(FathomError):
    """The command or request is wrong."""

    code = "usage"
    http_status = 400
    exit_code = 2


class Unauthorized(FathomError):
    """No token, or none that counts."""

    code = "unauthorized"
    http_status = 401
    exit_code = 2


class Forbidden(FathomError):
    """The token does not allow it."""

    code = "forbidden"
    http_status = 403
    exit_code = 2


class NotFound(FathomError):
    """What was named does not exist."""

    code = "not-found"
    http_status = 404
    exit_code = 3


class Conflict(FathomError):
    """It exists already, or changed since it was read."""

    code = "conflict"
    http_status = 409
    exit_code = 4


class StalePlan(Conflict):
    """What was planned is not what would run now."""

    code = "stale-plan"


class Fenced(Conflict):
    """Who speaks is of an attempt that counts no more: a newer one has begun, or it is over."""

    code = "fenced"


class PreconditionFailed(Conflict):
    """If-Match names another state of the object than the present one."""

    code = "precondition-failed"
    http_status = 412


class IdempotencyMismatch(Conflict):
    """The Idempotency-Key came with another request before."""

    code = "idempotency-mismatch"
    http_status = 422


class IdempotencyInFlight(Conflict):
    """The request with that Idempotency-Key is still being worked on."""

    code = "idempotency-in-flight"


class OverBudget(FathomError):
    """The budget does not allow it."""

    code = "over-budget"
    http_status = 402
    exit_code = 5


class RateLimited(FathomError):
    """More than a token may have at once, or in a minute."""

    code = "rate-limited"
    http_status = 429
    exit_code = 1

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        """`retry_after`: seconds until it is worth trying again."""
        super().__init__(message, retry_after)  # both: an exception is unpickled by calling its class
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class RunFailed(FathomError):
    """A run ended without success."""

    code = "run-failed"
    http_status = 500
    exit_code = 1


class Unavailable(FathomError):
    """What Fathom itself needs does not work now: its database, its disk."""

    code = "unavailable"
    http_status = 503
    exit_code = 1


class Interrupted(FathomError):
    """A person stopped the run (Ctrl-C or cancel)."""

    code = "interrupted"
    http_status = 499
    exit_code = 130
