import json
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from model.anomaly import Incident
from model.reporting import Reporter, Stop
from orchestrator.launch import events as events_module
from orchestrator.launch import reporter as reporter_module
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import (
    Anomaly,
    CheckpointAndStop,
    CheckpointCommitted,
    Continue,
    FailureClass,
    HardDeadline,
    Progress,
    Started,
    Warning_,
    WorkersLost,
    read,
    write_control,
)
from orchestrator.launch.reporter import FileReporter


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def told(folder: RunFolder) -> Path:
    return folder.failure(2, "i")


def reporter(folder: RunFolder, stop_at: float | None = None) -> FileReporter:
    if stop_at is None:
        return FileReporter(folder.root, "u", 2, "i")
    deadline = HardDeadline(number=0, incarnation="i", stop=stop_at, end=stop_at + 1, limit=stop_at + 2)
    return FileReporter(folder.root, "u", 2, "i", deadline)


def test_what_a_worker_says_becomes_events(folder: RunFolder) -> None:
    told: Reporter = pickle.loads(pickle.dumps(reporter(folder)))
    told.started(step=3, tokens=30, world_size=2, resumed_from="x", arithmetic="fp8: by hand")
    told.progress(step=4, tokens=40, metrics={"train/loss": 2.5, "broken": float("nan")}, samples=2**63)
    told.checkpoint_committed(step=4, uri="x/step-4", size_bytes=5, seconds=0.5)
    told.warning("mind the gap")
    events, _ = read(folder.events)
    started, progress, saved, warning = events
    assert isinstance(started, Started)
    assert started.arithmetic == "fp8: by hand"
    assert (started.step, started.world_size, started.resumed_from) == (3, 2, "x")
    assert isinstance(progress, Progress)
    assert progress.metrics == {"train/loss": 2.5}
    assert progress.samples == 2**63
    assert isinstance(saved, CheckpointCommitted)
    assert (saved.uri, saved.size_bytes) == ("x/step-4", 5)
    assert isinstance(warning, Warning_)
    assert {(e.job, e.attempt, e.incarnation) for e in events} == {("u", 2, "i")}
    assert [e.seq for e in events] == [1, 2, 3, 4]


def test_nonsense_is_not_written(folder: RunFolder) -> None:
    with pytest.raises(ValidationError):
        reporter(folder).progress(step=-1, tokens=0, metrics={}, samples=0)
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


def test_the_end_of_the_budget_stops_with_nobody_watching(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    past, future = time.time() - 1, time.time() + 3600
    assert reporter(folder, future).stop_requested() is None
    restarted: FileReporter = pickle.loads(pickle.dumps(reporter(folder, past)))
    with monkeypatch.context() as other_process:
        other_process.setattr(reporter_module, "_NEWEST", {})
        assert restarted.stop_requested() == Stop(past + 1, "over-budget")
    write_control(folder.control, CheckpointAndStop(deadline=12.5, reason="interrupted"))
    assert reporter(folder, past).stop_requested() == Stop(12.5, "interrupted"), "an order comes first"


def test_the_first_failure_is_believed(folder: RunFolder) -> None:
    worker = reporter(folder)
    assert not worker.has_failed()
    worker.failed("not-finite", "the loss is nan at step 3")
    worker.failed("user-error", "a peer has gone")
    assert worker.has_failed()
    assert worker.failure() == (FailureClass.NOT_FINITE, "the loss is nan at step 3")
    body = {"attempt": 2, "incarnation": "i", "class": "not-finite", "message": "the loss is nan at step 3"}
    assert json.loads(told(folder).read_text()) == body
    assert [path.name for path in folder.root.iterdir()] == [told(folder).name]


def test_failures_of_many_at_once_leave_one_whole_file(folder: RunFolder) -> None:
    def fail(number: int) -> None:
        reporter(folder).failed("user-error", f"{number} " * 10_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fail, range(8)))
    message = json.loads(told(folder).read_text())["message"]
    assert message == message[:2] * 10_000
    assert [path.name for path in folder.root.iterdir()] == [told(folder).name]


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
    assert json.loads(told(folder).read_text())["class"] == "out-of-memory"


def test_a_zombie_of_an_older_attempt_fails_nobody_else(folder: RunFolder) -> None:
    reporter(folder).failed("fenced", "attempt 3 has begun")
    for attempt, incarnation in ((3, "i"), (2, "j")):
        newer = FileReporter(folder.root, "u", attempt, incarnation)
        assert not newer.has_failed()
        assert newer.failure() is None
    assert reporter(folder).failure() == (FailureClass.FENCED, "attempt 3 has begun")


def test_a_class_of_another_version_is_still_a_failure(folder: RunFolder) -> None:
    reporter(folder).failed("melted", "m")
    assert reporter(folder).failure() == (FailureClass.UNKNOWN, "m")


def test_each_rank_has_a_place_for_its_stacks(folder: RunFolder) -> None:
    paths = {reporter(folder).stack_file(rank) for rank in range(3)}
    assert {path.name for path in paths} == {f"stacks-attempt-2-i-rank-{rank}.txt" for rank in range(3)}
    for path in paths:
        path.write_text("x")


def test_anomalies_and_losses_are_events(folder: RunFolder) -> None:
    values = {"step": 7, "data_step": 8, "kind": "spike", "value": 9.5, "score": 12.0, "action": "replay"}
    incident = Incident.model_validate(values | {"attempt": 2, "incarnation": "i", "time": 1.0})
    reporter(folder).anomaly(incident, "step 7: going back")
    reporter(folder).workers_lost("rank 1: gone")
    anomaly, lost = read(folder.events)[0]
    assert isinstance(anomaly, Anomaly)
    assert (anomaly.step, anomaly.fault, anomaly.score, anomaly.action) == (7, "spike", 12.0, "replay")
    assert isinstance(lost, WorkersLost)
    assert lost.message == "rank 1: gone"


def test_speaking_often_costs_no_more_than_speaking_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = events_module.scan

    def scan(path: Path, offset: int = 0) -> events_module.Scan:
        found = real(path, offset)
        looked.append(len(found.events))
        return found

    monkeypatch.setattr(events_module, "scan", scan)
    for step in range(1, 101):  # each time a copy, as after pickling
        pickle.loads(pickle.dumps(reporter(folder))).progress(step=step, tokens=step, metrics={}, samples=0)
    assert sum(looked) < 200, "each event was read about once"


def test_many_threads_and_other_writers_share_the_numbers(folder: RunFolder) -> None:
    def speak(number: int) -> None:
        reporter(folder).warning(str(number))
        events_module.EventLog(folder.events).append("warning", job="u", attempt=2, incarnation="i", message="other")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(speak, range(50)))
    assert [e.seq for e in read(folder.events)[0]] == list(range(1, 101))


def test_a_line_torn_by_another_process_costs_only_itself(folder: RunFolder) -> None:
    reporter(folder).warning("before")
    with folder.events.open("ab") as stream:
        stream.write(b'{"kind": "warn')
    reporter(folder).warning("after")
    assert [e.seq for e in read(folder.events)[0]] == [1, 2]


def test_a_forked_process_has_a_log_of_its_own(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = events_module.shared_log(folder.events)
    assert events_module.shared_log(folder.events) is mine
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert events_module.shared_log(folder.events) is not mine


def test_a_full_disk_ends_nothing_and_loses_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = FileReporter(tmp_path, "u", 1, "i")
    reporter.warning("before")
    with monkeypatch.context() as full:
        full.setattr("orchestrator.launch.events.os.write", lambda *_: 0)
        for step in (1, 2):
            reporter.progress(step=step, tokens=step, metrics={}, samples=step)
        assert len(read(RunFolder(tmp_path).events)[0]) == 1
    reporter.warning("after")
    told = read(RunFolder(tmp_path).events)[0]
    assert [event.kind for event in told] == ["warning", "progress", "progress", "warning"]
    assert [event.seq for event in told] == [1, 2, 3, 4]
    assert [event.time for event in told] == sorted(event.time for event in told)
