import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.cost.budget import spent
from orchestrator.cost.focus import focus_rows
from orchestrator.cost.groups import grouped
from orchestrator.cost.ledger import Held, Ledger, build_ledger
from orchestrator.cost.meter import Rate
from orchestrator.cost.tariff import Tariff, repriced, tariff_from
from orchestrator.errors import UsageError
from orchestrator.plan.prices import Price, PriceBook, valid_at

DAY = 86_400
FIRST = datetime.date(2026, 6, 1)
NOON = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC).timestamp()


def rate(per_hour: str, days: int = 0, **changes: object) -> Rate:
    fields = {"currency": "USD", "units": 8, "unit": "gpu-hour", "source": f"list {days}", **changes}
    return Rate.model_validate({"per_hour": per_hour, "date": FIRST + datetime.timedelta(days=days)} | fields)


RISING = Tariff(rates=(rate("36"), rate("72", 1), rate("18", 2)))


def test_a_rate_holds_from_its_day_to_the_next_and_the_first_before_it_too() -> None:
    midnight = NOON + DAY / 2
    assert [RISING.at(t).per_hour for t in (0.0, NOON, midnight - 1e-6, midnight, NOON + DAY, NOON + 99 * DAY)] == [
        36, 36, 36, 72, 72, 18,
    ]  # fmt: skip


def test_spent_is_cut_where_the_price_changes() -> None:
    used = RISING.spent(NOON, NOON + 2 * DAY)
    assert used.amount == 12 * 36 + 24 * 72 + 12 * 18
    assert (used.seconds, used.unit_hours) == (2 * DAY, 48 * 8)
    assert RISING.spent(NOON, NOON - 5).amount == 0


@given(st.floats(1e9, 2e9), st.floats(0, 1e6))
def test_what_is_shown_as_spent_is_what_the_ledger_counts(start: float, length: float) -> None:
    """To the microsecond, though a difference of floats is none."""
    flat = Tariff(rates=(rate("36"),))
    used, ledger = flat.spent(start, start + length), build_ledger([], [Held(1, start, start + length)], flat)
    assert used.seconds == ledger.totals.held_seconds
    assert abs(used.amount - ledger.totals.cost) <= Decimal("5e-13")


@pytest.mark.parametrize(
    "wrong",
    [
        (rate("1"), rate("2")),
        (rate("1", 1), rate("2")),
        (rate("1"), rate("2", 1, currency="EUR")),
        (rate("1"), rate("2", 1, units=4)),
        (rate("1"), rate("2", 1, unit="cpu-hour")),
        (),
    ],
)
def test_what_does_not_follow_is_refused(wrong: tuple[Rate, ...]) -> None:
    with pytest.raises(ValidationError):
        Tariff(rates=wrong)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10**7)), min_size=1, max_size=6),
    st.integers(-40 * DAY * 10**6, 200 * DAY * 10**6),
    st.integers(0, 90 * DAY * 10**6),
)
def test_periods_partition_the_time(changes: list[tuple[int, int]], offset: int, length: int) -> None:
    days, rates = 0, []
    for gap, cents in changes:
        rates.append(rate(str(Decimal(cents) / 100), days))
        days += gap
    tariff = Tariff(rates=tuple(rates))
    start = round(NOON * 10**6) + offset
    cut = tariff.periods(start, start + length)
    assert sum(end - begin for begin, end, _ in cut) == length
    assert [begin for begin, _, _ in cut[1:]] == [end for _, end, _ in cut[:-1]]
    for begin, end, found in cut:
        assert begin < end
        assert tariff.at(begin / 10**6) == found or (end - begin) <= 1  # a float cannot name each microsecond
    ledger = build_ledger([], [Held(1, start / 10**6, (start + length) / 10**6)], tariff)
    assert sum((row.billed_cost for row in ledger.rows), Decimal(0)) == ledger.totals.cost
    assert ledger.rates == tuple(dict.fromkeys(found for _, _, found in cut))


def test_a_row_is_split_and_each_part_names_its_price() -> None:
    ledger = build_ledger([], [Held(1, NOON, NOON + 2 * DAY)], RISING)
    assert [(row.list_unit_price, row.price_date, row.billed_cost) for row in ledger.rows] == [
        (Decimal("4.5"), FIRST, 12 * 36),
        (Decimal("9"), FIRST + datetime.timedelta(days=1), 24 * 72),
        (Decimal("2.25"), FIRST + datetime.timedelta(days=2), 12 * 18),
    ]
    assert ledger.rate == RISING.rates[2]
    assert ledger.totals.cost == RISING.spent(NOON, NOON + 2 * DAY).amount


def test_a_row_names_how_its_devices_were_bought_even_where_the_prices_are_equal() -> None:
    """The second attempt went from spot to reserved machines, which cost the same that day."""
    spot, reserved = (Tariff(rates=(rate("36", price_class=way, source=way),)) for way in ("spot", "reserved"))
    ledger = build_ledger([], [Held(1, NOON, NOON + 10), Held(2, NOON + 20, NOON + 30)], reserved, {1: spot})
    assert [(row["x_PriceClass"], row["x_PriceSource"], row["PricingCategory"]) for row in focus_rows([ledger])] == [
        ("spot", "spot", "Dynamic"),
        ("reserved", "reserved", "Committed"),
    ]
    assert [group.name for group in grouped([ledger], "price")] == [
        "4.5 USD per gpu-hour, spot, from 2026-06-01",
        "4.5 USD per gpu-hour, reserved, from 2026-06-01",
    ]
    assert Ledger.from_json(ledger.to_json()) == ledger


ROW = "- {accelerator: H100, priceClass: spot, amount: '%s', currency: %s, unit: gpu-hour, source: s, date: %s}\n"


def book(folder: Path, *rows: tuple[str, str, str]) -> PriceBook:
    path = folder / "prices.yaml"
    path.write_text("".join(ROW % row for row in rows))
    return PriceBook.load(path)


def test_a_price_file_may_hold_a_history_in_any_order(tmp_path: Path) -> None:
    found = book(tmp_path, ("2", "USD", "2026-06-02"), ("1", "USD", "2026-06-01"), ("3", "USD", "2026-06-10"))
    history = found.history("H100", "spot")
    assert [price.amount for price in history] == [1, 2, 3]
    assert found.price("H100", "spot").amount == 3
    today = datetime.date(2026, 6, 5)
    assert found.price("H100", "spot", today).amount == 2, "not that of a day to come"
    assert [valid_at(history, datetime.date(2026, 6, day)).amount for day in (1, 2, 9, 10, 30)] == [1, 2, 2, 3, 3]
    assert valid_at(history, datetime.date(2020, 1, 1)).amount == 1, "nothing nearer is known"
    now = datetime.datetime(2026, 6, 5, tzinfo=datetime.UTC)
    assert [known.per_hour for known in tariff_from(history, 8, now).rates] == [16, 24]


def test_the_day_is_that_of_utc(tmp_path: Path) -> None:
    history = book(tmp_path, ("1", "USD", "2026-06-01"), ("2", "USD", "2026-06-02")).history("H100", "spot")
    west = datetime.timezone(datetime.timedelta(hours=-5))
    evening = datetime.datetime(2026, 6, 1, 20, tzinfo=west)  # 01:00 UTC of the second
    assert [known.per_hour for known in tariff_from(history, 1, evening).rates] == [2]


@pytest.mark.parametrize(
    "day", ["2026-07-01T00:00:00+05:00", '"2026-07-01T00:00:00+05:00"', "2026-07-01 00:00:00", "86400", '"0"']
)
def test_a_price_begins_with_a_day_not_at_a_time(day: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"row 1: date: .*must be a day such as 2026-07-01, from 00:00 UTC"):
        book(tmp_path, ("1", "USD", day))


@pytest.mark.parametrize("source", ["'=1+1'", "'@SUM(1)'", "'-1'", "'+1'", '"a\\u001b[31m"'])
def test_a_source_is_text_and_no_formula(source: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text((ROW % ("1", "USD", "2026-06-01")).replace("source: s", f"source: {source}"))
    with pytest.raises(UsageError, match=r"row 1: source: .*a spreadsheet or a terminal would obey"):
        PriceBook.load(path)


def test_own_rows_replace_the_whole_packaged_history(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text((ROW % ("9", "EUR", "2020-01-01")).replace("spot", "on-demand"))
    assert [price.amount for price in PriceBook.load(path).history("H100", "on-demand")] == [9]


def test_two_currencies_or_one_day_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"row 2: H100 spot is priced in EUR from 2026-06-02 and in USD from 2026-06-01"
    ):
        book(tmp_path, ("1", "USD", "2026-06-01"), ("1", "EUR", "2026-06-02"))
    with pytest.raises(UsageError, match=r"row 2: a second price for H100 spot from 2026-06-01: 1 and 2"):
        book(tmp_path, ("1", "USD", "2026-06-01"), ("2", "USD", "2026-06-01"))


# Prices that are changed while they are paid


def price(amount: str, days: int = 0) -> Price:
    fields = {"accelerator": "H100", "price_class": "on-demand", "currency": "USD", "unit": "gpu-hour", "source": "s"}
    return Price.model_validate(fields | {"amount": amount, "date": FIRST + datetime.timedelta(days=days)})


def hourly(tariff: Tariff) -> list[tuple[float, int]]:
    """(hours from noon of the first day, price of the job)."""
    begins = [datetime.datetime.combine(r.date, datetime.time(), datetime.UTC).timestamp() for r in tariff.rates]
    since = [begin if r.since is None else r.since for begin, r in zip(begins, tariff.rates, strict=True)]
    return [(round((at - NOON) / 3600, 6), int(r.per_hour)) for at, r in zip(since, tariff.rates, strict=True)]


START = tariff_from([price("1"), price("2", 1)], 8, datetime.datetime.fromtimestamp(NOON, datetime.UTC))


def test_a_price_that_is_changed_counts_from_then_on() -> None:
    assert hourly(START) == [(-12, 8), (12, 16)]
    dearer = repriced(START, [price("4"), price("2", 1)], NOON, NOON + 60)
    assert hourly(dearer) == [(-12, 8), (0.016667, 32), (12, 16)]
    later = repriced(dearer, [price("4"), price("3", 2)], NOON + 3600, NOON + 3660)
    assert hourly(later) == [(-12, 8), (0.016667, 32), (36, 24)], "only what was to come is another one"
    assert repriced(later, [price("4"), price("3", 2)], NOON + 3600, NOON + 3660) is later
    assert hourly(repriced(START, [price("1")], NOON, NOON + 60)) == [(-12, 8)]


def test_a_change_that_has_not_begun_is_taken_back() -> None:
    dearer = repriced(START, [price("4"), price("2", 1)], NOON, NOON + 60)
    assert repriced(dearer, [price("1"), price("2", 1)], NOON + 30, NOON + 90) == START
    third = repriced(dearer, [price("5"), price("2", 1)], NOON + 30, NOON + 90)
    assert hourly(third) == [(-12, 8), (0.025, 40), (12, 16)]


def test_the_nearest_known_price_holds_until_another_is_known() -> None:
    early = tariff_from([price("1", 5)], 8, datetime.datetime.fromtimestamp(NOON, datetime.UTC))
    found = repriced(early, [price("3", 5)], NOON, NOON + 60)
    assert [found.at(NOON).per_hour, found.at(NOON + 59).per_hour] == [8, 8]
    assert found.at(NOON + 60).per_hour == 24
    with pytest.raises(ValueError, match="prices are in EUR now"):
        repriced(early, [price("3").model_copy(update={"currency": "EUR"})], NOON, NOON)


@given(
    st.lists(
        st.tuples(
            st.floats(1, 40_000), st.floats(0, 7200), st.dictionaries(st.integers(0, 3), st.integers(1, 50), min_size=1)
        ),
        max_size=5,
    ),
    st.floats(0, 90_000),
)
def test_no_change_touches_what_is_paid_before_it(
    changes: list[tuple[float, float, dict[int, int]]], held: float
) -> None:
    """And meter and budget agree on every tariff that comes of it."""
    tariff, now = START, NOON
    for pause, notice, amounts in changes:
        now += pause
        history = [price(str(amounts[day]), day) for day in sorted(amounts)]
        changed = repriced(tariff, history, now, now + notice)
        before, after = tariff.spent(NOON, now), changed.spent(NOON, now)
        assert abs(before.amount - after.amount) < Decimal("1e-3")
        expected = history[0]
        for one in history:
            begins = datetime.datetime.combine(one.date, datetime.time(), datetime.UTC).timestamp()
            expected = one if begins <= now + notice else expected
        assert changed.at(now + notice + 1e-5).per_hour == expected.amount * 8
        tariff = changed
    charged, metered = spent([Held(1, NOON, NOON + held)], {1: tariff}), tariff.spent(NOON, NOON + held).amount
    assert abs(charged - metered) < Decimal("1e-3")
