"""The order of training: pure, complete, and the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.data.order import BLOCK, Order, shares


def step_of(seed: int, step: int, batch: int, windows: int) -> NDArray[np.int64]:
    return Order((windows,)).samples(seed, step * batch, batch)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 700), st.integers(1, 64), st.integers(0, 3))
def test_no_window_is_lost_or_seen_twice_in_an_epoch(seed: int, windows: int, batch: int, epoch: int) -> None:
    first, last = epoch * windows // batch, (epoch + 1) * windows // batch + 1
    order = np.concatenate([step_of(seed, step, batch, windows) for step in range(first, last)])
    start = epoch * windows - first * batch
    assert sorted(order[start : start + windows].tolist()) == list(range(windows))


@pytest.mark.parametrize("weights", [None, (3.0, 1.0, 1.0)])
def test_the_order_depends_on_samples_seen_not_on_the_batch(weights: tuple[float, ...] | None) -> None:
    order = Order((50, 30, 20), weights)
    one_by_one = [int(order.samples(3, n, 1)[0]) for n in range(240)]
    assert np.concatenate([order.samples(3, n, 24) for n in range(0, 240, 24)]).tolist() == one_by_one
    far = 10**6 * BLOCK - 7
    assert order.samples(3, far, 14).tolist() == [int(order.samples(3, far + n, 1)[0]) for n in range(14)]


def test_seeds_and_epochs_differ_and_look_shuffled() -> None:
    size = 1000
    orders = [step_of(seed, epoch, size, size) for seed in range(4) for epoch in range(4)]
    assert len({order.tobytes() for order in orders}) == 16
    for order in orders:
        assert (order == np.arange(size)).sum() < 12  # expected: 1 fixed point
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.15  # standard deviation: 0.03
        assert 0.4 < (np.diff(order) > 0).mean() < 0.6


def test_small_epochs_use_all_permutations() -> None:
    seen = {step_of(seed, 0, 3, 3).tobytes() for seed in range(200)}
    assert len(seen) == 6


def test_the_order_is_the_same_for_ever() -> None:
    """Resuming an old run with a newer program must not change what it reads next."""
    assert step_of(1, 0, 8, 1000).tolist() == [791, 498, 166, 904, 254, 147, 941, 416]
    assert step_of(1, 10**12, 2, 3_600_000_000).tolist() == [2472510199, 1103231720]
    assert Order((50, 30, 20), (3.0, 1.0, 1.0)).samples(1, 5000, 8).tolist() == [63, 49, 8, 27, 0, 9, 47, 35]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(1, 300), st.floats(0.01, 100)), min_size=1, max_size=5),
    st.integers(0, 2),
)
def test_every_block_of_a_mixture_holds_the_weights_exactly(
    seed: int, sources: list[tuple[int, float]], block: int
) -> None:
    counts, weights = tuple(n for n, _ in sources), tuple(w for _, w in sources)
    numbers = Order(counts, weights).samples(seed, block * BLOCK, BLOCK)
    ends = np.cumsum(counts)
    source = np.searchsorted(ends, numbers, side="right")
    assert np.bincount(source, minlength=len(counts)).tolist() == list(shares(weights))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 400), min_size=2, max_size=4), st.integers(1, 9000))
def test_in_a_mixture_no_sequence_is_seen_again_before_all_of_its_source_were(
    seed: int, counts: list[int], samples: int
) -> None:
    order = Order(tuple(counts), tuple(range(1, len(counts) + 1)))
    seen = np.bincount(order.samples(seed, 0, samples), minlength=sum(counts))
    for mine in np.split(seen, np.cumsum(counts)[:-1]):
        assert mine.max() - mine.min() <= 1


def test_a_mixture_spreads_its_sources() -> None:
    order = Order((1000, 1000), (1.0, 1.0))
    for first in range(0, BLOCK, 512):
        share = (order.samples(2, first, 512) < 1000).mean()
        assert 0.4 < share < 0.6


def test_shares_by_hand() -> None:
    assert shares((1.0,)) == (BLOCK,)
    assert shares((1.0, 1.0)) == (2048, 2048)
    assert sum(shares((0.1, 0.2, 0.7))) == BLOCK
    assert shares((1e-9, 1.0)) == (1, BLOCK - 1)  # a source that was asked for is never left out
    assert shares((1e300, 1e300)) == (2048, 2048)


def test_epochs_of_each_source() -> None:
    assert Order((10, 30)).epochs(80) == (2.0, 2.0)
    assert Order((64, 32), (1.0, 1.0)).epochs(BLOCK) == (32.0, 64.0)


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 0)])
def test_nonsense_is_refused(first: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        Order((5,)).samples(0, first, count)


@pytest.mark.parametrize(
    ("counts", "weights"), [((), None), ((0, 1), None), ((1, 1), (1.0,)), ((1, 1), (1.0, 0.0)), ((1,), (-1.0,))]
)
def test_sources_without_sequences_or_weights_are_refused(
    counts: tuple[int, ...], weights: tuple[float, ...] | None
) -> None:
    with pytest.raises(ValueError, match="source"):
        Order(counts, weights)
