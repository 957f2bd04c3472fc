import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller.record import Record
from orchestrator.cost.timeline import Held
from orchestrator.errors import Conflict, FathomError, NotFound, UsageError
from orchestrator.launch import local
from orchestrator.launch.files import replace_file
from orchestrator.spec import Budget, Metadata, TrainingJob
from orchestrator.status import JobStatus, Phase

JOB = TrainingJob.model_validate(
    {
        "metadata": {"name": "mini"},
        "spec": {
            "model": {"preset": "mini", "overrides": {"layers": 2}},
            "data": {"source": "data"},
            "training": {"tokens": 1000},
            "compute": {"accelerator": "cpu", "workers": 2},
            "budget": {"limit": "5.00"},
        },
    }
)


def test_a_record_is_found_again_as_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Record.create(tmp_path / "runs", JOB)
    assert made.folder.root.parent == tmp_path / "runs"
    assert made.folder.root.name.startswith("mini-")
    monkeypatch.chdir(tmp_path)
    assert Record.open(Path("runs") / made.folder.root.name) == made


def test_what_was_not_saved_is_empty_and_what_was_comes_back(tmp_path: Path) -> None:
    record = Record.create(tmp_path, JOB)
    assert (record.held(), record.status()) == ([], None)
    held = [Held(1, 10.25, 20.5), Held(2, 30.125, 30.125)]
    record.save_held(held)
    record.save_status(JobStatus(phase=Phase.RUNNING, attempt_count=2))
    again = Record.open(record.folder.root)
    assert again.held() == held
    assert again.status() == JobStatus(phase=Phase.RUNNING, attempt_count=2)


def test_two_runs_in_one_second_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Record.create(tmp_path, JOB)

    class SameSecond:
        @staticmethod
        def now(zone: object) -> Any:  # noqa: ANN401 - stands for a datetime
            return type("Now", (), {"strftime": lambda _, form: first.folder.root.name.removeprefix("mini-")})()

    monkeypatch.setattr("orchestrator.controller.record.datetime", SameSecond)
    with pytest.raises(Conflict, match=str(first.folder.root)):
        Record.create(tmp_path, JOB)
    assert Record.open(first.folder.root) == first


def test_a_home_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot make the run's folder .*file/mini-.*FATHOM_HOME"):
        Record.create(tmp_path / "file", JOB)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, NotFound, "is not the folder of a run"),
        ("", UsageError, "cannot be read"),
        ("[1]", UsageError, "no job of this version"),
        ("{}", UsageError, "no job of this version"),
        (json.dumps({"uid": "u", "job": {"kind": "TrainingJob"}}), UsageError, "metadata"),
        (json.dumps({"uid": 5, "job": JOB.document()}), UsageError, "uid must be text, got 5"),
        (json.dumps({"uid": None, "job": JOB.document()}), UsageError, "uid must be text, got None"),
        (b"\xff\xfe", UsageError, "cannot be read"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, content: str | bytes | None, error: type[FathomError], words: str
) -> None:
    if content is not None:
        (tmp_path / "job.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(error, match=words):
        Record.open(tmp_path)


def test_a_file_instead_of_a_folder_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(NotFound):
        Record.open(tmp_path / "run")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    replace_file(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert [one.name for one in path.parent.iterdir()] == ["file.json"], "nothing is left of the draft"


def test_two_writers_of_a_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace = tmp_path / "file.json", Path.replace

    def meanwhile(draft: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        replace_file(path, "the other's")
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", meanwhile)
    replace_file(path, "the first's, who is the last to be ready")
    assert path.read_text() == "the first's, who is the last to be ready"


def test_held_time_stands_though_the_power_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, fsync, synced = Record.create(tmp_path, JOB), os.fsync, list[bool]()

    def noted(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    record.save_held([Held(1, 0.0, 1.0)])
    assert synced == [False, True], "the file, then its name in the folder"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "{}", "[[]]", "[{}]", '[{"attempt": 1, "start": 2, "end": 1}]', b"\xff",
        '[{"attempt": 1, "start": 0, "end": NaN}]', '[{"attempt": 1, "start": 0, "end": Infinity}]',
    ],
)  # fmt: skip
def test_damaged_files_are_named_with_what_to_do(tmp_path: Path, text: str | bytes) -> None:
    record = Record.create(tmp_path, JOB)
    content = text if isinstance(text, bytes) else text.encode()
    record.folder.held.write_bytes(content)
    with pytest.raises(UsageError, match=r"held\.json cannot be read: .*from a backup, or remove it"):
        record.held()
    record.folder.status.write_bytes(content or b"[]")
    if text != "{}":
        assert record.status() is None, "it is written anew"


def test_a_job_is_replaced_while_nobody_runs_it(tmp_path: Path) -> None:
    record = Record.create(tmp_path, JOB)
    budget = JOB.spec.model_copy(update={"budget": Budget(limit="7.50")})
    changed = record.change(JOB.model_copy(update={"spec": budget}))
    assert Record.open(record.folder.root) == changed
    assert changed.job.spec.budget == Budget(limit="7.50")
    assert changed.uid == record.uid


@pytest.mark.parametrize("lock", ["lock", "launcher_lock"])
def test_a_job_in_somebodys_hands_is_not_replaced(tmp_path: Path, lock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE_SECONDS", 0.02)
    record = Record.create(tmp_path, JOB)
    with local.hold_lock(getattr(record.folder, lock)), pytest.raises(Conflict, match=str(os.getpid())):
        record.change(JOB.model_copy(update={"metadata": Metadata(name="other")}))
    assert Record.open(record.folder.root) == record


def test_a_path_that_is_not_there_is_told_from_a_folder_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is nothing of that name"):
        Record.open(tmp_path / "gone")
    with pytest.raises(NotFound, match=r"it has no job\.json"):
        Record.open(tmp_path)
