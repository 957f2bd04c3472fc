import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.cost.focus import focus_rows
from orchestrator.cost.groups import grouped
from orchestrator.cost.ledger import Held, Ledger, build_ledger
from orchestrator.cost.meter import Rate
from orchestrator.cost.tariff import Tariff, tariff_from
from orchestrator.errors import UsageError
from orchestrator.plan.prices import PriceBook, valid_at

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
