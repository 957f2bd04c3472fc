import datetime
import math
from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.cost.budget import (
    Reserve,
    deadlines,
    kept,
    lasts_until,
    must_stop,
    passed,
    percentile_95,
    spent,
    to_hold,
)
from orchestrator.cost.ledger import Held, build_ledger
from orchestrator.cost.meter import Rate
from orchestrator.cost.tariff import Tariff

DAY = 86_400
FIRST = datetime.date(2026, 6, 1)
NOON = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC).timestamp()
NONE = Reserve(heartbeat=0, save=0, grace=0, teardown=0)


def tariff(*changes: tuple[int, str]) -> Tariff:
    """(day after the first, price of the job for an hour), ..."""
    return Tariff(
        rates=tuple(
            Rate(
                per_hour=Decimal(price),
                currency="USD",
                units=8,
                unit="gpu-hour",
                source="s",
                date=FIRST + datetime.timedelta(days=day),
            )
            for day, price in changes
        )
    )


FLAT = tariff((0, "3600"))
"""A dollar a second."""


@st.composite
def tariffs(draw: st.DrawFn) -> Tariff:
    days = sorted(draw(st.sets(st.integers(0, 6), min_size=1, max_size=4)))
    return tariff(*((day, str(Decimal(draw(st.integers(1, 10**6))) / 100)) for day in days))


SHARES = [Decimal("0.5"), Decimal("0.8"), Decimal("0.95")]
TIMES = st.floats(NOON - DAY, NOON + 7 * DAY)


def test_spent_by_hand() -> None:
    steps = tariff((0, "36"), (1, "72"), (2, "18"))
    held = [Held(1, NOON, NOON + 2 * DAY), Held(2, NOON, NOON + 10)]
    assert spent(held, {1: steps, 2: FLAT}) == 12 * 36 + 24 * 72 + 12 * 18 + 10
    assert spent([], {}) == 0


@given(tariffs(), tariffs(), st.lists(st.tuples(st.integers(1, 2), TIMES, TIMES), max_size=5))
def test_meter_and_budget_agree(one: Tariff, two: Tariff, drawn: list[tuple[int, float, float]]) -> None:
    """They share no step; the meter rounds times to microseconds, the budget takes them as they are, and rounds up."""
    held = [Held(attempt, min(a, b), max(a, b)) for attempt, a, b in drawn]
    metered = build_ledger([], held, one, {2: two}).totals.cost
    dearest = max(rate.per_hour for rate in (*one.rates, *two.rates))
    slack = dearest / 3600 * len(held) * Decimal("1.5e-6") + Decimal("1e-11")
    assert abs(spent(held, {1: one, 2: two}) - metered) <= slack


@given(tariffs(), TIMES, st.decimals("0.000001", 10**6, places=6))
def test_the_money_lasts_until_then_and_no_longer(prices: Tariff, start: float, left: Decimal) -> None:
    end = lasts_until(left, prices, start)
    assume(end - start < 1e9)
    assert to_hold(prices, start, max(0.0, end - start)) <= left + Decimal("1e-12")
    assert to_hold(prices, start, end - start + 1e-5) > left


def test_money_that_lasts_beyond_a_change_of_the_price() -> None:
    steps = tariff((0, "3600"), (1, "7200"), (2, "1800"))
    left = Decimal(DAY // 2 + 2 * DAY + 100)  # half a day, a day, and then a hundred dollars
    assert lasts_until(left, steps, NOON) == pytest.approx(NOON + DAY / 2 + DAY + 200, abs=1e-5)
    assert lasts_until(Decimal(-5), steps, NOON) == pytest.approx(NOON, abs=1e-5)


def test_deadlines_leave_room_to_stop() -> None:
    reserve = Reserve(heartbeat=5, save=100, grace=15, teardown=10)
    found = deadlines(Decimal(1000), FLAT, NOON, reserve)
    assert [round(t - NOON) for t in (found.stop, found.end, found.limit)] == [870, 990, 1000]
    later = deadlines(Decimal(600), FLAT, NOON + 400, reserve, began=NOON)
    assert later.stop == pytest.approx(found.stop, abs=1e-5)
    assert later.limit == pytest.approx(found.limit, abs=1e-5)


def test_of_a_tiny_budget_half_is_for_training() -> None:
    reserve = Reserve(heartbeat=5, save=100, grace=15, teardown=10)
    found = deadlines(Decimal(100), FLAT, NOON, reserve)
    times = [t - NOON for t in (found.stop, found.end, found.limit)]
    assert times == pytest.approx([50, 90, 100], abs=1e-3)
    assert kept(-5, reserve) == 0
    nothing = deadlines(Decimal(100), FLAT, NOON, NONE)
    assert nothing.stop == nothing.end == nothing.limit


LENGTHS = st.floats(0, 1000)


@given(
    tariffs(),
    TIMES,
    st.decimals("0.01", 10**5, places=2),
    st.builds(Reserve, heartbeat=LENGTHS, save=LENGTHS, grace=LENGTHS, teardown=LENGTHS),
    st.floats(0, 1),
)
def test_machines_that_are_given_back_within_the_teardown_are_paid_for(
    prices: Tariff, start: float, left: Decimal, reserve: Reserve, taken: float
) -> None:
    """However little money there is: the teardown cannot be made shorter."""
    found = deadlines(left, prices, start, reserve)
    assume(found.limit - start < 1e8)
    assert found.stop <= found.end <= found.limit
    gone = max(start, found.end) + taken * min(reserve.teardown, found.limit - start)
    assert to_hold(prices, start, gone - start) <= left + Decimal("1e-4")  # a float of a time is a microsecond off
    whole = lasts_until(left, prices, start) - start >= 2 * reserve.seconds
    assert not whole or found.limit - found.stop == pytest.approx(reserve.seconds, abs=1e-3)


@given(tariffs(), TIMES, st.decimals("0.01", 10**5, places=2), st.floats(0, 2))
def test_the_order_to_stop_is_the_contracts_formula(prices: Tariff, now: float, left: Decimal, share: float) -> None:
    """spent + burn x reserve >= limit, just when the job's own deadline says so."""
    limit = lasts_until(left, prices, now)
    seconds = share * (limit - now)
    assume(limit - now < 1e8 and seconds >= 0 and abs(limit - seconds - now) > 1e-4)
    assert must_stop(Decimal(7), left + 7, prices, now, seconds) == (now >= limit - seconds)


def test_the_stop_is_due_when_the_limit_is_reached_not_when_it_is_passed() -> None:
    assert must_stop(Decimal(40), Decimal(100), FLAT, NOON, 60)
    assert not must_stop(Decimal(40), Decimal("100.000001"), FLAT, NOON, 60)


def test_what_is_spent_is_rounded_against_the_job() -> None:
    third = Rate(per_hour=Decimal(1), currency="USD", units=1, unit="gpu-hour", source="s", date=FIRST)
    assert to_hold(Tariff(rates=(third,)), NOON, 1) == Decimal("0.000277777778")
    assert spent([Held(1, NOON, NOON + 2)], {1: Tariff(rates=(third,))}) == Decimal("0.000555555556")
    assert to_hold(Tariff(rates=(third,)), NOON, 5) == Decimal("0.001388888889"), "a third of a digit more is one more"
    assert to_hold(Tariff(rates=(third,)), NOON, 4) == Decimal("0.001111111112"), "and so is a ninth"


@given(st.lists(st.integers(0, 130), min_size=1, max_size=30))
def test_each_share_is_told_once(amounts: list[int]) -> None:
    told, heard, paid = Decimal(0), [], Decimal(0)
    for amount in sorted(amounts):
        paid = Decimal(amount)
        share = passed(paid, Decimal(100), SHARES, told)
        if share is not None:
            heard.append(share)
            told = share
    assert heard == sorted(set(heard))
    reached = [share for share in (50, 80, 95) if paid >= share]
    assert (max(heard, default=None)) == (Decimal(reached[-1]) / 100 if reached else None)


def test_the_95th_percentile_is_one_that_was_seen() -> None:
    assert percentile_95([], 7.0) == 7.0
    assert percentile_95([3.0], 7.0) == 3.0
    assert percentile_95([float(n) for n in range(100, 0, -1)], 7.0) == 95.0
    assert percentile_95([1.0] * 19 + [50.0], 7.0) == 1.0
    assert percentile_95([1.0] * 18 + [50.0] * 2, 7.0) == 50.0


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf])
def test_a_reserve_is_a_time(wrong: float) -> None:
    with pytest.raises(ValueError, match="save"):
        Reserve(save=wrong)
