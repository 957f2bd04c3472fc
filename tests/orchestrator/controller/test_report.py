import datetime
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter
from support.recipes import tiny_recipe

from model.flops import count
from orchestrator.controller.observe import Observation
from orchestrator.controller.report import job_status, run_parameters
from orchestrator.cost.ledger import build_ledger
from orchestrator.cost.meter import Rate
from orchestrator.cost.timeline import Held
from orchestrator.launch.choose import Choice
from orchestrator.launch.events import Event
from orchestrator.launch.resolve import JobRef, Resolved, TrackingTarget
from orchestrator.status import ConditionType, JobStatus, Reason
from orchestrator.tracking.mlflow import Reference

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
RATE = Rate(
    per_hour=Decimal(36), currency="USD", units=2, unit="cpu-hour", source="list", date=datetime.date(2026, 6, 1)
)
REFERENCE = Reference("7", "run", "http://mlflow/#/experiments/7/runs/run")


def resolved(**changes: Any) -> Resolved:  # noqa: ANN401 - field values
    fields: dict[str, Any] = {
        "job": JobRef(namespace="team", name="tiny", uid="u"),
        "attempt": 1,
        "incarnation": "i",
        "recipe": tiny_recipe(),
        "workers": 2,
        "cpus_per_worker": 1,
        "gpus_per_worker": 0,
        "rate": RATE,
        "max_failures": 4,
        "tracking": TrackingTarget(experiment="tiny", tags={}),
        "storage_uri": "/runs/tiny",
        "chosen": (Choice(path="spec.parallelism.expert", value="2", reason="two workers"),),
    }
    return Resolved.model_validate(fields | changes)


def event(kind: str, time: float, attempt: int = 1, **fields: Any) -> Event:  # noqa: ANN401 - field values
    keys = {"kind": kind, "job": "u", "attempt": attempt, "incarnation": f"i{attempt}", "seq": round(time) + 1}
    return EVENT.validate_python(keys | {"time": time} | fields)


def step(number: int, time: float, attempt: int = 1) -> Event:
    metrics = {"train/loss": 5.0 - number / 10, "train/tokens_per_second": 64.0}
    return event("progress", time, attempt, step=number, tokens=64 * number, metrics=metrics)


STARTED = event("started", 10.0, step=0, tokens=0, world_size=2)
STEPS = [step(1, 11.0), step(2, 12.0)]
SAVED = event("checkpoint-committed", 12.5, step=2, uri="x", size_bytes=1, seconds=0.5)
LOST = event("ended", 20.0, outcome="failed", failure_class="driver-lost", message="gone", step=2)
AGAIN = event("started", 30.0, 2, step=2, tokens=128, world_size=2, resumed_from="x")


def status(events: list[Event], held: list[Held], run: Reference | None = None, **changes: Any) -> JobStatus:  # noqa: ANN401
    seen = Observation(steps=8)
    for one in events:
        seen.add(one)
    return job_status(resolved(**changes), seen, events, build_ledger(events, held, RATE), held, run)


def answer(found: JobStatus, kind: ConditionType) -> tuple[str, Reason, float]:
    condition = found.condition(kind)
    assert condition is not None
    return condition.status, condition.reason, condition.last_transition_time.timestamp()


def test_before_the_workers_are_up() -> None:
    found = status([], [Held(1, 0.0, 5.0)])
    assert (found.phase, found.progress, found.mlflow) == ("Starting", None, None)
    assert found.cost is not None
    assert (found.cost.spent, found.cost.burn_per_hour, found.cost.wasted) == ("0.050000", "36.000000", "0.000000")
    assert found.plan is not None
    assert [choice.path for choice in found.plan.choices] == ["spec.parallelism.expert"]
    assert found.plan.price_source == "list (2026-06-01)"
    assert answer(found, ConditionType.RUNNING) == ("False", Reason.STARTING, 0.0)
    [attempt] = found.attempts
    assert (attempt.outcome, attempt.ended_at, attempt.from_step) == (None, None, None)


def test_while_it_trains() -> None:
    found = status([STARTED, *STEPS, SAVED], [Held(1, 0.0, 15.0)], REFERENCE)
    assert found.phase == "Running"
    assert found.progress is not None
    assert (found.progress.step, found.progress.steps, found.progress.tokens) == (2, 8, 128)
    assert (found.progress.loss, found.progress.tokens_per_second) == ("4.800000", "64.0")
    assert found.progress.eta_seconds == 6  # six steps of 64 tokens at 64 tokens/s
    assert answer(found, ConditionType.RUNNING) == ("True", Reason.MAKING_PROGRESS, 10.0)
    assert answer(found, ConditionType.COMPLETE) == ("False", Reason.NOT_ENDED, 0.0)
    assert found.mlflow is not None
    assert found.mlflow.url == REFERENCE.url
    later = status([STARTED, *STEPS, SAVED], [Held(1, 0.0, 16.0)], REFERENCE)
    assert later.conditions == found.conditions, "a condition that says the same has not changed"


def test_after_a_lost_attempt_and_a_finished_one() -> None:
    events = [STARTED, *STEPS, SAVED, LOST, AGAIN, step(8, 31.0, 2), event("ended", 35.0, 2, outcome="succeeded", step=8)]
    found = status(events, [Held(1, 0.0, 20.0), Held(2, 22.0, 36.0)], attempt=2)
    assert found.phase == "Succeeded"
    assert answer(found, ConditionType.RUNNING) == ("False", Reason.ENDED, 35.0)
    assert answer(found, ConditionType.COMPLETE) == ("True", Reason.SUCCEEDED, 35.0)
    assert found.cost is not None
    assert (found.cost.spent, found.cost.burn_per_hour) == ("0.340000", "0.000000")  # 34 s at 36 an hour
    first, second = found.attempts
    assert (first.outcome, first.reason, first.from_step, first.to_step) == ("failed", "driver-lost: gone", 0, 2)
    assert (second.outcome, second.reason, second.from_step, second.to_step) == ("succeeded", None, 2, 8)
    assert first.cost is not None
    assert second.cost is not None
    assert Decimal(first.cost) + Decimal(second.cost) == Decimal(found.cost.spent)
    assert first.gpu_hours == "0.011111"  # 20 s of two processors
    assert second.ended_at is not None
    assert second.ended_at.timestamp() == 36.0


def test_an_ordered_stop_is_no_end() -> None:
    ended = event("ended", 14.0, outcome="stopped", failure_class="interrupted", message="interrupted", step=2)
    found = status([STARTED, *STEPS, SAVED, ended], [Held(1, 0.0, 15.0)])
    assert found.phase == "Suspended"
    assert answer(found, ConditionType.COMPLETE)[:2] == ("False", Reason.NOT_ENDED)


def test_long_texts_are_cut_to_what_a_status_may_hold() -> None:
    ended = event("ended", 14.0, outcome="failed", failure_class="unknown", message="x" * 4000)
    chosen = (Choice(path="spec.checkpoint.uri", value="/" + "d" * 4000, reason="the run's own folder"),)
    rate = RATE.model_copy(update={"source": "s" * 2000})
    found = status([ended], [Held(1, 0.0, 15.0)], chosen=chosen, rate=rate)
    assert found.phase == "Failed"
    assert JobStatus.model_validate_json(found.model_dump_json(by_alias=True)) == found


def test_only_the_last_attempts_are_listed_and_all_are_counted() -> None:
    held = [Held(number, 10.0 * number, 10.0 * number + 5) for number in range(1, 31)]
    found = status([], held)
    assert found.attempt_count == 30
    assert [attempt.number for attempt in found.attempts] == list(range(11, 31))


def test_parameters_say_everything_flat() -> None:
    one = resolved()
    found = run_parameters(one)
    assert found["model.parameters_total"] == str(count(one.recipe.model).total)
    assert found["model.hidden_size"] == "32"
    assert found["schedule.learning_rate"] == "0.01"
    assert found["price_per_hour"] == "36 USD"
    assert found["total_tokens"] == str(8 * 4 * 16)
    assert all(isinstance(value, str) for value in found.values())
    assert not [key for key in found if "None" in found[key]]
