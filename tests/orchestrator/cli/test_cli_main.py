"""The command as a whole: messages, exit codes, and that bad jobs fail quickly, before anything starts."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support.runs import dataset, tiny_job

from orchestrator.cli.main import EXIT_CODES, app, main
from orchestrator.controller.change import resolve_next
from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.cost.timeline import Held
from orchestrator.settings import Settings

ROOT = Path(__file__).parents[3]
GOOD = """
metadata: {name: tiny}
spec:
  model: {preset: mini}
  data: {source: data, sequenceLength: 32}
  training: {tokens: 100_000, globalBatchTokens: 256}
  compute: {accelerator: cpu, workers: 2}
"""


Fathom = Callable[..., subprocess.CompletedProcess[str]]
"""Folder to work in, and arguments -> what a process would have ended with."""


def as_process(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As people start it."""
    command = [sys.executable, "-c", "from orchestrator.cli.main import main; main()", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FATHOM_HOME": str(cwd / "runs"), "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


@pytest.fixture
def fathom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fathom:
    """The same in this process, where everything is imported already."""

    def call(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("FATHOM_HOME", str(cwd / "runs"))
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["fathom", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, out, err)

    return call


def begun(root: Path) -> Record:
    """A run whose first attempt held its devices for an hour, and has ended."""
    record = Record.create(root, tiny_job(str(dataset(root / "data"))))
    settings = Settings.load({"FATHOM_HOME": str(root)})
    first = resolve_next(record, History(record), settings, 1)
    record.folder.resolved(1).write_text(first.model_dump_json())
    record.save_held([Held(1, 0.0, 3600.0)])
    return record


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.token=5", ["training.token", "tokens"]),
        ("training.tokens=many", ["spec.training.tokens", "many"]),
        ("parallelism.expert=3", ["spec.parallelism.expert", "3", "2 workers"]),
        ("training.tokens=100", ["spec.training.tokens", "100", "256"]),
        ("training.seed=1", ["spec.data.source", "fathom data prepare SOURCE data"]),
        ("suspend=true", ["spec.suspend"]),
    ],
)
def test_a_bad_job_names_the_field_and_both_numbers(fathom: Fathom, job: Path, change: str, words: list[str]) -> None:
    before = time.process_time()
    done = fathom(job.parent, "train", str(job), "--set", change)
    seconds = time.process_time() - before
    assert done.returncode == 2
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert seconds < 10
    assert not list(job.parent.glob("runs/tiny-*")), "a refused job leaves no run"


def test_a_process_says_the_same(fathom: Fathom, job: Path) -> None:
    bad = ("train", str(job), "--set", "parallelism.expert=3")
    started, here = as_process(job.parent, *bad), fathom(job.parent, *bad)
    assert (started.returncode, started.stdout, started.stderr) == (here.returncode, here.stdout, here.stderr)
    assert here.returncode == 2


def test_storage_that_cannot_be_opened_is_refused(fathom: Fathom, job: Path) -> None:
    text = [f"def f{i}():\n    return {i} * {i}\n" * 40 for i in range(30)]
    (job.parent / "source").mkdir()
    for i, body in enumerate(text):
        (job.parent / "source" / f"{i}.py").write_text(body)
    prepare = ("data", "prepare", "source", "data", "--vocab-size", "300", "--heldout-share", "0.3")
    assert fathom(job.parent, *prepare).returncode == 0
    done = fathom(
        job.parent, "train", str(job), "--set", "checkpoint.uri=nosuch://bucket", "--set", "training.tokens=512"
    )
    assert done.returncode == 2
    assert "spec.checkpoint.uri: cannot write to nosuch://bucket" in done.stderr


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (["training.tokens=2M"], 2, ["training.tokens cannot change", "budget.limit, retry.*", "compute.workers"]),
        (["retry.maxAttempts=0"], 2, ["spec.retry.maxAttempts", "at least 1"]),
        (["compute.workers=3"], 2, ["spec.compute.workers", "3 workers cannot share the 8 sequences"]),
        (["budget.limit=0.000001"], 2, ["budget.limit=0.000001 is below the 0."]),
    ],
)
def test_what_cannot_change_on_a_resume(
    fathom: Fathom, tmp_path: Path, changes: list[str], code: int, words: list[str]
) -> None:
    record = begun(tmp_path)
    options = [option for change in changes for option in ("--set", change)]
    done = fathom(tmp_path, "train", "--resume", str(record.folder.root), *options)
    assert (done.returncode, done.stdout) == (code, "")
    for word in words:
        assert word in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert Record.open(record.folder.root) == record


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("held.json", "{", "held.json cannot be read"),
        ("resolved-1.json", "{}", "resolved-1.json cannot be read"),
        ("job.json", '{"uid": 5}', "uid must be text"),
    ],
)
def test_a_damaged_record_is_named(fathom: Fathom, tmp_path: Path, name: str, content: str, words: str) -> None:
    record = begun(tmp_path)
    (record.folder.root / name).write_text(content)
    done = fathom(tmp_path, "train", "--resume", str(record.folder.root))
    assert (done.returncode, done.stdout) == (2, "")
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


HELPS = ("held-out split.", EXIT_CODES[:30])
"""What is asked of a group alone."""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "none.yaml"], 2, "none.yaml"),
        (["train"], 2, "job file or --resume"),
        (["train", "--resume", "nowhere"], 3, "nowhere is not the folder of a run"),
        (["generate", "nowhere", "--prompt", "x"], 3, "no weights in nowhere"),
        (["model", "v3-617b"], 2, "v3-671b"),
        (["data", "prepare", "nowhere", "out"], 2, "nowhere"),
        (["fly"], 2, "error: No such command 'fly'."),
        (["goodput", "--gpus", "many"], 2, "error: Invalid value for '--gpus'"),
        (["plan", "-o", "foo"], 2, "error: Invalid value for '--output' / '-o': Value error, 'foo' is not one of"),
        (["goodput"], 2, "error: Missing option '--gpus'"),
        (["data"], 2, HELPS[0]),
        ([], 2, HELPS[1]),
    ],
)
def test_errors_have_a_message_and_a_code(
    fathom: Fathom, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    done = fathom(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    boxes_or_usage = [line for line in done.stderr.splitlines() if line.startswith(("Usage: ", "\u256d", "Error"))]
    assert len(boxes_or_usage) == (words in HELPS)


def test_a_question_that_nobody_answers_is_a_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asks(**_: object) -> None:
        raise typer.Abort

    monkeypatch.setattr("orchestrator.cli.main.app", asks)
    with pytest.raises(SystemExit, match="130"):
        main()
    assert capsys.readouterr().err == "error: stopped\n"


# ------------------------------------------------------------------ output that goes nowhere

WRITES = [["--help"], ["model", "mini"], ["model", "mini", "-o", "json"], ["goodput", "--gpus", "64", "--runs", "1"]]


def run_into(stdout: int, arguments: list[str], buffered: bool) -> tuple[int, str]:
    """-> exit code and stderr."""
    command = [sys.executable, "-c", "from orchestrator.cli.main import main; main()", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "" if buffered else "1"}
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", WRITES, ids=" ".join)
def test_a_full_disk_is_said_in_a_line(arguments: list[str], buffered: bool) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    code, err = run_into(full, arguments, buffered)
    os.close(full)
    assert (code, err) == (1, "error: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", WRITES, ids=" ".join)
def test_a_reader_that_has_gone_is_no_error(arguments: list[str], buffered: bool) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    code, err = run_into(writes, arguments, buffered)
    os.close(writes)
    assert (code, err) == (1, "")


def test_an_error_keeps_its_code_where_output_is_lost() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    script = (
        "import typer\nfrom orchestrator.cli import main\nfrom orchestrator.errors import NotFound\n"
        "def app(**_):\n    print('text')\n    raise NotFound('it')\nmain.app = app\nmain.main()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(full)
    assert done.returncode == 3
    assert done.stderr == "error: it\nerror: the output cannot be written: No space left on device\n"


def test_a_fault_of_another_file_is_not_taken_for_one_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("orchestrator.cli.main.app", fails)
    with pytest.raises(OSError, match="Input/output"):
        main()


# ------------------------------------------------------------------ help


def commands(one: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401 - a command of typer's
    yield path, one
    for name, below in getattr(one, "commands", {}).items():
        yield from commands(below, *path, name)


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_is_whole_in_80_columns(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["fathom", *path, "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    out = capsys.readouterr().out
    words = out.replace(",", " ").split()
    options = [name for one in COMMANDS[path].params for name in (*one.opts, *one.secondary_opts) if name[0] == "-"]
    assert [name for name in [*options, "--help"] if name not in words] == []
    assert "\u2026" not in out
    assert not [line for line in out.splitlines() if (line[:1] == " " and line.endswith("...")) or len(line) > 80]
