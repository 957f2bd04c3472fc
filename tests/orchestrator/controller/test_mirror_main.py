from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from support.home import wait_for
from support.launcher import Stage, trains_on

from orchestrator.controller.mirror_main import Mirrors, News
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


def test_what_has_come_is_taken_before_it_begins_anew() -> None:
    """And what has not, stays in the pipe for the next one."""
    out, into = os.pipe()
    news = News(out)
    threading.Thread(target=news.read, daemon=True).start()
    os.write(into, b"one\n\ntwo\nthr")
    waiting: dict[str, None] = {}
    while len(waiting) < 2:
        assert news.take(waiting)
    assert list(waiting) == ["one", "two"]
    assert not news.stop(), "half a name was read"
    os.write(into, b"ee\n")
    while "three" not in waiting:
        assert news.take(waiting)
    assert news.stop()
    os.write(into, b"four\n")
    assert news.take(waiting, 0.3)
    assert "four" not in waiting
    assert os.read(out, 100) == b"four\n"


@pytest.mark.processes
def test_it_gives_its_room_back_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    script = """if True:
        import sys
        from orchestrator.controller import mirror_main
        mirror_main.IDLE_SECONDS = 0.0
        sys.modules["mlflow"] = sys
        mirror_main.main()
    """
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, env=os.environ | {"FATHOM_HOME": str(tmp_path)}
    )
    try:
        wait_for(lambda: "orchestrator.controller.mirror_main" in psutil.Process(child.pid).cmdline() or None)
        assert child.stdin is not None
        child.stdin.write(b"nothing-of-that-name\n")
        child.stdin.close()
        assert child.wait(120) == 0, "it heard the end of its controller"
    finally:
        child.kill()
        child.wait()
