"""The closed forms against figures of the literature, against each other, and against nonsense."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.plan import checkpointing as c

HOUR = 3600


@pytest.mark.parametrize(
    ("mtbf", "save", "restart", "interval", "expected", "digits"),
    [
        (24.75, 120, 30, 4624, 0.930, 3),
        (24.75, 10, 10, 1335, 0.9785, 4),
        (24.75, 2, 5, 600, 0.990, 3),
        (14.42, 2, 5, 600, 0.985, 3),
        (4.34, 2, 5, 600, 0.959, 3),
        (7.9, 120, 10, 2613, 0.892, 3),
        (3.09, 10, 10, 472, 0.908, 3),
        (3.09, 120, 30, 1635, 0.732, 3),
        (1.8, 120, 30, 1247, 0.621, 3),
    ],
)
def test_exact_goodput_at_the_reference_points(
    mtbf: float, save: float, restart: float, interval: float, expected: float, digits: int
) -> None:
    assert round(c.exact_goodput(interval, save, mtbf * HOUR, restart * 60), digits) == expected
    if interval != 600:
        assert c.young(save, mtbf * HOUR) == pytest.approx(interval, rel=0.001)


def test_exact_goodput_is_the_mean_of_what_can_happen() -> None:
    """From the definition, by numerical integration: a stretch of work and its save, or a failure and a recovery that
    failures begin again."""
    tau, save, mtbf, restart, pieces = 1635.0, 120.0, 3.09 * HOUR, 1800.0, 20_000

    def until_failure(length: float) -> float:
        """Integral of t exp(-t/M)/M from 0 to length: Simpson's rule."""
        h = length / pieces
        values = [t * h * math.exp(-t * h / mtbf) / mtbf for t in range(pieces + 1)]
        return h / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))

    # recovery = integral + P(failure) recovery + P(none) restart; segment likewise, with a recovery after the failure
    none, survives = math.exp(-restart / mtbf), math.exp(-(tau + save) / mtbf)
    recovery = (until_failure(restart) + none * restart) / none
    segment = (until_failure(tau + save) + (1 - survives) * recovery + survives * (tau + save)) / survives
    assert c.exact_goodput(tau, save, mtbf, restart) == pytest.approx(tau / segment, rel=1e-9)


def test_first_order_is_too_low_where_much_is_lost() -> None:
    assert c.first_order_goodput(1635, 120, 3.09 * HOUR, 1800) == pytest.approx(0.692, abs=0.001)


def test_changlan_saves_every_24_steps() -> None:
    save, mtbf, restart, step = 10, 6000, 600, 15
    assert math.sqrt(2 * (mtbf + restart) * save) / step == pytest.approx(24.2, abs=0.05)
    # NVIDIA counts from start to start and keeps C^2: half a second more, and the standstill.
    assert (c.availability_period(save, mtbf, restart) - save) / step == pytest.approx(24.2, abs=0.05)


def test_budget_per_failure() -> None:
    assert c.budget_per_failure(0.97, 50_677 / 9600 * 60) == pytest.approx(9.5, abs=0.01)
    assert c.budget_per_failure(0.98, 50_677 / 2048 * 60) == pytest.approx(29.7, abs=0.05)
    assert c.budget_per_failure(0.99, 50_677 / 2048 * 60) == pytest.approx(14.8, abs=0.05)


@given(save=st.floats(0.01, 1e4), mtbf=st.floats(1, 1e8), restart=st.floats(0, 1e3), factor=st.floats(0.05, 20))
def test_no_interval_beats_the_optimal_one(save: float, mtbf: float, restart: float, factor: float) -> None:
    best = c.optimal_interval(save, mtbf)
    top = c.exact_goodput(best, save, mtbf, restart)
    assert top >= c.exact_goodput(best * factor, save, mtbf, restart) * (1 - 1e-9)


@given(mtbf=st.floats(1e3, 1e8), ratio=st.floats(1e-6, 0.05))
def test_young_and_daly_come_near_the_optimum_in_their_range(mtbf: float, ratio: float) -> None:
    save = mtbf * ratio
    best = c.optimal_interval(save, mtbf)
    assert c.daly(save, mtbf) == pytest.approx(best, rel=0.001)
    assert c.young(save, mtbf) == pytest.approx(best, rel=0.25)
    assert abs(c.daly(save, mtbf) - best) <= abs(c.young(save, mtbf) - best) * 1.01


def test_daly_beyond_its_range_is_the_mtbf() -> None:
    assert c.daly(200, 100) == 100
    assert c.optimal_interval(200, 100) == pytest.approx(95, abs=1), "the exact one tells a little more"


def test_nothing_fails() -> None:
    assert c.optimal_interval(10, math.inf) == math.inf


def test_hopeless_jobs_have_a_goodput_of_nothing() -> None:
    assert c.exact_goodput(1000, 10, 1, 600) == 0


def test_two_tiers_with_one_kind_are_first_order() -> None:
    one = (600.0, 2.0, 300.0)
    assert c.two_tier_goodput(1, one, (1e15, 0, 0), 1e4) == pytest.approx(c.first_order_goodput(600, 2, 1e4, 300))
    assert c.two_tier_goodput(0, (1e15, 0, 0), one, 1e4) == pytest.approx(c.first_order_goodput(600, 2, 1e4, 300))


@given(load=st.floats(0.01, 300), risk=st.floats(1e-6, 0.5))
def test_spares_are_the_least_that_keep_the_risk(load: float, risk: float) -> None:
    def more_than(spares: int) -> float:
        return 1 - math.fsum(math.exp(k * math.log(load) - load - math.lgamma(k + 1)) for k in range(spares + 1))

    spares = c.spares_needed(load / 24, 24, risk)
    assert more_than(spares) < risk * (1 + 1e-6)
    assert spares == 0 or more_than(spares - 1) >= risk * (1 - 1e-6)


def test_spares_of_what_never_fails() -> None:
    assert c.spares_needed(0, 24, 0.01) == 0
    assert c.no_spare_share(0, 24, 0) == 0


@pytest.mark.parametrize(("load", "spares"), [(0.5, 0), (3.0, 2), (40.0, 45)])
def test_waiting_for_a_node_is_the_last_state_of_the_chain(load: float, spares: int) -> None:
    weights = [load**k / math.factorial(k) for k in range(spares + 2)]
    assert c.no_spare_share(load, 1, spares) == pytest.approx(weights[-1] / sum(weights))


def test_many_spares_are_enough() -> None:
    assert c.no_spare_share(1, 24, 10_000_000) == 0


NONSENSE = (math.nan, math.inf, -1.0)


@pytest.mark.parametrize("bad", [*NONSENSE, 0.0])
@pytest.mark.parametrize(
    "call",
    [
        lambda x: c.young(x, 100), lambda x: c.young(1, x), lambda x: c.daly(x, 100), lambda x: c.daly(1, x),
        lambda x: c.optimal_interval(x, 100), lambda x: c.availability_period(x, 100, 1),
        lambda x: c.exact_goodput(x, 1, 100, 1), lambda x: c.first_order_goodput(10, 1, x, 1),
        lambda x: c.budget_per_failure(0.9, x), lambda x: c.spares_needed(1, x, 0.1),
        lambda x: c.spares_needed(1, 1, x), lambda x: c.two_tier_goodput(0.5, (x, 1, 1), (9, 1, 1), 100),
    ],
)  # fmt: skip
def test_nonsense_is_named(call: Callable[[float], float], bad: float) -> None:
    with pytest.raises(UsageError, match=f"got {bad}"):
        call(bad)


@pytest.mark.parametrize("bad", NONSENSE)
def test_negative_restarts_and_impossible_shares(bad: float) -> None:
    with pytest.raises(UsageError, match=f"restart must be finite and not negative, got {bad}"):
        c.exact_goodput(10, 1, 100, bad)
    with pytest.raises(UsageError, match=f"within 0 and 1, got {bad}"):
        c.budget_per_failure(bad, 100)
    with pytest.raises(UsageError, match=f"within 0 and 1, got {bad}"):
        c.two_tier_goodput(bad, (9, 1, 1), (9, 1, 1), 100)


def test_absurd_fleets_are_refused() -> None:
    with pytest.raises(UsageError, match=r"2,000,000,000 nodes would be in repair"):
        c.spares_needed(1e9, 2, 0.1)
