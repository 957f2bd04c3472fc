from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.launch import removing
from orchestrator.launch.base import RECORDS
from orchestrator.launch.removing import Remover


def tree(root: Path) -> Path:
    (root / "checkpoints" / "1").mkdir(parents=True)
    (root / "checkpoints" / "1" / "shard").touch()
    (root / "job.json").touch()
    return root


def test_nobody_waits_for_what_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, real = threading.Event(), shutil.rmtree

    def slow(path: Path, **given: Any) -> None:  # noqa: ANN401 - as shutil has them
        assert go_on.wait(120)
        real(path, **given)

    monkeypatch.setattr(removing.shutil, "rmtree", slow)
    remover = Remover(print)
    for _ in range(2):  # the second under a name that is taken still
        remover.remove(tree(tmp_path / "run"))
        assert not (tmp_path / "run").exists()
        assert list(tmp_path.glob("[!.]*")) == []
    assert len(list(tmp_path.iterdir())) == 2
    go_on.set()
    remover.wait()
    assert list(tmp_path.iterdir()) == []
    remover.remove(tmp_path / "run")
    remover.wait()


def test_what_an_earlier_process_left_goes_and_nothing_else(tmp_path: Path) -> None:
    tree(tmp_path / ".removing-one")
    tree(tmp_path / ".removing-two.ab12")
    tree(tmp_path / "run")
    remover = Remover(print)
    remover.sweep(tmp_path)
    remover.wait()
    assert [one.name for one in tmp_path.iterdir()] == ["run"]


def test_what_cannot_be_removed_is_told_once_and_all_else_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.unlink

    def stubborn(path: Any, **given: Any) -> None:  # noqa: ANN401 - as os has them
        if "shard" in str(path):
            raise OSError(30, "Read-only file system", str(path))
        real(path, **given)

    monkeypatch.setattr(os, "unlink", stubborn)
    said = list[str]()
    remover = Remover(said.append)
    remover.remove(tree(tmp_path / "run"))
    remover.remove(tree(tmp_path / "other"))
    remover.wait()
    doomed = tmp_path / ".removing-run"
    assert not (doomed / "job.json").exists()
    assert len(said) == 2, "once for each folder"
    assert said[0].startswith(
        f"{doomed}, of a run that was deleted, cannot be removed: [Errno 30] Read-only file system"
    )


def test_what_is_being_removed_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For those who list the runs of a home by their records."""
    monkeypatch.setattr(removing.shutil, "rmtree", lambda path, **_: None)
    kept = tree(tmp_path / "kept")
    Remover(print).remove(tree(tmp_path / "run"))
    assert len(list(tmp_path.rglob("job.json"))) == 2
    assert [path.parent for path in tmp_path.glob(RECORDS)] == [kept]
