"""Windows over the tokens of each source."""

from pathlib import Path

import numpy as np
import pytest
from support.tokens import write_tokens

from model.data import TokenSplit, TrainingWindows, Windows, heldout_windows
from model.dataset import DatasetManifest


def windows_of(folder: Path, manifest: DatasetManifest, length: int, extra: int) -> Windows:
    return Windows(TokenSplit(folder, manifest, manifest.sources[0], "train"), length, extra)


def test_windows_overlap_by_extra_and_cover_targets_once(tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path, {"s": (list(range(30)), list(range(100, 123)))}, shard_tokens=7)
    windows = windows_of(tmp_path, manifest, 4, 2)
    assert windows.count == 7
    rows = windows.read(range(7))
    assert rows.shape == (7, 6)
    assert rows.dtype == np.int64
    assert rows[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert rows[6].tolist() == [24, 25, 26, 27, 28, 29]
    assert rows[:, 1:5].ravel().tolist() == list(range(1, 29))
    for wrong in (-1, 7):
        with pytest.raises(IndexError, match=f"window {wrong} is not one of the 7"):
            windows.read([wrong])


@pytest.mark.parametrize(("limit", "count"), [(0, 1), (4, 1), (11, 2), (12, 3), (10**9, 5)])
def test_heldout_windows_come_in_order_up_to_the_limit(tmp_path: Path, limit: int, count: int) -> None:
    manifest = write_tokens(tmp_path, {"s": ([1, 2], list(range(100, 123)))})
    (rows,) = heldout_windows(tmp_path, manifest, 4, 1, limit).values()
    assert rows[:, :4].ravel().tolist() == list(range(100, 100 + 4 * count))
    assert (rows[:, 1:] == rows[:, :-1] + 1).all()


def test_heldout_windows_are_shared_among_the_sources(tmp_path: Path) -> None:
    sides = {
        "a": ([1, 2], list(range(81))),
        "b": ([1, 2], list(range(100, 121))),
        "c": ([1, 2], [1]),
        "d": ([3, 4], []),
    }
    manifest = write_tokens(tmp_path, sides)
    found = heldout_windows(tmp_path, manifest, 4, 1, 48)
    assert {name: len(rows) for name, rows in found.items()} == {"a": 9, "b": 2}  # c and d have no whole window
    assert {name: len(rows) for name, rows in heldout_windows(tmp_path, manifest, 4, 1, 1).items()} == {"a": 1, "b": 1}
    assert {name: len(rows) for name, rows in heldout_windows(tmp_path, manifest, 4, 1, 999).items()} == {
        "a": 20,
        "b": 5,
    }
    assert found["b"][0].tolist() == [100, 101, 102, 103, 104]
    with pytest.raises(ValueError, match=r"has 103 tokens, but one sequence needs 301"):
        heldout_windows(tmp_path, manifest, 300, 1, 48)


def test_too_little_text_names_both_numbers(tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path, {"s": (list(range(30)), [1, 2])})
    assert windows_of(tmp_path, manifest, 28, 2).count == 1
    assert windows_of(tmp_path, manifest, 29, 2).count == 0
    with pytest.raises(ValueError, match=r"30 tokens, but one sequence needs 31 \(sequence_length 29 \+ 2\)"):
        TrainingWindows(tmp_path, manifest, 29, 2)


def test_windows_of_several_sources_are_numbered_through(tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path, {"a": (list(range(21)), [1]), "b": (list(range(100, 113)), [1])}, shard_tokens=5)
    windows = TrainingWindows(tmp_path, manifest, 4, 1)
    assert (windows.count, windows.names, windows.ends) == (8, ("a", "b"), [5, 8])
    assert [windows.source_of(number) for number in range(8)] == [0] * 5 + [1] * 3
    assert windows.read([0, 4, 5, 7])[:, 0].tolist() == [0, 16, 100, 108]
    for wrong in (-1, 8):
        with pytest.raises(IndexError, match=f"window {wrong} is not one of the 8"):
            windows.read([wrong])
    windows.verify()


def test_weights_of_a_job_take_the_place_of_the_datasets(tmp_path: Path) -> None:
    sides = {"a": (list(range(21)), [1]), "b": (list(range(100, 113)), [1])}
    manifest = write_tokens(tmp_path, sides, weights={"a": 1.0, "b": 3.0})
    assert TrainingWindows(tmp_path, manifest, 4, 1).order.weights == (1.0, 3.0)
    assert TrainingWindows(tmp_path, manifest, 4, 1, {"a": 2.0, "b": 5.0}).order.weights == (2.0, 5.0)
    assert TrainingWindows(tmp_path, write_tokens(tmp_path, sides), 4, 1).order.weights is None
