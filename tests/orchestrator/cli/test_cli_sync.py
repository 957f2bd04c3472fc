"""`fathom sync` as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.mirrored import Story

from orchestrator.launch import local

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.processes


def fathom(home: Path, *arguments: str, uri: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from orchestrator.cli.main import main; main()", *arguments]
    own = {"PYTHONPATH": str(ROOT), "FATHOM_HOME": str(home), "COLUMNS": "200"} | (
        {"MLFLOW_TRACKING_URI": uri} if uri else {}
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | own
    return subprocess.run(command, capture_output=True, text=True, cwd=home, env=environment, check=False)


def test_what_a_launcher_has_left_is_finished(tmp_path: Path) -> None:
    root = Story(tmp_path, "left").whole().record.folder.root
    away = fathom(tmp_path, "sync", uri="http://user:secret@127.0.0.1:9")
    assert away.returncode == 1, away.stderr
    assert away.stdout.startswith(f"{root}: still behind: MLflow at http://127.0.0.1:9: ")
    assert len(away.stdout.splitlines()) == 1
    assert "secret" not in away.stdout + away.stderr + (root / "tracking.json").read_text()
    done = fathom(tmp_path, "sync")
    assert (done.returncode, done.stdout) == (0, f"{root}: caught up\n"), done.stderr
    again = fathom(tmp_path, "sync", str(root))
    assert (again.returncode, again.stdout) == (0, f"{root}: up to date\n"), again.stderr
    with local.hold_lock(root / "launcher.lock"):
        followed = fathom(tmp_path, "sync", str(root))
    assert (followed.returncode, "followed by another process" in followed.stdout) == (0, True)


def test_without_runs_there_is_nothing_to_do(tmp_path: Path) -> None:
    done = fathom(tmp_path, "sync")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no runs in" in done.stderr


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    done = fathom(tmp_path, "sync", "nowhere")
    assert done.returncode == 3
    assert "nowhere is not the folder of a run" in done.stderr


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/job.json").write_text("{")
    root = Story(tmp_path, "left").whole().record.folder.root
    done = fathom(tmp_path, "sync")
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/broken: still behind: ")
    assert second == f"{root}: caught up"
