"""What a job's phase means for whoever waits for it. Pure."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.client.values import Job
from orchestrator.errors import Conflict, FathomError, Interrupted, OverBudget, RunFailed
from orchestrator.status import ConditionType, Phase, Reason


def over_budget(job: Job) -> bool:
    """Whether the job stands still because its money is spent."""
    found = [job.status.condition(kind) for kind in (ConditionType.COMPLETE, ConditionType.BUDGET_OK)]
    return job.phase is Phase.SUSPENDED and any(one is not None and one.reason is Reason.LIMIT_REACHED for one in found)


def at_rest(job: Job) -> bool:
    """Whether nothing more happens unless a person does something."""
    return job.phase.terminal or job.phase is Phase.SUSPENDED


def reached(job: Job, wanted: Collection[Phase]) -> bool:
    """Whether to wait no longer: one of the phases wanted, or any rest where none is named.

    Raises what the job ended with, where it never gets to any of them.
    """
    if not wanted:
        return at_rest(job)
    if job.phase in wanted:
        return True
    if job.phase.terminal:
        names = " or ".join(sorted(wanted))
        raise failure(job) or Conflict(f"{job.key} is {job.phase} and will not be {names}")
    return False


def failure(job: Job) -> FathomError | None:
    """What a job that is at rest failed with; None: it succeeded, or is not at rest."""
    if job.phase is Phase.FAILED:
        return RunFailed(f"{job.key} failed: {_why(job)}\nread `fathom logs {job.key}`; `fathom resume` tries it again")
    if job.phase is Phase.CANCELLED:
        return Interrupted(f"{job.key} was cancelled at {_where(job)}")
    if over_budget(job):
        budget, cost = job.spec.budget, job.status.cost
        spent = f" of which {cost.spent} are spent" if cost else ""
        limit = f"its limit of {budget.limit} {budget.currency}{spent}" if budget else "the limit of its team"
        return OverBudget(
            f"{job.key} stopped at {_where(job)}: {limit} does not allow more; it goes on by itself after "
            f"`fathom apply` of a higher budget.limit"
        )
    if job.phase is Phase.SUSPENDED:
        return Interrupted(f"{job.key} is suspended at {_where(job)}; go on with `fathom resume {job.key}`")
    return None


def _why(job: Job) -> str:
    complete = job.status.condition(ConditionType.COMPLETE)
    last = job.status.attempts[-1].reason if job.status.attempts else None
    return (complete.message if complete else "") or last or "no reason was given"


def _where(job: Job) -> str:
    seen = job.status.progress
    return f"step {seen.step} of {seen.steps}" if seen else "the start"
