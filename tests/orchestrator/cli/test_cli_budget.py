"""`fathom budget`: what a run has of its money, and another limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import Cli, command
from support.runs import resolved, tiny_job

from orchestrator.controller.record import Record
from orchestrator.cost.timeline import Held
from orchestrator.launch import local
from orchestrator.launch.events import BudgetNote, read
from orchestrator.spec import Budget
from orchestrator.status import JobStatus, Phase


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
    for name in ("FATHOM_PRICES", "FATHOM_BUDGETS"):
        monkeypatch.delenv(name, raising=False)
    return command("budget", monkeypatch, capsys)


def run(root: Path, limit: str | None) -> Record:
    """Ten seconds of a dollar each."""
    job = tiny_job()
    given = None if limit is None else Budget(limit=limit)
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"budget": given})})
    record = Record.create(root, job)
    record.folder.resolved(1).write_text(resolved().model_dump_json())
    record.save_held([Held(1, 0.0, 10.0)])
    return record


def test_what_is_left_is_shown(budget: Cli, tmp_path: Path) -> None:
    root = run(tmp_path, "100.00").folder.root
    code, out, _ = budget(root)
    assert code == 0
    assert out.splitlines() == [
        "spent     $10.00",
        "limit     $100.00, of which $90.00 are left",
        f"not running; go on with `fathom train --resume {root}`",
    ]


def test_another_limit(budget: Cli, tmp_path: Path) -> None:
    record = run(tmp_path, "100.00")
    code, out, _ = budget(record.folder.root, "--limit", "250", "-o", "json")
    assert (code, json.loads(out)) == (
        0,
        {"currency": "USD", "limit": "250", "spent": "10.000000000000", "reserved": "0", "running": False},
    )
    assert Record.open(record.folder.root).job.spec.budget == Budget(limit="250")
    [note] = [event for event in read(record.folder.events)[0] if isinstance(event, BudgetNote)]
    assert (note.about, note.limit, note.spent) == ("limit-changed", "250", "10.000000")
    budget(record.folder.root, "--limit", "250")
    assert len(read(record.folder.events)[0]) == 1, "the same limit is no change"


def test_the_first_limit_of_a_run(budget: Cli, tmp_path: Path) -> None:
    root = run(tmp_path, None).folder.root
    assert "limit     none: give one with --limit" in budget(root)[1]
    assert "limit     $50.00, of which $40.00 are left" in budget(root, "--limit", "50")[1]


def test_a_run_that_was_never_started(budget: Cli, tmp_path: Path) -> None:
    record = Record.create(tmp_path, tiny_job())
    code, out, _ = budget(record.folder.root, "--limit", "50")
    assert (code, "limit     $50.00, of which $50.00 are left" in out) == (0, True)
    assert not record.folder.events.exists()


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("9.99", "budget.limit=9.99 is below the 10.000000 USD that are spent: give at least 10.000000"),
        ("much", "spec.budget.limit"),
        ("-5", "spec.budget.limit"),
        ("0", "allows nothing to run"),
    ],
)
def test_what_cannot_be_a_limit(budget: Cli, tmp_path: Path, limit: str, words: str) -> None:
    record = run(tmp_path, "100.00")
    code, out, err = budget(record.folder.root, "--limit", limit)
    assert (code, out) == (2, "")
    assert words in err
    assert Record.open(record.folder.root) == record


def test_two_who_change_it_at_once(budget: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE_SECONDS", 0.02)
    record = run(tmp_path, "100.00")
    with local.hold_lock(record.folder.job_lock):
        code, _, err = budget(record.folder.root, "--limit", "200")
    assert code == 4
    assert "is in the hands of process" in err


def test_a_folder_that_is_no_run(budget: Cli, tmp_path: Path) -> None:
    assert budget(tmp_path, "--limit", "5")[0] == 3


def test_a_run_that_has_succeeded_is_not_said_to_go_on(budget: Cli, tmp_path: Path) -> None:
    record = run(tmp_path, "100.00")
    record.save_status(JobStatus(phase=Phase.SUCCEEDED, attempt_count=1))
    code, out, _ = budget(record.folder.root)
    assert (code, out.splitlines()[-1]) == (0, "the run has succeeded")
