"""A job's storage, empty, with checkpoints, and one that is no folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import memory_uri, with_two

from model.checkpoint import Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "job"


@pytest.fixture
def store(root: Path) -> Store:
    """With two good checkpoints, of steps 5 and 10."""
    return with_two(root)


@pytest.fixture
def remote() -> Iterator[str]:
    with memory_uri() as uri:
        yield uri
