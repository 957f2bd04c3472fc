"""`fathom train` whose driver says that nothing can be done; real processes, and no training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import dataset, tiny_job

from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import Ended, read

ROOT = Path(__file__).parents[3]


@pytest.mark.processes
def test_what_no_retry_can_cure_fails_at_once(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "job.json"
    home.mkdir()
    (home / "story.json").write_text(json.dumps({"seconds": 1.0, "outcome": "failed", "failure": "user-error"}))
    job = tiny_job(str(dataset(tmp_path / "data")))
    file.write_text(job.model_dump_json(by_alias=True, exclude_none=True))
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("FATHOM_", "MLFLOW_", "RAY_"))}
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-m", "support.training", str(file)],
        env=clean | {"FATHOM_HOME": str(home), "FATHOM_CPUS": "8", "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    folder = RunFolder(next(home.glob("tiny-*")))
    assert "attempt 1 failed (user-error): as it was told" in done.stderr
    assert str(folder.log(1)) in done.stderr
    assert [event.attempt for event in read(folder.events)[0] if isinstance(event, Ended)] == [1]
