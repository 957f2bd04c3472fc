from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.launcher import Stage, trains_on

from orchestrator.controller.mirror_main import Mirrors
from orchestrator.controller.sync import Mirror
from orchestrator.launch.files import replace_file


def test_a_run_that_was_removed_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch)
    stage.stories.append(trains_on)
    controller = stage.controller()
    for _ in range(3):
        controller.turn()
    controller.close()
    monkeypatch.setattr(Mirror, "sync", lambda *_, **__: False)  # an MLflow that is down
    mirrors, name = Mirrors(stage.settings), stage.record.folder.root.name
    assert not mirrors.sync(name), "it is tried again"
    assert list(mirrors._mirrors) == [name]
    shutil.rmtree(stage.record.folder.root)
    assert mirrors.sync(name), "there is nothing to try again"
    assert not mirrors._mirrors, "its events take no memory any more"
    stage.store.database.close()


def test_a_run_that_is_removed_while_it_is_sent_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch)
    folder = stage.record.folder

    def removed_meanwhile(*_: object, **__: object) -> bool:
        shutil.rmtree(folder.root)
        replace_file(folder.tracking, "{}")
        folder.tracking_lock.touch()
        folder.artifacts.mkdir()
        return True

    monkeypatch.setattr(Mirror, "sync", removed_meanwhile)
    mirrors = Mirrors(stage.settings)
    assert mirrors.sync(folder.root.name)
    assert not folder.root.exists()
    assert not mirrors._mirrors
    stage.store.database.close()


def test_what_mlflow_does_without_is_not_loaded() -> None:
    """A process of its own: this one may have loaded anything."""
    script = """if True:
        import sys
        from orchestrator.controller import mirror_main
        from orchestrator.tracking.client import connect
        mirror_main.LAST_SECONDS = 1e6
        mirror_main.main()
        connect("http://127.0.0.1:9")
        print([name for name in sys.modules if name.startswith("pandas.")])
    """
    done = subprocess.run(
        [sys.executable, "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]"]
