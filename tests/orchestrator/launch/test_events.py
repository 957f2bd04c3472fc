from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.launch import events
from orchestrator.launch.events import (
    CheckpointAndStop,
    Continue,
    Ended,
    EventLog,
    FailureClass,
    HardDeadline,
    Progress,
    Started,
    read_control,
    scan,
    write_control,
)

KEY: dict[str, Any] = {"job": "u-1", "attempt": 1, "incarnation": "local-1"}
KINDS: dict[str, dict[str, Any]] = {
    "started": {
        "step": 4,
        "tokens": 400,
        "world_size": 2,
        "resumed_from": "file:///c/step-4",
        "arithmetic": "fp32",
    },
    "progress": {"step": 5, "tokens": 500, "metrics": {"train/loss": 2.5, "moe/cv": 0.0}},
    "checkpoint-committed": {"step": 5, "uri": "file:///c/step-5", "size_bytes": 10, "seconds": 0.25},
    "warning": {"message": "Größe ≠ 0\nline two"},
    "log-piece": {"rank": 1, "name": "rank-1.log", "offset": 0, "size_bytes": 1 << 20},
    "budget": {"about": "share-spent", "limit": "5.00", "spent": "2.512", "share": 0.5, "message": "half"},
    "ended": {"outcome": "failed", "failure_class": "not-finite", "message": "NaN", "step": 5},
}


def _append_many(path: str, count: int) -> None:
    log = EventLog(Path(path))
    for number in range(count):
        log.append("warning", message=f"{os.getpid()}-{number}", **KEY)


def _warning(log: EventLog, message: str = "m", **key: str | int) -> int:
    return log.append("warning", message=message, **(KEY | key)).seq


def test_every_kind_survives_the_file(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events" / "events.jsonl")
    written = [log.append(kind, time=12.5, **KEY, **fields) for kind, fields in KINDS.items()]
    found, offset = log.read()
    assert found == written
    assert [event.kind for event in found] == list(KINDS)
    assert [event.seq for event in found] == list(range(1, len(KINDS) + 1))
    assert offset == log.path.stat().st_size
    assert all(event.time == 12.5 and event.version == 1 for event in found)


def test_the_wire_form(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    log.append("started", time=1.0, **KEY, **KINDS["started"])
    assert json.loads(log.path.read_text()) == {
        "job": "u-1", "attempt": 1, "incarnation": "local-1", "seq": 1, "time": 1.0, "version": 1,
        "kind": "started", "step": 4, "tokens": 400, "worldSize": 2, "resumedFrom": "file:///c/step-4",
        "arithmetic": "fp32",
    }  # fmt: skip


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    _warning(log)
    _, offset = log.read()
    assert log.read(offset) == ([], offset)
    _warning(log)
    found, _ = log.read(offset)
    assert [event.seq for event in found] == [2]


def test_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert events.read(tmp_path / "none", 0) == ([], 0)


def test_a_torn_last_line_waits_until_it_is_complete(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    _warning(log, "first")
    whole = log.path.read_bytes()
    second = whole.replace(b'"seq":1', b'"seq":2')
    for cut in range(1, len(second)):
        log.path.write_bytes(whole + second[:cut])
        found, offset = log.read()
        assert ([event.seq for event in found], offset) == ([1], len(whole))
    log.path.write_bytes(whole + second)
    assert [event.seq for event in log.read(offset)[0]] == [2]


def test_a_line_torn_by_a_crash_costs_only_itself(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    _warning(log)
    with log.path.open("ab") as stream:
        stream.write(b'{"kind":"warn')
    assert _warning(EventLog(log.path), "after the crash") == 2
    assert _warning(log) == 3
    found = scan(log.path)
    assert ([event.seq for event in found.events], found.skipped) == ([1, 2, 3], 1)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"kind":"from-the-future"}',
        b'{"kind":"ended"}',
        b"[" * 5000,
    ],
)
def test_what_is_no_event_is_skipped_and_counted(tmp_path: Path, line: bytes) -> None:
    log = EventLog(tmp_path / "e")
    _warning(log)
    with log.path.open("ab") as stream:
        stream.write(line + b"\n")
    assert _warning(log) == 2
    found = scan(log.path)
    assert ([event.seq for event in found.events], found.skipped) == ([1, 2], 1)


def test_unknown_kinds_and_versions_are_skipped_but_new_fields_are_not(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    _warning(log)
    event = json.loads(log.path.read_text())
    lines = [event | {"kind": "new"}, event | {"version": 2}, event | {"newField": 1, "seq": 2}]
    with log.path.open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    found = scan(log.path)
    assert ([event.seq for event in found.events], found.skipped) == ([1, 2], 2)


def test_a_replaced_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    for _ in range(3):
        _warning(log)
    _, offset = log.read()
    log.path.unlink()
    _warning(EventLog(log.path))
    assert [event.seq for event in log.read(offset)[0]] == [1]


def test_each_incarnation_counts_for_itself(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    assert [_warning(log), _warning(log)] == [1, 2]
    assert _warning(log, attempt=2) == 1
    assert _warning(log, incarnation="local-2") == 1
    assert _warning(log, job="u-2") == 1
    assert _warning(log) == 3


def test_two_logs_on_one_file_share_the_count(tmp_path: Path) -> None:
    first, second = EventLog(tmp_path / "e"), EventLog(tmp_path / "e")
    assert [_warning(log) for log in (first, second, second, first)] == [1, 2, 3, 4]


@pytest.mark.processes
def test_concurrent_processes_never_share_a_number(tmp_path: Path) -> None:
    path = tmp_path / "e"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append_many, args=(str(path), 50)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = scan(path)
    assert found.skipped == 0
    assert [event.seq for event in found.events] == list(range(1, 201))


def test_wrong_fields_leave_no_trace(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    with pytest.raises(ValidationError, match="worldSize"):
        log.append("started", step=0, tokens=0, **KEY)
    with pytest.raises(ValidationError):
        log.append("nonsense", **KEY)
    with pytest.raises(ValidationError):
        _warning(log, incarnation="../x")
    assert not log.path.exists()


def test_metrics_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    metrics = {"train/loss": float("nan"), "train/grad_norm": float("inf"), "moe/cv": 0.5}
    log.append("progress", step=1, tokens=1, metrics=metrics, **KEY)
    [event] = log.read()[0]
    assert isinstance(event, Progress)
    assert event.metrics == {"moe/cv": 0.5}


def test_long_messages_are_shortened(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    log.append("ended", outcome="failed", failure_class=FailureClass.OUT_OF_MEMORY, message="x" * 10_000, **KEY)
    [event] = log.read()[0]
    assert isinstance(event, Ended)
    assert len(event.message) == 4000
    assert event.failure_class is FailureClass.OUT_OF_MEMORY


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path / "e")
    _warning(log)
    before = log.path.read_bytes()
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:10]))
    with pytest.raises(OSError, match=r"only 10 of \d+ bytes"):
        _warning(log)
    monkeypatch.undo()
    assert log.path.read_bytes() == before
    assert _warning(log) == 2


def test_started_is_typed(tmp_path: Path) -> None:
    event = EventLog(tmp_path / "e").append("started", **KEY, **KINDS["started"])
    assert isinstance(event, Started)
    assert event.world_size == 2


def test_control_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "control.json"
    assert read_control(path) == Continue()
    deadline = HardDeadline(number=1, incarnation="i1", stop=100.0, end=110.0, limit=120.0)
    order = CheckpointAndStop(deadline=99.5, reason="budget", hard_deadline=deadline)
    write_control(path, order)
    assert read_control(path) == order
    write_control(path, Continue(hard_deadline=deadline))
    assert read_control(path) == Continue(hard_deadline=deadline)
    assert list(path.parent.iterdir()) == [path]


def test_a_foreign_control_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"control\.json holds no answer"):
        read_control(path)


@pytest.mark.parametrize("most", [1, 10, 100, 300, 1000, 100_000])
def test_pieces_of_any_size_hold_the_same_events(tmp_path: Path, most: int) -> None:
    """But for lines that are longer than a piece."""
    log = EventLog(tmp_path / "events.jsonl")
    for number in range(20):
        log.append("warning", job="u", attempt=1, incarnation="i", message="x" * (17 * number))
    lines = log.path.read_bytes().splitlines(keepends=True)
    found: list[int] = []
    offset = 0
    while True:
        piece = scan(log.path, offset, most)
        found += [event.seq for event in piece.events]
        if piece.offset == offset:
            break
        assert piece.offset - offset <= most
        offset = piece.offset
    assert offset == log.path.stat().st_size
    assert found == [number for number, line in enumerate(lines, 1) if len(line) <= most]
