"""What MLflow is told of a run, where its data is somewhere else."""

from __future__ import annotations

import pytest

from orchestrator.controller import wanted
from orchestrator.spec import Data


@pytest.mark.parametrize("uri", ["s3://bucket/web", "pvc://claim/web", "https://example.com/web"])
def test_data_of_other_machines_is_not_opened_for_it(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """Without their credentials that failed at each try, and nothing of the run was sent."""
    monkeypatch.setattr(wanted, "read_manifest", lambda uri: pytest.fail(f"{uri} was opened"))
    assert wanted._data(Data(source=uri), uri) == ({}, ())
