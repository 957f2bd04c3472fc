from pathlib import Path

import pytest
from corpora import texts, write_folder

import model.corpus.output


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time would go into making files durable that are removed a moment later."""
    monkeypatch.setattr(model.corpus.output, "make_durable", lambda path: None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """40 documents in two folders."""
    return write_folder(tmp_path / "source", texts(40))
