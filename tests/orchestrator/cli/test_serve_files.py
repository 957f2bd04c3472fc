from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from orchestrator.cli.serve import allow_files

FILES = resource.RLIMIT_NOFILE


@pytest.fixture
def few() -> Iterator[int]:
    """As many as a shell usually allows, at most."""
    soft, hard = resource.getrlimit(FILES)
    resource.setrlimit(FILES, (512, hard))
    yield hard
    resource.setrlimit(FILES, (soft, hard))


def test_each_job_may_keep_a_lock_open(few: int) -> None:
    allow_files(600)
    assert resource.getrlimit(FILES) == (600, few)
    allow_files(550)
    assert resource.getrlimit(FILES) == (600, few), "never fewer"
    allow_files(1 << 60)
    assert resource.getrlimit(FILES) == (few, few), "what the system allows"
