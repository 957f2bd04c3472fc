from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from support.recipes import tiny_recipe
from support.runs import RATE, event, resolved, tiny_job

from model.flops import count
from orchestrator.controller.observe import Observation
from orchestrator.controller.report import job_status, run_parameters
from orchestrator.cost.ledger import build_ledger
from orchestrator.cost.timeline import Held
from orchestrator.launch.choices import Choice
from orchestrator.launch.events import Event
from orchestrator.plan.basis import Basis
from orchestrator.plan.cpu import CpuRates
from orchestrator.plan.estimate import estimate
from orchestrator.plan.forecast import Plan, Range
from orchestrator.plan.request import request_of
from orchestrator.settings import Settings
from orchestrator.status import ConditionType, JobStatus, Phase
from orchestrator.tracking.mlflow import Reference

SETTINGS = Settings.load({"FATHOM_HOME": "/nowhere"})
UP = event("started", 10.0, step=0, tokens=0, world_size=2)
STEP = event("progress", 12.0, step=2, tokens=128, metrics={"train/loss": 2.5, "train/tokens_per_second": 64.0})
SAVED = event("checkpoint-committed", 13.0, step=2, uri="x", size_bytes=1, seconds=0.5)


def status(
    events: Sequence[Event],
    held: Sequence[Held],
    forecast: Plan | None = None,
    **changes: Any,  # noqa: ANN401 - fields
) -> JobStatus:
    plan = resolved(attempt=held[-1].attempt, **changes)
    seen = Observation(steps=8, total_tokens=8 * 64)
    for one in events:
        seen.add(one)
    run = Reference("3", "abc", None)
    return job_status(plan, seen, events, build_ledger(events, held, plan.rate), held, run, None, forecast)


def answers(found: JobStatus) -> dict[ConditionType, tuple[str, str, float]]:
    return {c.type: (c.status, c.reason, c.last_transition_time.timestamp()) for c in found.conditions}


def test_before_the_workers_are_up() -> None:
    found = status([], [Held(1, 0.0, 5.0)])
    assert found.phase is Phase.STARTING
    assert found.progress is None
    assert answers(found)[ConditionType.RUNNING] == ("False", "Starting", 0.0)
    assert found.cost is not None
    assert (found.cost.spent, found.cost.burn_per_hour) == ("5.000000", "3600.000000")


def test_while_it_trains() -> None:
    found = status([UP, STEP, SAVED], [Held(1, 0.0, 14.0)])
    assert found.phase is Phase.RUNNING
    assert answers(found)[ConditionType.RUNNING] == ("True", "MakingProgress", 10.0)
    assert answers(found)[ConditionType.COMPLETE][:2] == ("False", "NotEnded")
    assert found.progress is not None
    shown = (found.progress.step, found.progress.steps, found.progress.loss, found.progress.eta_seconds)
    assert shown == (2, 8, "2.500000", 6)
    [attempt] = found.attempts
    assert (attempt.from_step, attempt.ended_at, attempt.cost) == (0, None, "14.000000")
    assert attempt.gpu_hours == "0.007778", "two devices for 14 seconds"
    assert found.mlflow is not None
    assert found.mlflow.run_id == "abc"


@pytest.mark.parametrize(
    ("outcome", "failure", "phase", "complete"),
    [
        ("succeeded", None, Phase.SUCCEEDED, ("True", "Succeeded", 15.0)),
        ("stopped", "interrupted", Phase.SUSPENDED, ("False", "NotEnded", 0.0)),
        ("failed", "not-finite", Phase.FAILED, ("True", "Failed", 15.0)),
    ],
)
def test_the_end(outcome: str, failure: str | None, phase: Phase, complete: tuple[str, str, float]) -> None:
    end = event("ended", 15.0, outcome=outcome, failure_class=failure, message="m" * 4000, step=2)
    found = status([UP, STEP, end], [Held(1, 0.0, 16.0)])
    assert found.phase is phase
    assert answers(found)[ConditionType.COMPLETE] == complete
    assert answers(found)[ConditionType.RUNNING] == ("False", "Ended", 15.0)
    assert found.cost is not None
    assert found.cost.burn_per_hour == "0.000000", "nothing is held any more"
    assert found.attempts[0].to_step == 2
    assert JobStatus.model_validate_json(found.model_dump_json(by_alias=True)) == found


def test_a_second_attempt_and_what_the_first_one_wasted() -> None:
    events = [
        UP,
        STEP,
        SAVED,
        event("ended", 15.0, outcome="failed", failure_class="driver-lost", message="gone", step=2),
        event("started", 25.0, attempt=2, step=2, tokens=128, world_size=2, resumed_from="x"),
        event("progress", 27.0, attempt=2, step=3, tokens=192, metrics={}),
    ]
    found = status(events, [Held(1, 0.0, 16.0), Held(2, 20.0, 28.0)])
    assert found.phase is Phase.RUNNING
    assert answers(found)[ConditionType.RUNNING] == ("True", "MakingProgress", 25.0)
    assert [(a.number, a.from_step, a.outcome) for a in found.attempts] == [(1, 0, "failed"), (2, 2, None)]
    assert found.attempts[0].reason == "driver-lost: gone"
    assert found.cost is not None
    assert found.cost.spent == "24.000000", "the four seconds between the attempts cost nothing"
    # 3.5 s of the first attempt after its step, 7 s until the second one has made a step; it is in its next one now
    assert found.cost.wasted == "10.500000"


def test_many_attempts_are_counted_but_the_last_twenty_shown() -> None:
    found = status([], [Held(n, 10.0 * n, 10.0 * n + 1) for n in range(1, 31)])
    assert found.attempt_count == 30
    assert [a.number for a in found.attempts] == list(range(11, 31))


def test_a_loss_beyond_all_bounds_does_not_end_the_launcher() -> None:
    wild = event("progress", 12.0, step=2, tokens=128, metrics={"train/loss": 1e30})
    found = status([UP, wild], [Held(1, 0.0, 14.0)])
    assert found.progress is not None
    assert found.progress.loss is None
    assert found.progress.step == 2


@pytest.mark.parametrize("speed", [1e300, 1e17, 1e-300, 5e-324])
def test_a_speed_beyond_all_bounds_does_not_end_the_launcher(speed: float) -> None:
    wild = event("progress", 12.0, step=2, tokens=128, metrics={"train/tokens_per_second": speed})
    found = status([UP, wild], [Held(1, 0.0, 14.0)])
    assert found.progress is not None
    assert (found.progress.tokens_per_second is None) == (speed > 1)
    assert (found.progress.eta_seconds is None) == (speed < 1)


def test_without_a_record_of_held_time_there_is_still_a_status() -> None:
    events = [UP, STEP, event("ended", 15.0, outcome="succeeded", step=8)]
    seen = Observation(steps=8, total_tokens=8 * 64)
    for one in events:
        seen.add(one)
    found = job_status(resolved(), seen, events, build_ledger(events, [], RATE), [], None)
    assert found.phase is Phase.SUCCEEDED
    assert answers(found)[ConditionType.ACCEPTED] == ("True", "Valid", 10.0)
    assert found.attempts == []
    nothing = job_status(resolved(), Observation(steps=8), [], build_ledger([], [], RATE), [], None)
    assert nothing.phase is Phase.STARTING


def test_while_workers_are_started_again_it_does_not_run() -> None:
    lost = event("workers-lost", 13.0, message="rank 1: gone")
    found = status([UP, STEP, lost], [Held(1, 0.0, 14.0)])
    assert found.phase is Phase.STARTING
    assert answers(found)[ConditionType.RUNNING] == ("False", "Starting", 13.0)


def test_attempts_of_other_sizes_have_their_own_hours() -> None:
    held = [Held(1, 0.0, 3600.0), Held(2, 3600.0, 7200.0)]
    rates = {1: RATE.model_copy(update={"units": 4, "per_hour": RATE.per_hour * 2})}
    ledger = build_ledger([], held, RATE, rates)
    found = job_status(resolved(attempt=2), Observation(steps=8), [], ledger, held, None)
    assert [(a.gpu_hours, a.cost) for a in found.attempts] == [("4.000000", "7200.000000"), ("2.000000", "3600.000000")]


def test_choices_are_shown_with_their_reasons() -> None:
    found = status([], [Held(1, 0.0, 5.0)], chosen=(Choice(path="spec.a", value="1", reason="because"),))
    assert found.plan is not None
    assert [c.model_dump() for c in found.plan.choices] == [{"path": "spec.a", "value": "1", "reason": "because"}]
    assert found.plan.price_source == "a list (2026-06-01)"


def test_texts_of_any_length_fit() -> None:
    long = (Choice(path="spec.checkpoint.uri", value="/" + "d" * 4000, reason="r" * 4000),)
    found = status([], [Held(1, 0.0, 5.0)], chosen=long, rate=RATE.model_copy(update={"source": "s" * 500}))
    assert found.plan is not None
    assert (found.plan.price_source or "").endswith("s (2026-06-01)"), "the date is not cut off"


def forecast() -> Plan:
    basis = replace(Basis.load(SETTINGS), cpu=CpuRates(5e10, 2e10, 2e10, 1e10, 2e5, 1e9))
    return estimate(request_of(tiny_job()), basis)


def test_the_forecast_stands_in_the_status() -> None:
    plan = forecast()
    assert plan.cost is not None
    assert plan.hours is not None
    found = status([], [Held(1, 0.0, 5.0)], plan)
    assert found.plan is not None
    assert found.cost is not None
    assert float(found.plan.hours_low or 0) == pytest.approx(plan.hours.low, abs=1e-6)
    assert float(found.plan.hours_high or 0) == pytest.approx(plan.hours.high, abs=1e-6)
    low, high = (format(amount.quantize(Decimal("0.000001")), "f") for amount in (plan.cost.low, plan.cost.high))
    assert (found.plan.cost_low, found.plan.cost_high) == (low, high)
    assert (found.cost.forecast_low, found.cost.forecast_high) == (low, high)


def test_a_forecast_that_a_status_cannot_hold_is_left_out() -> None:
    plan, rate = forecast(), RATE.model_copy(update={"currency": "CHF"})
    foreign = status([], [Held(1, 0.0, 5.0)], plan, rate=rate)
    assert foreign.plan is not None
    assert (foreign.plan.cost_low, foreign.plan.hours_low is None) == (None, False), "in another currency"
    huge = plan.model_copy(update={"hours": Range(low=1.0, expected=1e17, high=1e18)})
    found = status([], [Held(1, 0.0, 5.0)], huge)
    assert found.plan is not None
    assert (found.plan.hours_low, found.plan.hours_high, found.plan.cost_low is None) == (None, None, False)


def test_the_forecast_is_a_parameter_too() -> None:
    plan = forecast()
    flat = run_parameters(resolved(), "cpu", plan)
    assert plan.cost is not None
    assert plan.hours is not None
    assert float(flat["forecast.cost"]) == pytest.approx(float(plan.cost.expected), rel=1e-5)
    assert float(flat["forecast.hours"]) == pytest.approx(plan.hours.expected, rel=1e-5)
    assert flat["forecast.cost_range"].endswith(" USD")
    assert "forecast.cost" not in run_parameters(resolved(), "cpu", plan.model_copy(update={"cost": None}))


def test_parameters_are_flat_text_and_counted() -> None:
    flat = run_parameters(resolved(), "H100")
    recipe = tiny_recipe()
    assert all(isinstance(v, str) for v in flat.values())
    assert flat["model.parameters_total"] == str(count(recipe.model).total)
    assert flat["schedule.learning_rate"] == "0.01"
    assert flat["layout.world_size"] == "1"
    assert flat["compute.accelerator"] == "H100"
    assert flat["batch_tokens"] == str(recipe.batch_tokens)
    assert flat["price_per_hour"] == "3600 USD"
    assert not [k for k, v in flat.items() if v == "None" or v.startswith("{")]


@pytest.mark.parametrize(
    ("limit", "failure", "expected"),
    [
        (None, None, ("True", "NoBudget", "")),
        ("18", None, ("True", "WithinBudget", "14.000000 of 18 is spent")),
        ("17.5", None, ("True", "NearLimit", "14.000000 of 17.5 is spent")),
        ("15", "over-budget", ("False", "LimitReached", "14.000000 of 15 is spent")),
    ],
)
def test_how_the_budget_is(limit: str | None, failure: str | None, expected: tuple[str, str, str]) -> None:
    held, events = [Held(1, 0.0, 14.0)], [UP, STEP, SAVED]
    if failure:
        events.append(event("ended", 14.0, outcome="stopped", failure_class=failure))
    plan, seen = resolved(), Observation(steps=8)
    for one in events:
        seen.add(one)
    ledger = build_ledger(events, held, plan.rate)
    found = job_status(plan, seen, events, ledger, held, None, None if limit is None else Decimal(limit))
    answer = found.condition(ConditionType.BUDGET_OK)
    assert answer is not None
    assert (answer.status, answer.reason, answer.message) == expected
    assert answer.last_transition_time.timestamp() == 14
