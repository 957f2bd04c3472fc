"""Runs that nobody beats, against the definition spelled out."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.compare.pareto import dominated_by, frontier

SMALL = st.integers(0, 5).map(float)
"""So that ties are frequent."""


@given(st.lists(st.tuples(SMALL, SMALL), min_size=1, max_size=9), st.sampled_from(["lower", "higher"]))
def test_the_set_is_that_of_its_definition(runs: list[tuple[float, float]], better: str) -> None:
    costs, values = [cost for cost, _ in runs], [value for _, value in runs]
    beaten = dominated_by(costs, values, better)  # type: ignore[arg-type]
    for i, (cost, value) in enumerate(runs):
        expected = []
        for j, (other_cost, other) in enumerate(runs):
            as_good = other <= value if better == "lower" else other >= value
            truly = other_cost < cost or other != value
            if other_cost <= cost and as_good and truly:
                expected.append(j)
        assert beaten[i] == expected
    best = frontier(costs, values, better)  # type: ignore[arg-type]
    assert best, "somebody is always unbeaten"
    assert set(best) == {i for i, by in enumerate(beaten) if not by}
    assert [costs[i] for i in best] == sorted(costs[i] for i in best)
    for by in beaten:
        assert not by or set(by) & set(best), "whoever is beaten is beaten by one of the set, too"
