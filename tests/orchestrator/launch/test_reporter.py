import json
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from model.reporting import Reporter, Stop
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import (
    CheckpointAndStop,
    CheckpointCommitted,
    Continue,
    Progress,
    Started,
    Warning_,
    read,
    write_control,
)
from orchestrator.launch.reporter import FileReporter


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def reporter(folder: RunFolder, stop_at: float | None = None) -> FileReporter:
    return FileReporter(folder.root, "u", 2, "i", stop_at)


def test_what_a_worker_says_becomes_events(folder: RunFolder) -> None:
    told: Reporter = pickle.loads(pickle.dumps(reporter(folder)))
    told.started(step=3, tokens=30, world_size=2, resumed_from="x")
    told.progress(step=4, tokens=40, metrics={"train/loss": 2.5, "broken": float("nan")})
    told.checkpoint_committed(step=4, uri="x/step-4", size_bytes=5, seconds=0.5)
    told.warning("mind the gap")
    events, _ = read(folder.events)
    started, progress, saved, warning = events
    assert isinstance(started, Started)
    assert (started.step, started.world_size, started.resumed_from) == (3, 2, "x")
    assert isinstance(progress, Progress)
    assert progress.metrics == {"train/loss": 2.5}
    assert isinstance(saved, CheckpointCommitted)
    assert (saved.uri, saved.size_bytes) == ("x/step-4", 5)
    assert isinstance(warning, Warning_)
    assert {(e.job, e.attempt, e.incarnation) for e in events} == {("u", 2, "i")}
    assert [e.seq for e in events] == [1, 2, 3, 4]


def test_nonsense_is_not_written(folder: RunFolder) -> None:
    with pytest.raises(ValidationError):
        reporter(folder).progress(step=-1, tokens=0, metrics={})
    assert read(folder.events)[0] == []


def test_an_artifact_replaces_the_older_one_and_leaves_no_draft(folder: RunFolder) -> None:
    reporter(folder).artifact("sample.txt", b"old")
    reporter(folder).artifact("sample.txt", b"new")
    assert (folder.artifacts / "sample.txt").read_bytes() == b"new"
    assert [path.name for path in folder.artifacts.iterdir()] == ["sample.txt"]


def test_the_order_to_stop_comes_from_the_control_file(folder: RunFolder) -> None:
    told = reporter(folder)
    assert told.stop_requested() is None
    write_control(folder.control, Continue())
    assert told.stop_requested() is None
    write_control(folder.control, CheckpointAndStop(deadline=12.5, reason="interrupted"))
    assert told.stop_requested() == Stop(12.5, "interrupted")


def test_the_end_of_the_budget_stops_with_nobody_watching(folder: RunFolder) -> None:
    past, future = time.time() - 1, time.time() + 3600
    assert reporter(folder, past).stop_requested() == Stop(past, "over-budget")
    assert reporter(folder, future).stop_requested() is None
    write_control(folder.control, CheckpointAndStop(deadline=12.5, reason="interrupted"))
    assert reporter(folder, past).stop_requested() == Stop(12.5, "interrupted"), "an order comes first"


def test_the_first_failure_is_believed(folder: RunFolder) -> None:
    told = reporter(folder)
    assert not told.has_failed()
    told.failed("not-finite", "the loss is nan at step 3")
    told.failed("user-error", "a peer has gone")
    assert told.has_failed()
    body = {"attempt": 2, "incarnation": "i", "class": "not-finite", "message": "the loss is nan at step 3"}
    assert json.loads(folder.failure.read_text()) == body
    assert [path.name for path in folder.root.iterdir()] == [folder.failure.name]


def test_failures_of_many_at_once_leave_one_whole_file(folder: RunFolder) -> None:
    def fail(number: int) -> None:
        reporter(folder).failed("user-error", f"{number} " * 10_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fail, range(8)))
    message = json.loads(folder.failure.read_text())["message"]
    assert message == message[:2] * 10_000
    assert [path.name for path in folder.root.iterdir()] == [folder.failure.name]


def test_a_rank_killed_while_it_says_why_leaves_nothing_half(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        with pytest.raises(KeyboardInterrupt):
            reporter(folder).failed("user-error", "x")
    assert not reporter(folder).has_failed()
    reporter(folder).failed("out-of-memory", "y")
    assert json.loads(folder.failure.read_text())["class"] == "out-of-memory"
