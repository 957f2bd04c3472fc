import datetime
import itertools
import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stories import Story

from orchestrator.cost.ledger import Held, Ledger, build_ledger
from orchestrator.cost.meter import Rate, cost

RATE = Rate(
    per_hour=Decimal("36.00"),  # a cent a second
    currency="USD",
    units=8,
    unit="gpu-hour",
    source="a list",
    date=datetime.date(2026, 5, 1),
)


def seconds(ledger: Ledger) -> dict[str, float]:
    return {name: float(value) for name, value in ledger.totals.seconds_by_class.items() if value}


def test_quiet_run() -> None:
    story = Story()
    story.started(110, 0)
    story.progress(115, 1)
    story.progress(120, 2)
    story.saved(123, 2, 2)
    story.progress(130, 3)
    story.ended(131, "succeeded")
    ledger = build_ledger(story.events, [Held(1, 100, 133)], RATE)
    assert seconds(ledger) == {"starting": 15, "productive": 13, "checkpoint": 2, "idle": 3}
    assert ledger.totals.cost == Decimal("0.33")
    assert ledger.totals.wasted == Decimal("0.03")
    assert (ledger.totals.step, ledger.totals.tokens) == (3, 300)
    assert ledger.totals.cost_per_billion_tokens == Decimal("1100000")
    assert float(ledger.totals.hours) == pytest.approx(33 * 8 / 3600)
    classes = [row.time_class for row in ledger.rows]
    assert classes == ["starting", "productive", "checkpoint", "productive", "idle"]


def test_restart_inside_an_attempt_loses_what_it_repeats() -> None:
    story = Story()
    story.started(10, 0)
    for step in range(1, 7):
        story.progress(10 + step, step)  # until 16; productive from 11 on
        if step == 4:
            story.saved(14.5, 4, 0.5)
    story.started(30, 4)  # killed soon after 16; steps 5 and 6 are done again
    story.progress(33, 5)
    story.progress(34, 6)
    story.progress(35, 7)
    story.ended(35, "succeeded")
    ledger = build_ledger(story.events, [Held(1, 0, 36)], RATE)
    assert seconds(ledger) == {
        "starting": 11,
        "productive": 3 + 2,
        "checkpoint": 0.5,
        "lost": 1.5,
        "recovering": 17,
        "idle": 1,
    }
    assert ledger.totals.wasted == Decimal("0.195")
    assert ledger.totals.step == 7


def test_next_attempt_recovers_and_takes_the_tail_of_a_failed_one() -> None:
    story = Story()
    story.started(5, 0)
    story.progress(6, 1)
    story.progress(8, 2)
    story.ended(9, "failed")
    story.started(105, 2, attempt=2)
    story.progress(110, 3, attempt=2)
    story.progress(111, 4, attempt=2)
    held = [Held(2, 100, 111), Held(1, 0, 12)]
    ledger = build_ledger(story.events, held, RATE)
    assert seconds(ledger) == {"starting": 6, "productive": 3, "recovering": 4 + 10}
    assert [row.attempt for row in ledger.rows] == [1, 1, 1, 2, 2]


def test_stopped_attempt_ends_idle_and_resumes_without_loss() -> None:
    story = Story()
    story.started(5, 0)
    story.progress(6, 1)
    story.saved(8, 1, 1)
    story.ended(9, "stopped")
    story.started(25, 1, attempt=2)
    story.progress(27, 2, attempt=2)
    ledger = build_ledger(story.events, [Held(1, 0, 10), Held(2, 20, 27)], RATE)
    assert seconds(ledger) == {"starting": 6, "idle": 3, "checkpoint": 1, "recovering": 7}


def test_attempt_that_never_reached_a_step() -> None:
    story = Story()
    story.started(5, 0)
    story.ended(7, "failed")
    assert seconds(build_ledger(story.events, [Held(1, 0, 10)], RATE)) == {"starting": 7, "idle": 3}
    assert seconds(build_ledger([], [Held(1, 0, 10)], RATE)) == {"starting": 10}
    assert seconds(build_ledger([], [Held(1, 0, 10), Held(2, 20, 21)], RATE)) == {
        "starting": 10,
        "recovering": 1,
    }


def test_nothing_held_costs_nothing() -> None:
    ledger = build_ledger([], [], RATE)
    assert (ledger.rows, ledger.totals.cost, ledger.totals.cost_per_billion_tokens) == ((), 0, None)


def test_zombies_stragglers_and_repeated_events_divide_nothing() -> None:
    story = Story()
    story.started(1, 0, incarnation="old")
    story.progress(2, 1, incarnation="old")
    story.progress(3, 2, incarnation="old")
    story.started(5, 2, incarnation="new")
    story.progress(6, 3, incarnation="new")
    clean = build_ledger(story.events, [Held(1, 0, 7)], RATE)
    again = list(story.events)
    story.progress(6.5, 99, incarnation="old")  # a zombie's word
    story.progress(6.6, 1, incarnation="new")  # a straggler
    assert build_ledger([*story.events, *again], [Held(1, 0, 7)], RATE) == clean
    assert clean.totals.step == 3


def test_worker_clocks_outside_the_held_time_are_clamped() -> None:
    story = Story()
    story.started(-0.0, 0)
    story.progress(1e12, 1)
    story.progress(3, 2)
    assert seconds(build_ledger(story.events, [Held(1, 100, 110)], RATE)) == {"starting": 10}


def test_an_event_belongs_to_the_interval_that_had_begun_last() -> None:
    """At the moment of a beginning to that one, and before all of them to the first."""
    story = Story()
    story.started(5, 0)  # by a clock that is slow
    story.progress(12, 1)
    story.progress(15, 2)
    story.add("workers-lost", 30, message="gone")
    story.started(30, 2)
    story.progress(34, 3)
    ledger = build_ledger(story.events, [Held(1, 10, 20), Held(1, 30, 40)], RATE)
    assert [(row.time_class, row.cause, row.seconds) for row in ledger.rows] == [
        ("starting", None, 2),
        ("productive", None, 3),
        ("recovering", "preempted", 5),
        ("recovering", "preempted", 4),
        ("productive", None, 6),
    ]


def test_json_there_and_back_and_focus_names() -> None:
    story = Story()
    story.started(1.000001, 0)
    story.progress(2.3, 1)
    ledger = build_ledger(story.events, [Held(1, 0.1, 7.7)], RATE)
    text = ledger.to_json()
    assert Ledger.from_json(text) == ledger
    for name in ("ChargePeriodStart", "ChargePeriodEnd", "BilledCost", "BillingCurrency", "ConsumedQuantity"):
        assert f'"{name}"' in text
    assert "E-" not in text
    with pytest.raises(ValueError, match="rows add up to"):
        Ledger.from_json(text.replace(f'"cost": "{ledger.totals.cost:f}"', '"cost": "0.01"'))
    with pytest.raises(ValueError, match="not a valid ledger"):
        Ledger.from_json("[]")


OUTSIDE = st.tuples(
    st.integers(0, 10),
    st.floats(0, 2000),
    st.sampled_from([1, 2]),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["machine-load", "evaluated"]),
)


@given(st.lists(OUTSIDE, max_size=20))
def test_machines_and_later_evaluations_change_no_class(drawn: list[tuple[int, float, int, str, str]]) -> None:
    story = Story()
    story.started(5, 0)
    story.progress(6, 1)
    story.saved(8, 1, 1)
    story.progress(9, 2)
    story.ended(10, "failed", failure_class="stalled")
    story.started(105, 1, attempt=2, incarnation="b")
    story.progress(110, 2, attempt=2, incarnation="b")
    story.ended(112, "succeeded", attempt=2)
    held = [Held(1, 0, 30), Held(2, 100, 130)]
    before = build_ledger(story.events, held, RATE)
    events = story.events.copy()
    for place, time, attempt, incarnation, kind in drawn:  # by other clocks, and by anybody
        fields = {"node": "n"} if kind == "machine-load" else {"step": 50, "tokens": 5000}
        story.add(kind, time, attempt, incarnation, **fields)
        events.insert(place, story.events[-1])
    numbered = [event.model_copy(update={"seq": number}) for number, event in enumerate(events, 1)]
    assert build_ledger(numbered, held, RATE) == before


def test_an_interval_cannot_end_before_it_begins() -> None:
    with pytest.raises(ValueError, match="held until 1, before its start 2"):
        Held(1, 2, 1)
    for wrong in (float("nan"), float("inf"), 1e300, 253_402_300_800.0):  # the year 10000
        with pytest.raises(ValueError, match="not a time"):
            Held(1, 0, wrong)


def test_a_stall_is_waste_from_its_last_sign_of_life_to_the_kill() -> None:
    story = Story()
    story.started(10, 0)
    for step in range(1, 11):
        story.progress(10 + step, step)  # a step a second, until 20
    story.saved(17.2, 7, 0)
    story.ended(330, "failed", failure_class="stalled")
    story.started(360, 7, attempt=2)
    story.progress(370, 8, attempt=2)
    story.progress(371, 9, attempt=2)
    story.progress(372, 10, attempt=2)
    story.ended(373, "succeeded", attempt=2)
    ledger = build_ledger(story.events, [Held(1, 0, 331), Held(2, 335, 374)], RATE)
    assert seconds(ledger) == {
        "starting": 11,
        "productive": 6 + 2,
        "lost": 3,  # steps 8 to 10 are done again
        "recovering": 311 + 35,  # until the kill, and until the second attempt has done its first step
        "idle": 2,
    }
    assert ledger.totals.wasted == Decimal("3.51")


def test_a_stall_that_ends_the_job_is_no_idling_either() -> None:
    story = Story()
    story.started(10, 0)
    story.progress(11, 1)
    story.progress(20, 2)
    story.ended(330, "failed", failure_class="stalled")
    assert seconds(build_ledger(story.events, [Held(1, 0, 331)], RATE)) == {
        "starting": 11,
        "productive": 9,
        "recovering": 311,
    }
    story = Story()
    story.started(10, 0)
    story.progress(11, 1)
    story.ended(30, "failed", failure_class="worker-lost")
    assert seconds(build_ledger(story.events, [Held(1, 0, 31)], RATE)) == {"starting": 11, "idle": 20}


def test_a_stall_after_a_restart_inside_the_attempt() -> None:
    story = Story()
    story.started(10, 0)
    story.progress(11, 1)
    story.add("workers-lost", 20, message="gone")
    story.started(30, 0)
    story.ended(100, "failed", failure_class="stalled")
    story.started(120, 0, attempt=2)
    story.progress(130, 1, attempt=2)
    found = seconds(build_ledger(story.events, [Held(1, 0, 101), Held(2, 101, 130)], RATE))
    assert found == {"starting": 11, "recovering": 90 + 29}


@pytest.mark.parametrize("later", [0, 1, 5])
def test_a_checkpoint_that_is_told_later_takes_its_seconds_all_the_same(later: int) -> None:
    """Training stood still for 1.5 s after step 3; the files were there `later` steps of a second after that."""
    story = Story()
    story.started(0, 0)
    for step in range(1, 10):
        story.progress(10 + step + (1.5 if step > 3 else 0), step)
        if step == 3 + later:
            story.saved(10 + step + 1.5 + 0.1, 3, 1.5)
    ledger = build_ledger(story.events, [Held(1, 0, 20.5)], RATE)
    assert seconds(ledger) == {"starting": 11, "productive": 8, "checkpoint": 1.5}
    assert ledger.totals.held_seconds == Decimal("20.5")


def test_a_checkpoint_longer_than_all_training_takes_no_more_than_there_is() -> None:
    story = Story()
    story.started(0, 0)
    story.progress(10, 1)
    story.progress(12, 2)
    story.saved(13, 2, 100)
    story.ended(13, "stopped")
    assert seconds(build_ledger(story.events, [Held(1, 0, 14)], RATE)) == {"starting": 10, "checkpoint": 3, "idle": 1}


def test_two_checkpoints_told_in_one_stretch_share_it() -> None:
    story = Story()
    story.started(0, 0)
    story.progress(10, 1)
    story.saved(15, 1, 2)
    story.saved(16, 1, 3)
    story.ended(16, "stopped")
    assert seconds(build_ledger(story.events, [Held(1, 0, 20)], RATE)) == {"starting": 10, "checkpoint": 5, "idle": 5}


def test_the_step_that_an_attempt_is_in_is_not_wasted_while_it_goes_on() -> None:
    story = Story()
    story.started(5, 0)
    story.progress(6, 1)
    story.progress(26, 2)
    going = build_ledger(story.events, [Held(1, 0, 40)], RATE)
    assert seconds(going) == {"starting": 6, "productive": 34}
    assert (going.totals.wasted, going.totals.wasted_by_cause) == (0, {})
    story.add("workers-lost", 30, message="gone")
    assert seconds(build_ledger(story.events, [Held(1, 0, 40)], RATE)) == {
        "starting": 6,
        "productive": 20,
        "recovering": 14,
    }
    story.ended(38, "failed")
    assert seconds(build_ledger(story.events, [Held(1, 0, 40)], RATE)) == {"starting": 6, "productive": 20, "idle": 14}


@pytest.mark.parametrize(("attempt", "lost"), [(2, "unknown"), (1, "worker-lost")])
def test_a_restart_whose_word_was_lost_still_loses_what_it_repeats(attempt: int, lost: str) -> None:
    """No `started` arrived: a step behind the last one tells that the workers went back, and how far at least."""
    story = Story()
    story.started(5, 0)
    for step in range(1, 11):
        story.progress(5 + step, step)
    if attempt == 1:
        story.add("workers-lost", 16, message="gone")
    else:
        story.ended(16, "failed")
    for step in range(5, 8):
        story.progress(101 + step, step, attempt)
    story.progress(108.5, 6, attempt)  # a straggler
    held = [Held(1, 0, 17), Held(2, 100, 109)] if attempt == 2 else [Held(1, 0, 109)]
    ledger = build_ledger(story.events, held, RATE)
    recovering = 2 + 6 if attempt == 2 else 91
    assert seconds(ledger) == {"starting": 6, "productive": 3 + 3, "lost": 6, "recovering": recovering}
    assert set(ledger.totals.wasted_by_cause) == {lost}
    assert (ledger.totals.step, ledger.totals.tokens) == (7, 700)


def test_a_restart_is_one_though_the_first_start_was_not_told() -> None:
    story = Story()
    story.progress(6, 1)
    story.progress(7, 2)
    story.started(20, 2)
    story.progress(22, 3)
    found = seconds(build_ledger(story.events, [Held(1, 0, 22)], RATE))
    assert found == {"starting": 6, "productive": 1, "recovering": 15}


def test_each_attempt_is_priced_at_its_own_rate() -> None:
    half = RATE.model_copy(update={"per_hour": Decimal("18.00"), "units": 4})
    held = [Held(1, 0, 100), Held(2, 100, 200), Held(1, 200, 300)]
    ledger = build_ledger([], held, RATE, {1: half})
    assert ledger.totals.cost == Decimal("2.00")
    assert [row.billed_cost for row in ledger.rows] == [Decimal("0.5"), Decimal("1.0"), Decimal("0.5")]
    assert [row.consumed_quantity for row in ledger.rows] == [400, 800, 400]
    assert float(ledger.totals.hours) == pytest.approx(1600 / 3600)
    assert Ledger.from_json(ledger.to_json()) == ledger


TIMES = st.floats(0, 2_000_000_000, allow_nan=False) | st.integers(0, 9).map(float)  # some at the same moment
KINDS = st.sampled_from(["started", "progress", "checkpoint-committed", "ended", "stalled", "warning", "workers-lost"])
EVENTS = st.lists(
    st.tuples(KINDS, TIMES, st.integers(1, 3), st.sampled_from("ab"), st.integers(0, 9), st.floats(0, 1e6)),
    max_size=30,
)
HELD = st.lists(st.tuples(st.integers(1, 3), TIMES, TIMES), max_size=5)


@given(EVENTS, HELD, st.randoms(use_true_random=False))
def test_no_second_is_lost_or_doubled(
    drawn: list[tuple[str, float, int, str, int, float]],
    intervals: list[tuple[int, float, float]],
    shuffle: random.Random,
) -> None:
    story = Story()
    for kind, time, attempt, incarnation, step, length in drawn:
        own: dict[str, Any] = {
            "started": {"step": step, "tokens": step, "world_size": 1},
            "progress": {"step": step, "tokens": step},
            "checkpoint-committed": {"step": step, "uri": "x", "size_bytes": 1, "seconds": length},
            "ended": {"outcome": "failed"},
            "stalled": {"outcome": "failed", "failure_class": "stalled"},
            "warning": {"message": "m"},
            "workers-lost": {"message": "m"},
        }[kind]
        story.add("ended" if kind == "stalled" else kind, time, attempt, incarnation, **own)
    held = [Held(attempt, min(a, b), max(a, b)) for attempt, a, b in intervals]
    ledger = build_ledger(story.events, held, RATE)
    microseconds = sum(round(one.end * 10**6) - round(one.start * 10**6) for one in held)
    assert ledger.totals.held_seconds == Decimal(microseconds) / 10**6
    assert sum((row.seconds for row in ledger.rows), Decimal(0)) == ledger.totals.held_seconds
    assert sum((row.billed_cost for row in ledger.rows), Decimal(0)) == ledger.totals.cost
    assert abs(ledger.totals.cost - cost(ledger.totals.held_seconds, RATE)) <= Decimal("1e-12")
    assert sum((row.consumed_quantity for row in ledger.rows), Decimal(0)) == ledger.totals.held_seconds * 8
    assert all(row.seconds > 0 for row in ledger.rows)
    mixed = [*story.events, *story.events[::2]]
    shuffle.shuffle(mixed)
    assert build_ledger(mixed, held[::-1], RATE) == ledger, "neither their order nor news told twice mean anything"
    for attempt in {one.attempt for one in held}:
        own_seconds = sum((row.seconds for row in ledger.rows if row.attempt == attempt), Decimal(0))
        wanted = sum(round(one.end * 10**6) - round(one.start * 10**6) for one in held if one.attempt == attempt)
        assert own_seconds == Decimal(wanted) / 10**6


@given(
    st.lists(st.tuples(st.floats(0.001, 1000), st.booleans(), st.floats(0, 500)), min_size=1, max_size=20),
    st.floats(0, 100),
)
def test_commits_at_any_time_take_only_from_training(steps: list[tuple[float, bool, float]], tail: float) -> None:
    story, now, saving = Story(), 10.0, 0.0
    story.started(now, 0)
    now += 5
    story.progress(now, 1)
    for step, (length, saves, long) in enumerate(steps, start=2):
        now += length
        story.progress(now, step)
        if saves:
            story.saved(now, step, long)
            saving += long
    story.ended(now, "succeeded")
    found = seconds(build_ledger(story.events, [Held(1, 0, now + tail)], RATE))
    trained = sum(length for length, _, _ in steps)
    assert found["starting"] == 15
    assert found.get("idle", 0) == pytest.approx(tail, abs=1e-3)
    assert found.get("productive", 0) + found.get("checkpoint", 0) == pytest.approx(trained, abs=1e-3)
    assert found.get("checkpoint", 0) <= min(saving, trained) + 1e-3
    if len(steps) == 1:
        assert found.get("checkpoint", 0) == pytest.approx(min(saving, trained), abs=1e-3)


LIVES = st.lists(
    st.tuples(st.booleans(), st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=6)),
    min_size=1,
    max_size=5,
)
"""Of the workers: whether they are a new attempt; of each step its seconds and those of a checkpoint after it."""


@given(LIVES)
def test_a_step_is_lost_once_if_any_later_life_repeats_it(lives: list[tuple[bool, list[tuple[int, int]]]]) -> None:
    """Against a list of all steps that were done, from which each restart strikes those that it goes back behind."""
    story, now, attempt, step, saved = Story(), 0, 1, 0, 0
    begins, ends = {1: 0}, {1: 0}
    done: list[tuple[int, int]] = []
    lost, checkpoint = 0, 0
    for new, steps in lives:
        if new and now:
            story.ended(now, "failed", attempt=attempt)
            attempt, now = attempt + 1, now + 10
            begins[attempt] = now
        now += 7
        story.started(now, saved, attempt=attempt)
        lost += sum(length for at, length in done if at > saved)
        done, step = [(at, length) for at, length in done if at <= saved], saved
        for index, (length, save) in enumerate(steps):
            step, now = step + 1, now + length
            story.progress(now, step, attempt=attempt)
            if index:  # what leads to the first one is starting or recovering
                done.append((step, length))
            if save:
                now, saved, checkpoint = now + save, step, checkpoint + save
                story.saved(now, step, save, attempt=attempt)
        ends[attempt] = now
    story.ended(now, "succeeded", attempt=attempt)
    kept = sum(length for _, length in done)
    held = [Held(one, begins[one], ends[one]) for one in begins]
    ledger = build_ledger(story.events, held, RATE)
    found = seconds(ledger)
    assert (found.get("productive", 0), found.get("lost", 0), found.get("checkpoint", 0)) == (kept, lost, checkpoint)
    assert ledger.totals.step == step
    assert sum(ledger.totals.wasted_by_cause.values()) == ledger.totals.wasted


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=20), st.integers(0, 19))
def test_rows_follow_each_other(lengths: list[float], at: int) -> None:
    story, now = Story(), 10.0
    story.started(now, 0)
    for step, length in enumerate(lengths, start=1):
        now += length
        story.progress(now, step)
        if step == at:
            story.saved(now + 0.5, step, 0.25)
    ledger = build_ledger(story.events, [Held(1, 0, now + 1)], RATE)
    for one, following in itertools.pairwise(ledger.rows):
        assert one.charge_period_end == following.charge_period_start
        assert one.time_class != following.time_class
