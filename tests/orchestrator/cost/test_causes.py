"""Why money was wasted, what an attempt waited for, and ledgers of the version before."""

import datetime
import json
import random
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stories import Story

from orchestrator.cost.ledger import Held, Ledger, build_ledger
from orchestrator.cost.meter import Rate
from orchestrator.cost.timeline import Phase

RATE = Rate(
    per_hour=Decimal("3600"), currency="USD", units=8, unit="gpu-hour", source="s", date=datetime.date(2026, 5, 1)
)
"""A dollar a second."""
OLD = Path(__file__).parent / "data" / "ledger-v1.json"


def causes(ledger: Ledger) -> dict[str, float]:
    return {name: float(amount) for name, amount in ledger.totals.wasted_by_cause.items() if amount}


def trained(story: Story, start: float, steps: range, attempt: int = 1) -> None:
    """A step a second after `start`."""
    for second, step in enumerate(steps, start=1):
        story.progress(start + second, step, attempt)


def test_a_loss_of_workers_and_the_end_have_their_own_causes() -> None:
    story = Story()
    story.started(10, 0)
    trained(story, 10, range(1, 5))
    story.add("workers-lost", 15, message="gone")
    story.started(30, 2)
    trained(story, 30, range(3, 8))
    story.ended(36, "succeeded")
    ledger = build_ledger(story.events, [Held(1, 0, 40)], RATE)
    assert causes(ledger) == {"worker-lost": 2 + 17, "finished": 5}
    assert [(row.time_class, row.cause) for row in ledger.rows] == [
        ("starting", None),
        ("productive", None),
        ("lost", "worker-lost"),
        ("recovering", "worker-lost"),
        ("productive", None),
        ("idle", "finished"),
    ]
    assert sum(ledger.totals.wasted_by_cause.values()) == ledger.totals.wasted


@pytest.mark.parametrize(("failure", "cause"), [("out-of-memory", "out-of-memory"), (None, "unknown")])
def test_what_the_next_attempt_repeats_is_laid_to_the_one_before(failure: str | None, cause: str) -> None:
    story = Story()
    story.started(10, 0)
    trained(story, 10, range(1, 5))
    story.ended(16, "failed", failure_class=failure)
    story.started(110, 1, attempt=2)
    trained(story, 110, range(2, 6), attempt=2)
    ledger = build_ledger(story.events, [Held(1, 0, 20), Held(2, 100, 114)], RATE)
    assert causes(ledger) == {cause: 3 + 6 + 11}


def test_an_attempt_that_nobody_saw_end_and_one_that_moved() -> None:
    for second, cause in ((2, "driver-lost"), (1, "preempted")):
        story = Story()
        story.started(10, 0)
        trained(story, 10, range(1, 5))
        story.started(110, 4, attempt=second)
        trained(story, 110, range(5, 7), attempt=second)
        held = [Held(1, 0, 20), Held(second, 100, 112)]
        assert causes(build_ledger(story.events, held, RATE)) == {cause: 6 + 11}


def test_going_back_on_purpose_is_no_loss_of_workers() -> None:
    story = Story()
    story.started(10, 0)
    trained(story, 10, range(1, 5))
    story.add("anomaly", 14, step=4, data_step=4, fault="spike", action="skip", message="m")
    story.add("workers-lost", 15, message="RollBack")
    story.started(20, 2)
    trained(story, 20, range(3, 5))
    assert causes(build_ledger(story.events, [Held(1, 0, 22)], RATE)) == {"rollback": 2 + 7}


def test_a_failure_that_did_not_come_from_the_restart_before_it() -> None:
    story = Story()
    story.started(10, 0)
    trained(story, 10, range(1, 3))
    story.add("workers-lost", 13, message="gone")
    story.started(20, 2)
    trained(story, 20, range(3, 5))
    story.ended(30, "failed", failure_class="stalled")
    assert causes(build_ledger(story.events, [Held(1, 0, 31)], RATE)) == {"worker-lost": 9, "stalled": 9}


def test_waiting_is_paid_only_while_something_is_held() -> None:
    story = Story()
    story.started(50, 0)
    trained(story, 50, range(1, 3))
    phases = [Phase(1, "queued", 0, 20), Phase(1, "pulling", 20, 35)]
    ledger = build_ledger(story.events, [Held(1, 15, 52)], RATE, phases=phases)
    found = [(row.time_class, row.held, float(row.seconds), float(row.billed_cost)) for row in ledger.rows]
    assert found == [
        ("queued", True, 5, 5),
        ("pulling", True, 15, 15),
        ("starting", True, 16, 16),
        ("productive", True, 1, 1),
        ("queued", False, 15, 0),
    ]
    assert (ledger.totals.held_seconds, ledger.totals.waiting_seconds, ledger.totals.cost) == (37, 15, 37)
    assert ledger.rows[-1].consumed_quantity == 0
    assert ledger.totals.seconds_by_class["queued"] == 5
    assert Ledger.from_json(ledger.to_json()) == ledger


def test_the_launcher_does_not_overrule_work() -> None:
    story = Story()
    story.started(5, 0)
    trained(story, 5, range(1, 11))
    ledger = build_ledger(story.events, [Held(1, 0, 15)], RATE, phases=[Phase(1, "queued", 0, 12)])
    seconds = {name: float(value) for name, value in ledger.totals.seconds_by_class.items() if value}
    assert seconds == {"queued": 6, "productive": 9}
    assert ledger.totals.waiting_seconds == 0


PHASES = st.lists(
    st.tuples(st.integers(1, 2), st.sampled_from(["queued", "pulling"]), st.integers(0, 200), st.integers(0, 200)),
    max_size=6,
)
INTERVALS = st.lists(st.tuples(st.integers(1, 2), st.integers(0, 200), st.integers(0, 200)), max_size=4)


@given(PHASES, INTERVALS, st.randoms(use_true_random=False))
def test_phases_neither_add_nor_take_a_second(
    drawn: list[tuple[int, str, int, int]], intervals: list[tuple[int, int, int]], shuffle: random.Random
) -> None:
    story = Story()
    story.started(20, 0)
    trained(story, 20, range(1, 40))
    phases = [Phase(a, k, min(x, y), max(x, y)) for a, k, x, y in drawn]  # type: ignore[arg-type]
    held = [Held(a, min(x, y), max(x, y)) for a, x, y in intervals]
    ledger = build_ledger(story.events, held, RATE, phases=phases)
    assert ledger.totals.held_seconds == sum(one.end - one.start for one in held) == ledger.totals.cost
    waited = {(one.attempt, t) for one in phases for t in range(int(one.start), int(one.end))}
    covered = {(one.attempt, t) for one in held for t in range(int(one.start), int(one.end))}
    assert ledger.totals.waiting_seconds == len(waited - covered)
    mixed = phases.copy()
    shuffle.shuffle(mixed)
    others = held.copy()
    shuffle.shuffle(others)
    assert build_ledger(story.events, others, RATE, phases=mixed) == ledger, "their order means nothing"


def test_a_phase_is_a_time() -> None:
    for start, end in ((2.0, 1.0), (0.0, float("nan")), (float("-inf"), 0.0)):
        with pytest.raises(ValueError, match="not a time"):
            Phase(1, "queued", start, end)


# The version before


def test_a_ledger_of_version_1_is_read_to_the_last_digit() -> None:
    old, ledger = json.loads(OLD.read_text()), Ledger.from_json(OLD.read_text())
    assert ledger.version == 2
    assert format(ledger.totals.cost, "f") == old["totals"]["cost"]
    for row, before in zip(ledger.rows, old["rows"], strict=True):
        assert (row.attempt, row.time_class) == (before["Attempt"], before["TimeClass"])
        assert format(row.billed_cost, "f") == before["BilledCost"]
        assert (row.consumed_unit, row.list_unit_price, row.cause) == ("CPU-Seconds", None, None)
    assert Ledger.from_json(ledger.to_json()) == ledger


def test_the_same_events_cost_the_same_as_in_version_1() -> None:
    """What the fixture was written from, by the version before."""
    old = json.loads(OLD.read_text())
    narrow = Rate(
        per_hour=Decimal("0.0816"),
        currency="USD",
        units=2,
        unit="cpu-hour",
        source="a list",
        date=datetime.date(2026, 6, 1),
    )
    wide = narrow.model_copy(update={"per_hour": Decimal("0.1632"), "units": 4})
    story, t = Story(), 1_795_572_837.879924
    story.started(t + 10.5, 0)
    for n in range(1, 8):
        story.progress(t + 10.5 + 1.37 * n, n)
        if n == 4:
            story.saved(t + 10.5 + 1.37 * n + 0.2, 4, 0.25)
    story.add("workers-lost", t + 21, message="gone")
    story.started(t + 33.3, 4)
    for n in range(5, 11):
        story.progress(t + 33.3 + 1.41 * (n - 4), n)
    story.ended(t + 90.123456, "failed", failure_class="stalled")
    story.started(t + 130, 4, attempt=2, incarnation="b")
    for n in range(5, 13):
        story.progress(t + 131 + 0.77 * (n - 4), n, attempt=2, incarnation="b")
    story.ended(t + 140, "succeeded", attempt=2)
    ledger = build_ledger(story.events, [Held(1, t, t + 91.9), Held(2, t + 95, t + 141.333333)], wide, {1: narrow})
    new = json.loads(ledger.to_json())["totals"]
    for name, value in old["totals"].items():
        if isinstance(value, dict):
            assert value.items() <= new[name].items(), name
            assert all(Decimal(new[name][extra]) == 0 for extra in new[name].keys() - value.keys())
        else:
            assert new[name] == value, name
    assert [format(row.billed_cost, "f") for row in ledger.rows] == [row["BilledCost"] for row in old["rows"]]


def test_what_is_no_ledger_is_refused() -> None:
    wrong = ["", "{}", "null", '{"version": 1, "rows": 5}', '{"version": 1, "rows": [5]}', '{"version": 3}', "\x00"]
    for text in [*wrong, OLD.read_text().replace("cpu-second", "second"), OLD.read_text()[:900]]:
        with pytest.raises(ValueError, match="not a valid ledger"):
            Ledger.from_json(text)


def test_a_ledger_of_a_newer_version_says_so() -> None:
    with pytest.raises(ValueError, match="it is of version 3, written by a newer Fathom; this one reads 1 and 2"):
        Ledger.from_json(OLD.read_text().replace('"version": 1', '"version": 3'))


CHANGES: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "less than nothing": ({"BilledCost": "-5"}, {"cost": "-5"}, "greater than or equal to 0"),
    "no number": ({"BilledCost": "NaN"}, {"cost": "NaN"}, "finite"),
    "digits that Parquet cannot hold": ({"BilledCost": "1E-13"}, {"cost": "1E-13"}, "12 decimal places"),
    "an amount beyond all bounds": ({"BilledCost": "1E+40"}, {"cost": "1E+40"}, "38 digits"),
    "backwards": ({"ChargePeriodEnd": "1969-12-31T23:59:00Z"}, {"heldSeconds": "-60"}, "before its start"),
    "a time of nowhere": ({"ChargePeriodStart": "1970-01-01T00:00:00"}, {}, "timezone"),
    "a formula": ({"x_Cause": '=HYPERLINK("x")'}, {}, "a spreadsheet or a terminal would obey"),
    "wasted": ({}, {"wasted": "7.77"}, "wasted: 0 and 7.77"),
    "by class": ({}, {"costByClass": {"idle": "10"}}, "costByClass: starting 10.000000000000 and idle 10"),
    "seconds by class": ({}, {"secondsByClass": {}}, "secondsByClass: starting 10 and nothing"),
    "hours": ({}, {"hours": "9999"}, "hours: 0.022222222222 and 9999"),
    "per token": ({}, {"costPerBillionTokens": "1", "tokens": 5}, "costPerBillionTokens: 2000000000.0"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_ledger_that_does_not_add_up_is_refused(what: str) -> None:
    row, totals, why = CHANGES[what]
    found = json.loads(build_ledger([], [Held(1, 0, 10)], RATE).to_json())
    assert Ledger.from_json(json.dumps(found)).totals.cost == 10
    found["rows"][0] |= row
    found["totals"] |= totals
    with pytest.raises(ValueError, match=re.escape(why)):
        Ledger.from_json(json.dumps(found))


def test_rows_in_another_currency_are_refused() -> None:
    text = build_ledger([], [Held(1, 0, 10)], RATE).to_json()
    with pytest.raises(ValueError, match="rows are in EUR, the ledger is in USD"):
        Ledger.from_json(text.replace('"BillingCurrency": "USD"', '"BillingCurrency": "EUR"'))
