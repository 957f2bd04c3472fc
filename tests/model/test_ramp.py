"""Batches that grow: pure arithmetic over steps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.ramp import MAX_STAGES, BatchSchedule, BatchStage, ramp


def test_the_papers_ramp() -> None:
    """3072 to 15360 sequences of 4K over 469B of 14.8T tokens (arXiv 2412.19437): about 243,000 steps in all."""
    stages = ramp(3072, 15360, 469_000_000_000 // 4096, 64)
    schedule = BatchSchedule.of(stages)
    assert (stages[0].sequences, stages[-1].sequences, len(stages)) == (3072, 15360, MAX_STAGES)
    assert schedule.samples_before(stages[-1].first_step) * 4096 == pytest.approx(469e9, rel=0.001)
    assert schedule.steps_for(14_800_000_000_000 // 4096) == pytest.approx(242_800, rel=0.002)


def test_a_small_ramp_by_hand() -> None:
    assert ramp(2, 8, 24, 2) == (
        BatchStage(first_step=0, sequences=2),
        BatchStage(first_step=4, sequences=4),
        BatchStage(first_step=6, sequences=6),
        BatchStage(first_step=8, sequences=8),
    )
    assert ramp(4, 4, 100, 4) == (BatchStage(first_step=0, sequences=4),)


sizes = st.tuples(st.integers(1, 8), st.integers(1, 40), st.integers(0, 60), st.integers(0, 5000))


@settings(max_examples=200, deadline=None)
@given(sizes)
def test_every_ramp_grows_in_its_units_and_reaches_the_end(drawn: tuple[int, int, int, int]) -> None:
    unit, first, more, samples = drawn
    final = (first + more) * unit
    stages = ramp(first * unit, final, samples, unit)
    found = [stage.sequences for stage in stages]
    assert found == sorted(set(found))
    assert all(size % unit == 0 for size in found)
    assert found[-1] == final
    assert len(stages) <= MAX_STAGES
    reached = BatchSchedule.of(stages).samples_before(stages[-1].first_step)
    assert reached < samples + final if more else reached == 0


@settings(max_examples=200, deadline=None)
@given(sizes, st.integers(0, 400))
def test_the_schedule_is_the_sum_of_its_steps(drawn: tuple[int, int, int, int], step: int) -> None:
    unit, first, more, samples = drawn
    schedule = BatchSchedule.of(ramp(first * unit, (first + more) * unit, samples, unit))
    assert schedule.samples_before(step) == sum(schedule.at(one) for one in range(step))
    done = schedule.samples_before(step)
    assert schedule.steps_for(done) == step
    assert schedule.steps_for(done + 1) == step + 1
    skipped = {0, step // 2, step} if step else {0}  # that of the position itself is still to come
    kept = [one for one in range(step) if one not in skipped]
    assert schedule.samples_done(step, skipped) == sum(schedule.at(one) for one in kept)


@pytest.mark.parametrize("arguments", [(3, 8, 10, 2), (2, 7, 10, 2), (8, 2, 10, 2), (0, 4, 10, 2)])
def test_sizes_that_do_not_fit_are_refused(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot grow from"):
        ramp(*arguments)


@pytest.mark.parametrize("firsts", [[], [1], [0, 5, 5], [0, 7, 3]])
def test_stages_out_of_order_are_refused(firsts: list[int]) -> None:
    with pytest.raises(ValueError, match="must begin at step 0"):
        BatchSchedule.of([BatchStage(first_step=one, sequences=2) for one in firsts])


def test_steps_count_from_zero() -> None:
    with pytest.raises(ValueError, match="count from 0, got -1"):
        BatchSchedule.of([BatchStage(first_step=0, sequences=2)]).at(-1)
