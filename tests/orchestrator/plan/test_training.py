"""Whole rounds of training and saving are counted at once: the same as one microsecond after the other."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.plan.simulate.training import Saving, Training

SAVINGS = st.builds(
    lambda near, copies, save, near_save, share: Saving(
        interval=near * copies, save=save, upload=int(near * copies * share), near_interval=near, near_save=near_save
    ),
    st.integers(1, 9), st.integers(1, 5), st.integers(0, 7), st.integers(0, 3), st.floats(0, 1),
)  # fmt: skip


class Ticks:
    """The same rules, a microsecond at a time; keeps every checkpoint with the time from which it counts."""

    def __init__(self, saving: Saving, target: int) -> None:
        self.saving, self.target = saving, target
        self.work = self.checkpoint = self.standstill = 0
        self.near: list[int] = [0]
        self.far: list[tuple[int, int]] = [(0, 0)]

    def run(self, now: int, until: int) -> int:
        while now < until and self.work < self.target:
            now += 1
            if self.standstill:
                self.standstill, self.checkpoint = self.standstill - 1, self.checkpoint + 1
                if not self.standstill:
                    self.save(now)
                continue
            self.work += 1
            if self.work % self.saving.near_interval == 0 and self.work < self.target:
                self.standstill = self.saving.near_save if self.work % self.saving.interval else self.saving.save
                if not self.standstill:
                    self.save(now)
        return now

    def save(self, now: int) -> None:
        self.near.append(self.work)
        if self.work % self.saving.interval == 0:
            self.far.append((self.work, now + self.saving.upload))

    def restore(self, now: int, in_memory: bool) -> int:
        counted = max(work for work, at in self.far if at <= now)
        point = max(counted, self.near[-1]) if in_memory else counted
        if not in_memory:
            self.far = [(work, at) for work, at in self.far if at <= now]
        lost, self.work, self.standstill = self.work - point, point, 0
        self.near = [point]
        return lost


@given(
    saving=SAVINGS,
    target=st.integers(1, 400),
    pieces=st.lists(st.tuples(st.integers(1, 120), st.sampled_from([None, True, False])), min_size=1, max_size=12),
)
def test_rounds_are_ticks(saving: Saving, target: int, pieces: Sequence[tuple[int, bool | None]]) -> None:
    training, ticks, now = Training(saving, target), Ticks(saving, target), 0
    for length, failure in pieces:
        reached = training.run(now, now + length, 1.0)
        assert reached == ticks.run(now, now + length)
        assert (training.work, training.checkpoint, training.slow) == (ticks.work, ticks.checkpoint, 0)
        now = reached
        if failure is not None and not training.done:
            assert training.restore(now, failure) == ticks.restore(now, failure)
            assert training.work == ticks.work
            now += 3


@given(saving=SAVINGS, slowdown=st.floats(1, 5), length=st.integers(1, 10_000), cut=st.floats(0, 1))
def test_no_time_is_lost_when_a_straggler_comes_and_goes(
    saving: Saving, slowdown: float, length: int, cut: float
) -> None:
    training = Training(saving, 10**9)
    middle = int(cut * length)
    assert training.run(0, middle, slowdown) == middle
    assert training.run(middle, length, 1.0) == length
    assert training.work + training.checkpoint + training.slow == length
    assert training.slow <= middle
