"""A checkpoint that could not be read at a claim counts again when it is repaired."""

from pathlib import Path

import pytest
from support.checkpoints import claimed, newest_step, save, with_two

from model.checkpoint import CheckpointError


def test_damaged_manifests_that_are_repaired_count_again(tmp_path: Path) -> None:
    root = tmp_path / "job"
    with_two(root)
    manifests = [root / f"checkpoints/step-{step}/manifest.json" for step in (5, 10)]
    before = [path.read_bytes() for path in manifests]
    for path in manifests:
        path.write_bytes(b"{")
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        claimed(root, 2, "b").resume_point()
    for path, content in zip(manifests, before, strict=True):
        path.write_bytes(content)
    third = claimed(root, 3, "c")
    assert newest_step(third) == 10
    save(third, 15)
    third.prune(2, 15)
    assert third.steps() == [10, 15]
