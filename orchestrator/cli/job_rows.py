"""Jobs as rows of a table and as one page of facts. Pure, but for the clock that is handed in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from orchestrator.cli.output import Column, Row

if TYPE_CHECKING:
    from orchestrator.client import Job
    from orchestrator.spec import Compute

_COLOURS = {
    "Succeeded": "good", "Running": "busy", "Starting": "busy", "Failed": "bad", "Cancelled": "bad",
    "Suspended": "wait", "Queued": "wait", "Pending": "wait", "Planned": "wait",
}  # fmt: skip

COLUMNS = (
    Column("TEAM", wide=True),
    Column("NAME"),
    Column("PHASE", colour=lambda phase: _COLOURS.get(phase, "")),
    Column("STEP", right=True),
    Column("LOSS", right=True),
    Column("TOK/S", right=True),
    Column("SPENT", right=True),
    Column("LIMIT", right=True),
    Column("BURN/H", right=True),
    Column("ETA", right=True),
    Column("AGE", right=True),
    Column("ATTEMPTS", right=True, wide=True),
    Column("DEVICES", right=True, wide=True),
    Column("TOKENS", right=True, wide=True),
    Column("FORECAST", right=True, wide=True),
    Column("BY", wide=True),
    Column("WHY", wide=True),
)


def key_of(document: Mapping[str, Any]) -> str:
    """team/name."""
    return f"{document['metadata']['namespace']}/{document['metadata']['name']}"


def row(job: Job, now: datetime, *, with_team: bool = False) -> Row:
    """`with_team`: the name says whose it is."""
    from orchestrator.cli.live import duration

    status, cost = job.status, job.status.cost
    seen = status.progress
    cells = {
        "TEAM": job.team,
        "NAME": job.key if with_team else job.name,
        "PHASE": job.phase.value,
        "AGE": age((now - job.metadata.created_at).total_seconds()),
        "ATTEMPTS": str(status.attempt_count or ""),
        "DEVICES": devices(job.spec.compute),
        "FORECAST": forecast(job),
        "BY": job.metadata.created_by,
        "WHY": why(job),
        "LIMIT": amount(job.spec.budget.limit, job.spec.budget.currency) if job.spec.budget else "",
    }
    if seen is not None:
        cells |= {
            "STEP": f"{seen.step}/{seen.steps}",
            "LOSS": f"{float(seen.loss):.3f}" if seen.loss else "",
            "TOK/S": f"{float(seen.tokens_per_second):,.0f}" if seen.tokens_per_second and moving(job) else "",
            "TOKENS": f"{seen.tokens:,}",
            "ETA": duration(seen.eta_seconds) if seen.eta_seconds is not None and moving(job) else "",
        }
    if cost is not None:
        burning = Decimal(cost.burn_per_hour) > 0
        cells |= {
            "SPENT": amount(cost.spent, cost.currency),
            "BURN/H": amount(cost.burn_per_hour, cost.currency) if burning else "",
        }
    return cells


def facts_of(job: Job, now: datetime) -> list[tuple[str, str]]:
    """Everything that one looks for first."""
    cells, spec, status = row(job, now), job.spec, job.status
    conditions = "\n".join(
        f"{one.type} {one.status} ({one.reason})" + (f": {one.message}" if one.message else "")
        for one in status.conditions
    )
    attempts = "\n".join(
        f"{one.number}: {one.outcome or 'running'}{_steps(one.from_step, one.to_step)}"
        + (f", {one.cost} {status.cost.currency}" if one.cost and status.cost else "")
        + (f": {one.reason}" if one.reason else "")
        for one in status.attempts
    )
    spent = cells.get("SPENT", "")
    limit = cells["LIMIT"]
    money = ", ".join(
        words
        for words in (
            spent and f"{spent} spent",
            cells.get("BURN/H", "") and f"{cells['BURN/H']} per hour",
            limit and f"limit {limit}",
            cells["FORECAST"] and f"forecast {cells['FORECAST']}",
        )
        if words
    )
    speed = cells.get("TOK/S", "")
    return [
        ("job", job.key),
        ("phase", cells["PHASE"]),
        ("why", cells["WHY"]),
        ("model", f"{spec.model.preset or 'own'}, {spec.training.tokens:,} tokens, task {spec.task}"),
        ("devices", cells["DEVICES"]),
        ("step", cells.get("STEP", "")),
        ("loss", cells.get("LOSS", "")),
        ("speed", speed and f"{speed} tokens/s, {cells.get('ETA', '-')} left"),
        ("money", money),
        ("attempts", attempts),
        ("conditions", conditions),
        ("mlflow", (status.mlflow.url or status.mlflow.run_id) if status.mlflow else ""),
        ("folder", job.metadata.folder or ""),
        ("submitted", f"{job.metadata.created_at:%Y-%m-%d %H:%M:%S} UTC by {job.metadata.created_by}"),
    ]


def moving(job: Job) -> bool:
    """Whether its pace is of now."""
    return job.phase.value in ("Starting", "Running")


def devices(compute: Compute) -> str:
    """E.g. 2 CPU workers, or 8 H100."""
    number = compute.world_size
    if compute.accelerator != "cpu":
        return f"{number} {compute.accelerator}"
    return f"{number} CPU worker" + "s" * (number != 1)


def forecast(job: Job) -> str:
    """The lower and the upper end of the whole cost, the newest that is known."""
    cost, plan = job.status.cost, job.status.plan
    if cost is not None and cost.forecast_low and cost.forecast_high:
        low, high, currency = cost.forecast_low, cost.forecast_high, cost.currency
    elif plan is not None and plan.cost_low and plan.cost_high and plan.currency:
        low, high, currency = plan.cost_low, plan.cost_high, plan.currency
    else:
        return ""
    return f"{amount(low, currency)}-{amount(high, currency)}"


def why(job: Job) -> str:
    """The condition that says why the phase is what it is."""
    by_phase = {
        "Running": "Running", "Starting": "Running", "Queued": "Admitted", "Planned": "Admitted",
        "Pending": "Accepted", "Suspended": "BudgetOK",
    }  # fmt: skip
    wanted = by_phase.get(job.phase.value, "Complete")
    by_type = {one.type.value: one for one in job.status.conditions}
    for kind in (wanted, "Complete", "Running", "Admitted"):
        if (found := by_type.get(kind)) is not None and found.message:
            return found.message
    return ""


def amount(text: str, currency: str) -> str:
    """Money for people."""
    from orchestrator.cost.meter import money

    return money(Decimal(text), currency)


def age(seconds: float) -> str:
    """The largest unit of which there are two: 90s, 5m, 30h, 12d."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def _steps(first: int | None, last: int | None) -> str:
    """Which steps an attempt did; nothing while it did none."""
    return "" if first is None and last is None else f", steps {first or 0} to {'-' if last is None else last}"
