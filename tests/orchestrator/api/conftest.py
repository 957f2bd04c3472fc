from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.service import Runs


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """An API over an empty home."""
    made = Runs(tmp_path / "home")
    yield made
    made.close()
