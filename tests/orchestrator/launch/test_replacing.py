"""A file is replaced whole or not at all, and nothing else is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.launch import files
from orchestrator.launch.files import replace_file


@pytest.mark.parametrize("durable", [False, True])
def test_the_folder_is_made_where_there_is_none(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a" / "b" / "file"
    for text in ("one", "two"):
        replace_file(path, text, durable=durable)
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["file"]


def test_a_disk_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, "one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, "two", durable=True)
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["file"]
