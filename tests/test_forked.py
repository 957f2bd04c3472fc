"""Processes that are forked with their imports done are else as if they had been started by this one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support.forked import in_processes

pytestmark = pytest.mark.processes


def tell(rank: int, folder: str) -> None:
    there = {"torch", "deepspeed"} <= sys.modules.keys()
    (Path(folder) / str(rank)).write_text(f"{os.environ.get('TEST_OF_FORKED')} {there} {os.getpid()}")


def stumble(rank: int, _: str) -> None:
    if rank == 1:
        raise ValueError("the second stumbled")


def test_they_have_the_environment_of_now_and_what_was_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    for value in ("one", "two"):
        monkeypatch.setenv("TEST_OF_FORKED", value)
        in_processes(tell, 2, str(tmp_path))
        seen[value] = [(tmp_path / str(rank)).read_text().split() for rank in range(2)]
    for value, found in seen.items():
        assert [words[:2] for words in found] == [[value, "True"]] * 2
    pids = {words[2] for found in seen.values() for words in found}
    assert len(pids | {str(os.getpid())}) == 5


def test_what_one_raises_is_raised(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="the second stumbled"):
        in_processes(stumble, 2, str(tmp_path))
