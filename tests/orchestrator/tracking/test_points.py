from __future__ import annotations

from decimal import Decimal

import pytest
from support.runs import RATE, event

from orchestrator.cost.ledger import Held, build_ledger
from orchestrator.cost.meter import Spent, spent
from orchestrator.launch.events import Event
from orchestrator.tracking.points import Fold, Point, final_points


def progress(time: float, step: int, attempt: int = 1, **metrics: float) -> Event:
    return event("progress", time, attempt=attempt, step=step, tokens=step * 1000, metrics=metrics)


def spent_at(moment: float) -> Spent:
    return spent(moment, RATE)


class Folded:
    """Points by run and metric."""

    def __init__(self, *events: Event, flops: float | None = 2e9) -> None:
        self.said: list[str] = []
        self.fold = Fold(spent_at, lambda attempt: flops)
        self.points: dict[int | None, list[Point]] = {}
        for one in events:
            for run, points in self.fold.add(one).items():
                self.points.setdefault(run, []).extend(points)
            self.said += self.fold.remarks

    def of(self, name: str, run: int | None = None) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.points.get(run, []) if point.name == name]


def test_a_step_that_a_restart_repeats_is_shown_once_on_each_run() -> None:
    found = Folded(*(progress(t, s) for t, s in [(1, 1), (2, 2), (3, 1), (4, 2), (5, 3)]), progress(6, 2, 2))
    assert [step for step, _ in found.of("progress/tokens")] == [1, 2, 3]
    assert [step for step, _ in found.of("progress/tokens", 1)] == [1, 2, 3]
    assert [step for step, _ in found.of("progress/tokens", 2)] == [2]
    assert found.points[None][0].time == 1000


def test_metrics_of_one_step_may_come_in_two_events() -> None:
    found = Folded(progress(1, 1, **{"train/loss": 3.0}), progress(2, 1, **{"eval/bits_per_byte": 2.5}))
    assert found.of("eval/bits_per_byte") == [(1, 2.5)]
    assert len(found.of("progress/tokens")) == 1


def test_loss_against_what_it_cost() -> None:
    again = progress(4, 1, **{"train/loss": 2.5})
    found = Folded(progress(2, 1, **{"train/loss": 3.0}), again, progress(5, 2, **{"train/loss": 2.0}))
    assert found.of("loss_by/tokens") == [(1000, 3.0), (2000, 2.0)]
    assert found.of("loss_by/gflop") == [(2000, 3.0), (4000, 2.0)]
    assert found.of("loss_by/micro_usd") == [(2_000_000, 3.0), (4_000_000, 2.5), (5_000_000, 2.0)], "waste is paid too"
    assert found.of("cost/usd") == [(1, 2.0), (2, 5.0)]


def test_bits_per_byte_against_what_it_cost() -> None:
    found = Folded(progress(2, 1, **{"eval/bits_per_byte": 2.0}), flops=None)
    assert found.of("bits_per_byte_by/tokens") == [(1000, 2.0)]
    assert found.of("bits_per_byte_by/gflop") == [], "nobody knows the model of that attempt"


def test_steps_stay_within_64_bits() -> None:
    huge = event("progress", 1, step=1, tokens=10**18, metrics={"train/loss": 1.0})
    assert Folded(huge, flops=1e30).of("loss_by/gflop") == [(2**63 - 1, 1.0)]


def test_the_load_of_one_machine_and_of_several() -> None:
    def load(time: float, node: str, attempt: int = 1) -> Event:
        return event("machine-load", time, attempt=attempt, node=node, metrics={"cpu": time})

    found = Folded(progress(10, 1), load(12.9, "a"), load(12.95, "a"), load(13, "b"), load(14, "a"), load(15, "a", 2))
    assert found.of("system/cpu") == [(2, 12.9), (5, 15.0)]
    assert found.of("system/b/cpu") == [(3, 13.0)]
    assert found.of("system/a/cpu") == [(4, 14.0)]
    assert found.of("system/cpu", 2) == [(5, 15.0)]


def test_the_best_is_of_a_state_that_still_counts() -> None:
    bits = "eval/bits_per_byte"
    start = event("started", 4, step=2, tokens=0, world_size=2)
    found = Folded(progress(1, 2, **{bits: 3.0}), progress(2, 4, **{bits: 2.0}), start, progress(5, 4, **{bits: 2.5}))
    assert found.fold.best == (2.5, 4)
    assert found.of(bits) == [(2, 3.0), (4, 2.0)], "MLflow takes nothing back"


def test_a_later_evaluation_of_an_earlier_step() -> None:
    def evaluated(time: float, step: int, bits: float) -> Event:
        metrics = {"eval/bits_per_byte": bits, "eval/arc/acc": 0.5}
        return event("evaluated", time, step=step, tokens=step, metrics=metrics)

    trained = [progress(1, 1), progress(2, 2, **{"eval/bits_per_byte": 3.0}), progress(3, 3)]
    found = Folded(*trained, evaluated(9000, 1, 4.0), evaluated(9001, 1, 3.9), evaluated(9002, 2, 2.9))
    for run in (None, 1):
        assert found.of("eval/bits_per_byte", run) == [(2, 3.0), (1, 4.0)]
        assert found.of("eval/arc/acc", run) == [(1, 0.5), (2, 0.5)]
    assert found.said == [
        "step 1 has been evaluated before: MLflow keeps the first values of eval/bits_per_byte, eval/arc/acc",
        "step 2 has been evaluated before: MLflow keeps the first values of eval/bits_per_byte",
    ]
    assert found.fold.best == (3.0, 2)


def test_names_that_mlflow_refuses_are_left_out_and_told_once() -> None:
    found = Folded(progress(1, 1, **{"bad(name)": 1.0, "good": 1.0}), progress(2, 2, **{"bad(name)": 1.0}))
    assert found.said == ["MLflow takes no metric named 'bad(name)'; it is left out"]
    assert found.of("good") == [(1, 1.0)]
    assert found.of("bad(name)") == []


def test_totals_have_the_attempt_as_their_step_and_a_time_of_their_own() -> None:
    ledger = build_ledger([], [Held(1, 0, 2), Held(2, 4, 6.5)], RATE)
    found = {point.name: point for point in final_points(ledger, (2.5, 40))}
    assert found["ledger/usd"] == Point("ledger/usd", float(Decimal("4.5")), 6500, 2)
    assert (found["best/bits_per_byte"].value, found["best/step"].value) == (2.5, 40.0)
    assert "best/step" not in {point.name for point in final_points(ledger, None)}
    assert final_points(build_ledger([], [], RATE), None) == []


@pytest.mark.parametrize("time", [1e11, 1e300])
def test_a_mad_clock_stays_in_the_range_of_the_database(time: float) -> None:
    fold = Fold(lambda moment: spent(1.0, RATE), lambda attempt: None)
    assert fold.add(progress(1, 1).model_copy(update={"time": time}))[None][0].time == 10**14
