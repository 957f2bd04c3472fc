from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.service import Service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """An API over an empty home."""
    made = Service(tmp_path / "home")
    yield made
    made.close()
