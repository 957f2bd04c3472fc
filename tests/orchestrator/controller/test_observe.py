from typing import Any

from pydantic import TypeAdapter

from orchestrator.controller.observe import Observation
from orchestrator.launch.events import Event

EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def event(kind: str, attempt: int = 1, **fields: Any) -> Event:  # noqa: ANN401 - field values
    keys = {"kind": kind, "job": "u", "attempt": attempt, "incarnation": "i", "seq": 1, "time": 0.0}
    return EVENT.validate_python(keys | fields)


def test_a_run_with_a_worker_restart_and_a_second_attempt() -> None:
    seen = Observation(steps=10, total_tokens=500)
    seen.add(event("started", step=0, tokens=0, world_size=2))
    assert seen.seconds_left is None
    for step in (1, 2, 3):
        speed = {"train/loss": 5.0 - step, "train/tokens_per_second": 100.0}
        seen.add(event("progress", step=step, tokens=50 * step, metrics=speed))
    assert seen.running
    assert (seen.step, seen.metrics["train/loss"], seen.tokens_per_second) == (3, 2.0, 100.0)
    assert seen.seconds_left == 7 * 50 / 100
    seen.add(event("checkpoint-committed", step=2, uri="x", size_bytes=1, seconds=0.1))
    seen.add(event("started", step=2, tokens=100, world_size=2, resumed_from="x"))
    assert (seen.restarts, seen.step, seen.checkpoint_step) == (1, 2, 2)
    seen.add(event("ended", outcome="failed", failure_class="driver-lost", message="gone"))
    assert not seen.running
    assert seen.ended is not None
    seen.add(event("started", attempt=2, step=2, tokens=100, world_size=2, resumed_from="x"))
    assert seen.running
    assert seen.ended is None
    assert seen.restarts == 1, "a new attempt is not a restart of workers"
    assert seen.from_step == {1: 0, 2: 2}


def test_machines_and_later_evaluations_are_no_news_of_training() -> None:
    seen = Observation(steps=10)
    seen.add(event("machine-load", node="n", metrics={"cpu_utilization_percentage": 5.0}))
    assert (seen.attempt, seen.running, seen.metrics) == (1, False, {}), "its driver lives, its workers not yet"
    seen.add(event("started", step=0, tokens=0, world_size=2))
    seen.add(event("progress", step=3, tokens=150, metrics={"eval/loss": 2.0}))
    seen.add(event("ended", outcome="stopped", failure_class="interrupted"))
    before = repr(seen)
    seen.add(event("machine-load", node="n", metrics={"cpu_utilization_percentage": 5.0}))
    for attempt in (1, 2):
        seen.add(event("evaluated", attempt, step=9, tokens=450, metrics={"eval/loss": 1.0}))
    assert repr(seen) == before, "nothing goes on, and nothing begins"


def test_what_people_are_told_at_once() -> None:
    seen = Observation(steps=10)
    seen.add(event("started", step=0, tokens=0, world_size=2))
    fault = {"step": 3, "data_step": 2, "fault": "spike", "action": "replay"}
    seen.add(event("anomaly", **fault, message="step 3: going back"))
    seen.add(event("workers-lost", message="rank 0: RolledBack"))
    assert not seen.running
    seen.add(event("started", step=0, tokens=0, world_size=2))
    seen.add(event("warning", message="mind the gap"))
    assert seen.running
    assert seen.restarts == 1
    expected = ["step 3: going back", "workers are started again: rank 0: RolledBack", "mind the gap"]
    assert seen.warnings == expected


def test_what_came_of_asking_for_fewer_bits_is_told() -> None:
    for arithmetic, told in (
        ("fp32: all products in FP32", []),
        *((t, [t]) for t in ("fp8: x", "bf16 instead of fp8", "bf16: slow here")),
    ):
        seen = Observation(steps=10)
        seen.add(event("started", step=0, tokens=0, world_size=2, arithmetic=arithmetic))
        assert seen.warnings == told
