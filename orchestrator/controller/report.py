"""The status of a job, and its parameters for MLflow, from what is known. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from model.dataset import DatasetManifest, content_digest
from model.flops import count, flops_per_token
from model.recipe import Recipe
from orchestrator.controller.observe import Observation
from orchestrator.cost.ledger import Ledger
from orchestrator.cost.timeline import Held
from orchestrator.launch.events import Ended, Event, FailureClass, Started, WorkersLost
from orchestrator.launch.resolve import Resolved
from orchestrator.plan.forecast import Plan as Forecast
from orchestrator.spec import Data
from orchestrator.status import (
    Attempt,
    Choice,
    Condition,
    ConditionType,
    Cost,
    JobStatus,
    MlflowRun,
    Phase,
    Plan,
    Progress,
    Reason,
)
from orchestrator.tracking.desired import DatasetRef
from orchestrator.tracking.mlflow import Reference
from orchestrator.tracking.names import ACCELERATOR

_SHOWN_ATTEMPTS = 20
NEAR = Decimal("0.8")
"""Share of the limit from which on the budget is nearly used up."""
_LARGEST = 1e17
"""What a status can write of a measured number."""


def training_flops(recipe: Recipe) -> float:
    """FLOPs per token, forward and backward."""
    mtp = recipe.model.num_nextn_predict_layers > 0
    return flops_per_token(recipe.model, recipe.sequence_length, causal=True, mtp=mtp)


def run_parameters(resolved: Resolved, accelerator: str, forecast: Forecast | None = None) -> dict[str, str]:
    """Everything that was decided, flat, on what it ran, the size of the model, and what the whole run was expected to
    take, as MLflow parameters."""
    recipe = resolved.recipe
    counts = count(recipe.model)
    own = {
        "model.parameters_total": counts.total,
        "model.parameters_active": counts.active,
        "model.parameters_mtp": counts.mtp,
        "model.training_flops_per_token": f"{training_flops(recipe):.6g}",
        "batch_tokens": recipe.batch_tokens,
        "total_tokens": recipe.total_tokens,
        "price_per_hour": f"{resolved.rate.per_hour} {resolved.rate.currency}",
        "price_source": f"{resolved.rate.source} ({resolved.rate.date})",
        "workers": resolved.workers,
        ACCELERATOR: accelerator,
    }
    if forecast is not None and forecast.hours is not None and forecast.cost is not None:
        own["forecast.hours"] = f"{forecast.hours.expected:.6g}"
        own["forecast.cost"] = f"{forecast.cost.expected:.6g}"
        own["forecast.cost_range"] = f"{forecast.cost.low:.6g} to {forecast.cost.high:.6g} {forecast.cost.currency}"
    # where a run lies differs always, and says nothing when runs are compared
    decided = recipe.model_dump(mode="json", exclude_none=True, exclude={"checkpoint": {"uri"}})
    return _flat(decided) | {k: str(v) for k, v in own.items()}


def data_tags(data: Data, manifest: DatasetManifest) -> dict[str, str]:
    """Licence and provenance of the text: the job's word, or else that of whoever prepared it."""
    known = {
        "data.license": data.license or _joined(source.license for source in manifest.sources),
        "data.provenance": data.provenance or _joined(source.provenance for source in manifest.sources),
    }
    return {name: value for name, value in known.items() if value}


def dataset_refs(uri: str, manifest: DatasetManifest) -> tuple[DatasetRef, ...]:
    """The data as MLflow's inputs of a run, one for each source and one for what is held out; each with a name of its
    own (see `DatasetRef`)."""
    name, sha256 = Path(uri).name, manifest.tokenizer.sha256
    parts = [
        DatasetRef(f"{name}-{source.name}", content_digest(sha256, source.train.shards), source.uri)
        for source in manifest.sources
    ]
    heldout = [shard for source in manifest.sources for shard in source.heldout.shards]
    return (*parts, DatasetRef(f"{name}-heldout", content_digest(sha256, heldout), uri, "evaluation"))


def _joined(parts: Iterable[str]) -> str:
    """Each part that is there, once."""
    return "; ".join(dict.fromkeys(part for part in parts if part))


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(item)
    return flat


def job_status(
    resolved: Resolved,
    seen: Observation,
    events: Sequence[Event],
    ledger: Ledger,
    held: Sequence[Held],
    run: Reference | None,
    limit: Decimal | None = None,
    forecast: Forecast | None = None,
    *,
    paid: bool = True,
) -> JobStatus:
    """The job's status by DESIGN: what was chosen, how far it is, what it cost. `held`: the current attempt is last;
    `limit`: of the budget, if there is one; `forecast`: made before the run; `paid`: whether a living attempt holds
    machines."""
    rate, totals = ledger.rate, ledger.totals
    living, plan = seen.ended is None and paid, plan_of(resolved, forecast)
    return JobStatus(
        phase=_phase(seen),
        conditions=[*_conditions(seen, events, held), budget_condition(seen, totals.cost, limit, held)],
        plan=plan,
        progress=_progress(seen),
        cost=Cost(
            spent=_decimal(totals.cost),
            burn_per_hour=_decimal(rate.per_hour if living else Decimal(0)),
            wasted=_decimal(totals.wasted),
            forecast_low=plan.cost_low,
            forecast_high=plan.cost_high,
            currency=rate.currency,
        ),
        attempts=_attempts(seen, events, ledger, held)[-_SHOWN_ATTEMPTS:],
        attempt_count=len({h.attempt for h in held}),
        mlflow=MlflowRun(experiment_id=run.experiment_id, run_id=run.run_id, url=run.url) if run else None,
    )


def plan_of(resolved: Resolved, forecast: Forecast | None) -> Plan:
    """What was chosen, and what it was expected to take; no forecast where it is in another currency than the price."""
    rate = resolved.rate
    hours, cost = (None, None) if forecast is None else (forecast.hours, forecast.cost)
    if cost is not None and (cost.currency != rate.currency or cost.high >= _LARGEST):
        cost = None
    if hours is not None and hours.high >= _LARGEST:
        hours = None
    return Plan(
        choices=[Choice(path=c.path, value=c.value[:1024], reason=c.reason[:1024]) for c in resolved.chosen],
        price_per_hour=_decimal(rate.per_hour),
        price_source=f"{rate.source[:480]} ({rate.date})",
        hours_low=None if hours is None else _decimal(Decimal(repr(hours.low))),
        hours_high=None if hours is None else _decimal(Decimal(repr(hours.high))),
        cost_low=None if cost is None else _decimal(cost.low),
        cost_high=None if cost is None else _decimal(cost.high),
        currency=rate.currency,
    )


def _phase(seen: Observation) -> Phase:
    if seen.ended is None:
        return Phase.RUNNING if seen.running else Phase.STARTING
    return {"succeeded": Phase.SUCCEEDED, "stopped": Phase.SUSPENDED, "failed": Phase.FAILED}[seen.ended.outcome]


def _conditions(seen: Observation, events: Sequence[Event], held: Sequence[Held]) -> list[Condition]:
    began = held[0].start if held else events[0].time if events else time.time()
    reasons = {
        None: (Reason.MAKING_PROGRESS if seen.running else Reason.STARTING, Reason.NOT_ENDED),
        "succeeded": (Reason.ENDED, Reason.SUCCEEDED),
        "stopped": (Reason.ENDED, Reason.NOT_ENDED),
        "failed": (Reason.ENDED, Reason.FAILED),
    }
    running, complete = reasons[seen.ended.outcome if seen.ended else None]
    message = seen.ended.message[:1000] if seen.ended else ""

    done = complete is not Reason.NOT_ENDED

    def said(kind: ConditionType, true: bool, since: float, reason: Reason, text: str = "") -> Condition:
        status: Literal["True", "False"] = "True" if true else "False"
        changed = datetime.fromtimestamp(since, UTC)
        return Condition(type=kind, status=status, reason=reason, message=text, last_transition_time=changed)

    return [
        said(ConditionType.ACCEPTED, True, began, Reason.VALID),
        said(ConditionType.RUNNING, seen.running, _running_since(events, began), running),
        said(ConditionType.COMPLETE, done, seen.ended.time if done and seen.ended else began, complete, message),
    ]


def budget_condition(seen: Observation, paid: Decimal, limit: Decimal | None, held: Sequence[Held]) -> Condition:
    """Since when it is so is not remembered: it is as of the last look."""
    over = seen.ended is not None and seen.ended.failure_class is FailureClass.OVER_BUDGET
    if limit is None:
        reason, message = Reason.NO_BUDGET, ""
    else:
        near = paid >= NEAR * limit
        reason = Reason.LIMIT_REACHED if over else Reason.NEAR_LIMIT if near else Reason.WITHIN_BUDGET
        message = f"{_decimal(paid)} of {limit} is spent"
    return Condition(
        type=ConditionType.BUDGET_OK,
        status="False" if over else "True",
        reason=reason,
        message=message,
        last_transition_time=datetime.fromtimestamp(held[-1].end if held else time.time(), UTC),
    )


def _running_since(events: Sequence[Event], began: float) -> float:
    """When workers last came up or went for good."""
    running, since = False, began
    for event in events:
        now = isinstance(event, Started) or (running and not isinstance(event, Ended | WorkersLost))
        if now != running:
            running, since = now, event.time
    return since


def _progress(seen: Observation) -> Progress | None:
    if not seen.step:
        return None
    speed, left = seen.tokens_per_second, seen.seconds_left
    loss = seen.metrics.get("train/loss")
    return Progress(
        step=seen.step,
        steps=seen.steps,
        tokens=seen.tokens,
        # one that exploded beyond what the status can write must not end the launcher
        loss=None if loss is None or abs(loss) >= _LARGEST else f"{loss:.6f}",
        tokens_per_second=None if speed is None or abs(speed) >= _LARGEST else f"{speed:.1f}",
        eta_seconds=None if left is None or left >= _LARGEST else round(left),
        observed_at=datetime.now(UTC),
    )


def _attempts(seen: Observation, events: Sequence[Event], ledger: Ledger, held: Sequence[Held]) -> list[Attempt]:
    ends = {e.attempt: e for e in events if isinstance(e, Ended)}
    out = []
    for number in sorted({h.attempt for h in held}):
        rows = [r for r in ledger.rows if r.attempt == number]
        end, own = ends.get(number), [h for h in held if h.attempt == number]
        used = sum((r.consumed_quantity for r in rows), Decimal(0))
        out.append(
            Attempt(
                number=number,
                started_at=datetime.fromtimestamp(own[0].start, UTC),
                ended_at=datetime.fromtimestamp(own[-1].end, UTC) if end else None,
                outcome=end.outcome if end else None,
                reason=f"{end.failure_class}: {end.message}"[:1000] if end and end.failure_class else None,
                gpu_hours=_decimal(used / 3600),
                cost=_decimal(sum((r.billed_cost for r in rows), Decimal(0))),
                from_step=seen.from_step.get(number),
                to_step=end.step if end else None,
            )
        )
    return out


def _decimal(value: Decimal) -> str:
    return format(value.quantize(Decimal("0.000001")), "f")
