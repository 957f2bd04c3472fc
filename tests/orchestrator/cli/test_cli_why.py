"""`fathom why` and `fathom explain` on what lies in a home."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.answered import AT, stored
from support.cli import command
from support.runs import tiny_job
from support.store import small_job
from support.wire import as_json, problem, wire

from orchestrator.controller.record import Record
from orchestrator.status import JobStatus, Phase
from orchestrator.store.database import NAME
from orchestrator.store.sqlite import SqliteStore


def record(root: Path, phase: str) -> Record:
    made = Record.create(root, tiny_job())
    attempts = [{"number": 1, "startedAt": "2026-06-01T12:00:00Z", "outcome": "failed", "reason": "stalled: no step"}]
    status = JobStatus.model_validate_json(json.dumps({"phase": phase, "attempts": attempts}))
    made.save_status(status)
    return made


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
    return tmp_path


def test_a_run_is_found_by_its_folder_and_by_its_job(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    why = command("why", monkeypatch, capsys)
    root = record(home, Phase.FAILED).folder.root
    for given in (root, root.name, "tiny"):
        code, out, err = why(given)
        assert (code, err) == (0, "")
        assert out.startswith("tiny has failed after attempt 1 ended stalled, which means that no step was done")
        assert f"the stacks of all ranks are beside {root}/logs/attempt-1.log" in out
    found = json.loads(why("tiny", "-o", "json")[1])
    assert set(found) == {"sentence", "advice", "details"}


def test_the_newest_run_of_a_job_is_meant(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = record(home, Phase.FAILED).folder.root
    old.rename(home / "tiny-20200101-000000")
    record(home, Phase.SUCCEEDED)
    assert command("why", monkeypatch, capsys)("tiny")[1].startswith("tiny has succeeded.")


def test_an_unknown_name_says_what_there_is(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = record(home, Phase.FAILED).folder.root
    code, out, err = command("why", monkeypatch, capsys)("tin")
    assert (code, out) == (3, "")
    assert (
        f"there is no run of a job 'tin' in {home}, nor a folder of that name; the newest there are {root.name}" in err
    )
    assert command("why", monkeypatch, capsys)("no/where")[0] == 3


def test_the_service_is_asked_where_there_is_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = record(home, Phase.SUCCEEDED).folder.root
    with wire() as service:
        monkeypatch.setenv("FATHOM_URL", service.url)
        monkeypatch.setenv("FATHOM_TOKEN", "t")
        why = command("why", monkeypatch, capsys)
        waiting = {"type": "Admitted", "status": "False", "reason": "WaitingForSlots", "lastTransitionTime": AT}
        service.replies(as_json(stored("tiny", "Queued", team="red", status={"conditions": [waiting]})))
        assert why("red/tiny")[1].startswith("red/tiny waits for a free place on this machine")
        assert service.asked[-1].path == "/v1/jobs/red/tiny"
        assert why(root)[1].startswith("tiny has succeeded"), "a folder is read"
        service.replies(problem(404, "not-found", "there is no job red/other"))
        assert why("red/other")[2] == "error: there is no job red/other\n"
    code, out, err = why("default/tiny")
    assert (code, out) == (1, ""), "what lies here is of another service"
    assert service.url in err
    monkeypatch.delenv("FATHOM_URL")
    assert why("default/tiny")[1].startswith("tiny has succeeded"), "the folder, since there is no service"


def test_a_service_that_has_ended_left_what_it_knew(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SqliteStore(home / NAME)
    queued = JobStatus.model_validate_json(
        json.dumps(
            {
                "phase": "Queued",
                "conditions": [
                    {"type": "Admitted", "status": "False", "reason": "WaitingForSlots", "lastTransitionTime": AT}
                ],
            }
        )
    )
    store.set_status(store.create(small_job("mini", "red"), by="me").uid, queued)
    store.database.close()
    why = command("why", monkeypatch, capsys)
    code, out, _ = why("red/mini")
    assert code == 0
    assert out.startswith("red/mini waits for a free place on this machine")
    assert f"no service runs in {home}, so nothing becomes of it: start `fathom serve`" in out
    assert why("mini")[0] == 3, "of another team"


def test_explain_prints_a_field_and_those_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    explain = command("explain", monkeypatch, capsys)
    code, out, _ = explain("compute.gpus")
    assert code == 0
    assert "bounds   at least 1, at most 100,000" in out
    assert "example  gpus: 16" in out
    assert "  memoryPerWorker  <string>" in explain("spec.compute")[1]
    assert json.loads(explain("budget", "-o", "json")[1])["fields"][0]["path"] == "spec.budget.limit"
    code, out, err = explain("spec.bugdet")
    assert (code, out, err) == (3, "", "error: there is no field spec.bugdet: did you mean spec.budget?\n")
