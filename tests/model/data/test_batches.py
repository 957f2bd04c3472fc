"""What each process reads, and the checksum over it."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokens import write_tokens

from model.data import TrainingBatches, TrainingWindows, audit, sample_checksum
from model.ramp import BatchSchedule, ramp


def windows_of(folder: Path, tokens: int = 250) -> TrainingWindows:
    sides = {"a": (list(range(tokens)), [1, 2]), "b": (list(range(tokens // 5)), [1, 2])}
    return TrainingWindows(folder, write_tokens(folder, sides), 3, 1)


def schedule(*sequences: int) -> BatchSchedule:
    """A stage of five steps for each size."""
    firsts = tuple(range(0, 5 * len(sequences), 5))
    samples = np.cumsum([0, *(5 * size for size in sequences[:-1])])
    return BatchSchedule(firsts, tuple(int(one) for one in samples), sequences)


@pytest.mark.parametrize("sizes", [(8,), (8, 16, 24)])
def test_another_world_size_sees_the_same_windows(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    windows, batches_by_step = windows_of(tmp_path), schedule(*sizes)
    for step in (0, 5, 12):
        seen = set()
        for world, micro in [(1, 8), (2, 4), (4, 1), (2, 1), (8, 1), (1, 2)]:
            batches = TrainingBatches(windows, 9, world, micro, batches_by_step)
            passes = batches.passes(step)
            assert passes * world * micro == batches_by_step.at(step)
            parts = [batches.numbers_for(step, rank, k) for k in range(passes) for rank in range(world)]
            seen.add(np.concatenate(parts).tobytes())
            rows = batches.batch_for(step, world - 1, passes - 1)
            assert rows.shape == (micro, 4)
            assert (rows == windows.read(parts[-1])).all()
        first = batches_by_step.samples_before(step)
        assert seen == {windows.order.samples(9, first, batches_by_step.at(step)).tobytes()}


def test_steps_of_growing_batches_follow_each_other_without_a_gap(tmp_path: Path) -> None:
    windows = windows_of(tmp_path)
    batches = TrainingBatches(windows, 4, 1, 2, BatchSchedule.of(ramp(2, 10, 60, 2)))
    found = np.concatenate([batches.numbers(step) for step in range(25)])
    assert found.tolist() == windows.order.samples(4, 0, found.size).tolist()


@pytest.mark.parametrize(("rank", "k"), [(2, 0), (-1, 0), (0, 3), (0, -1)])
def test_ranks_and_passes_out_of_range(tmp_path: Path, rank: int, k: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        TrainingBatches(windows_of(tmp_path), 0, 2, 1, schedule(6)).batch_for(0, rank, k)


def test_a_batch_that_cannot_be_shared_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes 6 sequences, which 2 processes with 2 at a time cannot share"):
        TrainingBatches(windows_of(tmp_path), 0, 2, 2, schedule(6)).passes(0)


def test_the_checksum_by_hand() -> None:
    one = zlib.crc32(bytes([3, 0, 0, 0, 0, 0, 0, 0] + [1, 1, 0, 0, 0, 0, 0, 0] + [2] + 7 * [0]))
    two = zlib.crc32(bytes([4] + 7 * [0] + [5] + 7 * [0] + [6] + 7 * [0]))
    assert sample_checksum(np.array([3, 4]), np.array([[257, 2], [5, 6]])) == one + two
    assert sample_checksum(np.array([], dtype=np.int64), np.empty((0, 5), dtype=np.int64)) == 0
    with pytest.raises(ValueError, match="zip"):
        sample_checksum(np.array([1, 2]), np.array([[1]]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 24), st.integers(1, 6), st.integers(1, 8))
def test_the_checksum_does_not_depend_on_how_sequences_are_divided(seed: int, n: int, parts: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    numbers, windows = rng.permutation(1000)[:n], rng.integers(0, 300, (n, length))
    whole = sample_checksum(numbers, windows)
    assert 0 <= whole < n * 2**32
    order = rng.permutation(n)
    divided = [sample_checksum(numbers[part], windows[part]) for part in np.array_split(order, parts)]
    assert sum(divided) == whole
    assert sample_checksum(numbers, np.asfortranarray(windows)) == whole
    changed = windows.copy()
    changed[rng.integers(n), rng.integers(length)] += 1
    assert sample_checksum(numbers, changed) != whole
    assert sample_checksum(numbers + 1, windows) != whole


def test_the_checksum_of_a_step_is_the_same_on_all_layouts(tmp_path: Path) -> None:
    windows, sums = windows_of(tmp_path), set()
    for world, micro in ((1, 8), (2, 2), (8, 1)):
        batches = TrainingBatches(windows, 9, world, micro, schedule(8))
        each = [(3, rank, k) for rank in range(world) for k in range(batches.passes(3))]
        sums.add(sum(sample_checksum(batches.numbers_for(*at), batches.batch_for(*at)) for at in each))
    assert len(sums) == 1


# What a run was trained on, afterwards


def reported(batches: TrainingBatches, steps: int) -> dict[int, int | None]:
    numbers = [batches.numbers(step) for step in range(steps)]
    return {n + 1: sample_checksum(one, batches.windows.read(one)) for n, one in enumerate(numbers)}


def test_an_audit_of_a_good_run_finds_nothing(tmp_path: Path) -> None:
    batches = TrainingBatches(windows_of(tmp_path), 9, 1, 4, schedule(4, 8))
    told: list[tuple[int, int]] = []
    found = audit(batches, reported(batches, 24), told=lambda done, total: told.append((done, total)))
    assert found.sound
    assert (found.steps, found.samples, found.missing, found.different) == (24, 5 * 4 + 19 * 8, (), ())
    assert [source.windows for source in found.sources] == [83, 16]
    assert sum(source.samples for source in found.sources) == found.samples
    assert {(source.least, source.most) for source in found.sources} == {(1, 2)}
    assert told[-1] == (24, 24)


def test_an_audit_finds_a_lost_a_doubled_and_a_changed_step(tmp_path: Path) -> None:
    batches = TrainingBatches(windows_of(tmp_path), 9, 1, 4, schedule(4))
    steps = reported(batches, 12)
    steps[5] = steps[4]  # the same data twice
    steps[9] = None
    del steps[7]
    found = audit(batches, steps)
    assert not found.sound
    assert (found.missing, found.different) == ((7, 9), (5,))


def test_an_audit_knows_what_was_left_out_on_purpose(tmp_path: Path) -> None:
    batches = TrainingBatches(windows_of(tmp_path), 9, 1, 4, schedule(4))
    done = reported(batches, 30)
    without = {step: done[step if step <= 3 else step + 1] for step in range(1, 29)}
    assert not audit(batches, without).sound
    found = audit(batches, without, skipped={3})
    assert found.sound
    assert found.skipped == (3,)
