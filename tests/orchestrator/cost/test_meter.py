import datetime
from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.cost.meter import Rate, cost, money, rate_for, spent
from orchestrator.plan.prices import Price, PriceBook


def price(amount: str = "2.95") -> Price:
    return Price(
        accelerator="H100",
        price_class="on-demand",
        amount=Decimal(amount),
        currency="USD",
        unit="gpu-hour",
        source="a list",
        date=datetime.date(2026, 5, 1),
    )


def test_rate_is_for_the_whole_job_and_keeps_its_source() -> None:
    rate = rate_for(price(), 16)
    assert rate.per_hour == Decimal("47.20")
    assert (rate.units, rate.unit, rate.currency, rate.source) == (16, "gpu-hour", "USD", "a list")
    with pytest.raises(ValueError, match="at least 1 device, got 0"):
        rate_for(price(), 0)


@pytest.mark.parametrize("per_hour", ["0", "-1", "NaN", "Infinity"])
def test_a_rate_is_positive_and_finite(per_hour: str) -> None:
    with pytest.raises(ValidationError):
        Rate.model_validate(rate_for(price(), 1).model_dump() | {"per_hour": per_hour})


def test_cost_of_whole_hours_is_exact() -> None:
    rate = rate_for(PriceBook.load(None).price("cpu", "on-demand"), 2)
    assert cost(3600, rate) == Decimal("0.0816")
    assert cost(0, rate) == 0
    assert cost(0.1, rate) * 36000 == Decimal("0.0816")  # 0.1 is a tenth, not its binary neighbour


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), Decimal("-0.001"), Decimal("NaN")])
def test_impossible_times_are_refused(seconds: float | Decimal) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        cost(seconds, rate_for(price(), 1))


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(1, 100_000))
def test_cost_is_additive(first: int, second: int, units: int) -> None:
    rate = rate_for(price(), units)
    a, b = Decimal(first) / 10**6, Decimal(second) / 10**6
    with localcontext(prec=60):
        assert abs(cost(a, rate) + cost(b, rate) - cost(a + b, rate)) < Decimal("1e-30")


def test_spent_counts_device_hours() -> None:
    used = spent(1800, rate_for(price(), 8))
    assert (used.seconds, used.unit_hours, used.amount, used.currency) == (1800, 4, Decimal("11.80"), "USD")


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        ("0", "USD", "$0.00"),
        ("0.01234", "USD", "$0.0123"),
        ("0.00001", "USD", "<$0.0001"),
        ("1", "USD", "$1.00"),
        ("5576000.005", "USD", "$5,576,000.01"),
        ("-3.5", "EUR", "-€3.50"),
        ("12.5", "CHF", "12.50 CHF"),
        ("1e30", "CHF", "1,000,000,000,000,000,000,000,000,000,000.00 CHF"),
        ("0.99996", "USD", "$1.0000"),
    ],
)
def test_money_for_people(amount: str, currency: str, text: str) -> None:
    assert money(Decimal(amount), currency) == text
