"""A metric along its steps: nothing is invented, nothing is said beyond the ends, thinning keeps what matters."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.compared import BITS, facts, point

from orchestrator.compare.curve import (
    Curve,
    best_at,
    curve_of,
    first_reach,
    noise,
    thinned,
    value_at,
    windowed,
)
from orchestrator.compare.facts import Axis, RunFacts
from orchestrator.compare.measures import better_of, is_priced, unit_of, window_of
from orchestrator.status import Phase

VALUES = st.floats(-1e6, 1e6)
CURVES = st.dictionaries(st.integers(0, 400), VALUES, min_size=1, max_size=60).map(lambda found: made(found))


def made(values: dict[int, float]) -> Curve:
    points = tuple(point(step, bits=values[step]) for step in sorted(values))
    return curve_of(RunFacts("a", "t", "u", Phase.SUCCEEDED, points=points), BITS)


@given(CURVES, st.sampled_from(Axis), st.floats(-10, 1e15))
def test_a_value_lies_between_its_neighbours_and_never_beyond_the_ends(curve: Curve, axis: Axis, x: float) -> None:
    found, xs = value_at(curve, axis, x), curve.xs(axis)
    if not xs[0] <= x <= xs[-1]:
        assert found is None
        return
    assert found is not None
    before = max(i for i, at in enumerate(xs) if at <= x)
    if xs[before] == x:
        assert (found.value, found.how) == (curve.values[before], "measured")
    else:
        ends = curve.values[before : before + 2]
        assert min(ends) <= found.value <= max(ends)
        assert found.how == "interpolated"


@given(CURVES)
def test_at_every_measured_point_the_measured_value_is_found(curve: Curve) -> None:
    for axis in Axis:
        for one, value in zip(curve.points, curve.values, strict=True):
            found = value_at(curve, axis, one.at(axis))
            assert found is not None
            assert (found.value, found.how) == (value, "measured")


@given(CURVES, VALUES)
def test_a_level_is_reached_between_a_worse_and_a_better_point(curve: Curve, level: float) -> None:
    place = first_reach(curve, level, "lower")
    at = next((i for i, value in enumerate(curve.values) if value <= level), None)
    if at is None:
        assert place is None
        return
    assert place is not None
    low = curve.points[max(0, at - 1)]
    assert low.dollars <= place.dollars <= curve.points[at].dollars
    assert low.tokens <= place.tokens <= curve.points[at].tokens


def test_a_level_on_the_way_is_interpolated_on_every_axis() -> None:
    place = first_reach(made({0: 4.0, 10: 2.0}), 3.0, "lower")
    assert place is not None
    assert (place.step, place.tokens, place.flops, place.hours, place.dollars) == (5, 500, 5e12, 2.5, 5.0)
    assert place.how == "interpolated"
    up = first_reach(made({0: 0.1, 10: 0.3}), 0.2, "higher")
    assert up is not None
    assert up.step == 5
    assert first_reach(made({0: 4.0}), 3.0, "lower") is None


@given(st.lists(VALUES, min_size=1, max_size=300), st.integers(3, 60), st.sampled_from(["lower", "higher"]))
def test_thinning_keeps_first_last_and_best_and_invents_nothing(values: list[float], limit: int, better: str) -> None:
    kept = thinned(values, limit, better)  # type: ignore[arg-type]
    assert kept == sorted(set(kept))
    assert len(kept) <= limit
    assert set(kept) <= set(range(len(values)))
    assert {0, len(values) - 1} <= set(kept)
    best = min(values) if better == "lower" else max(values)
    assert best in [values[i] for i in kept]
    if len(values) <= limit:
        assert kept == list(range(len(values)))


def test_a_spike_survives_thinning_where_it_is_the_best() -> None:
    values = [5.0] * 10_000
    values[4321] = 1.0
    assert 4321 in thinned(values, 500, "lower")
    with pytest.raises(ValueError, match="at least 3 points"):
        thinned(values, 2, "lower")


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=80), st.integers(2, 20))
def test_means_are_those_of_the_last_steps(values: list[float], window: int) -> None:
    curve = windowed(made(dict(enumerate(values))), window)
    for i, mean in enumerate(curve.means):
        part = values[max(0, i + 1 - window) : i + 1]
        assert mean == pytest.approx(sum(part) / len(part), abs=1e-9)
    assert curve.values == tuple(values), "they stay as they were measured"
    end = value_at(curve, Axis.step, float(len(values) - 1))
    assert end is not None
    assert (end.value, end.how) == (curve.means[-1], "mean")


def test_noise_is_of_the_steps_and_not_of_the_fall() -> None:
    falling = windowed(made({i: 10 - 0.01 * i for i in range(100)}), 10)
    jumping = windowed(made({i: 5 + (-1) ** i for i in range(100)}), 10)
    assert noise(falling, 99) < 0.01
    assert noise(jumping, 99) == pytest.approx(math.sqrt(2 / 10), rel=0.01), "neighbours differ by 2: variance 2"
    assert noise(made({0: 1.0, 1: 9.0}), 1) == 0, "an evaluation stands for itself"


def test_the_best_of_evaluations_and_the_last_of_means() -> None:
    curve = made({1: 3.0, 2: 1.0, 3: 2.0})
    assert best_at(curve, "lower") == 1
    assert best_at(curve, "higher") == 0
    assert best_at(windowed(curve, 2), "lower") == 2
    assert best_at(curve, None) is None
    assert best_at(curve_of(facts("a", {}), BITS), "lower") is None


def test_a_clock_that_was_set_back_gives_no_money_back() -> None:
    points = (point(1, dollars=5.0, bits=3.0), point(2, dollars=4.0, bits=2.0), point(3, dollars=6.0, bits=1.0))
    curve = curve_of(RunFacts("a", "t", "u", Phase.SUCCEEDED, points=points), BITS)
    assert curve.xs(Axis.dollars) == [5.0, 5.0, 6.0]
    found = value_at(curve, Axis.dollars, 5.0)
    assert found is not None
    assert found.value == 2.0


@pytest.mark.parametrize(
    ("metric", "unit", "better", "priced"),
    [
        ("eval/bits_per_byte", "bits per byte", "lower", True),
        ("eval/bits_per_byte/code", "bits per byte", "lower", True),
        ("train/loss", "nats per token", "lower", True),
        ("eval/arc/acc_norm", "share", "higher", True),
        ("eval/wiki/perplexity", "", "lower", False),
        ("train/mfu", "share of peak", "higher", False),
        ("moe/dead_share", "", "lower", False),
        ("train/learning_rate", "", None, False),
        ("mine/own", "", None, False),
    ],
)
def test_what_is_known_of_a_metric(metric: str, unit: str, better: str | None, priced: bool) -> None:
    assert (unit_of(metric), better_of(metric), is_priced(metric)) == (unit, better, priced)


def test_only_metrics_of_steps_are_averaged() -> None:
    assert window_of("train/loss", 110) == 11
    assert window_of("train/loss", 5) == 1
    assert window_of("moe/cv", 10**6) == 50
    assert window_of("eval/bits_per_byte", 10**6) == 1
