from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.api import Service

    from orchestrator.store.sqlite import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """An empty job store in the file `fathom.db` of the test's own folder."""
    from orchestrator.store.sqlite import SqliteStore

    made = SqliteStore(tmp_path / "fathom.db")
    yield made
    made.database.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """The real REST API in process, over an empty home."""
    from support.api import Service

    made = Service(tmp_path)
    yield made
    made.close()
