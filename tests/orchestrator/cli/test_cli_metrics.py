"""`fathom metrics`: what is shown and written, of runs that go on too, and what is never left half written."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.base import BASE
from support.cli import Cli, command
from support.runs import event, resolved, tiny_job

from orchestrator.controller.record import Record
from orchestrator.cost.timeline import Held
from orchestrator.launch.events import Event, EventLog
from orchestrator.launch.local import hold_lock

ROOT = Path(__file__).parents[3]
STEPS = 30


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `fathom metrics ...`: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "100")
    return command("metrics", monkeypatch, capsys)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record.create(tmp_path / "runs", tiny_job())


def say(record: Record, *events: Event) -> None:
    log = EventLog(record.folder.events)
    for one in events:
        log.append(**one.model_dump(exclude={"seq", "version"}))


def trained(step: int) -> Event:
    metrics = {"train/loss": 5 / step, "train/tokens_per_second": 64.0, "moe/cv": 0.5, "train/grad_norm": 1.0}
    if step % 10 == 0:
        metrics["eval/bits_per_byte"] = 3.0
    return event("progress", 1e9 + step, step=step, tokens=1000 * step, metrics=metrics)


@pytest.fixture
def run(record: Record) -> Path:
    """Goes on: 30 steps so far, a second and a dollar each; the last step was evaluated elsewhere."""
    record.folder.resolved(1).write_text(resolved().model_dump_json())
    record.save_held([Held(1, 1e9, 1e9 + 10)])  # the launcher writes it every few seconds
    say(record, event("started", 1e9, step=0, tokens=0, world_size=2), *map(trained, range(1, STEPS + 1)))
    say(record, event("evaluated", 2e9, step=STEPS, tokens=0, metrics={"eval/arc/acc": 0.25}))
    return record.folder.root


def steps(text: str) -> list[int]:
    return [int(row["step"]) for row in csv.DictReader(io.StringIO(text))]


# ------------------------------------------------------------------- for people
def test_the_newest_steps_in_a_few_columns(cli: Cli, run: Path) -> None:
    code, out, err = cli(run)
    assert code == 0
    head, *lines = out.splitlines()
    heads = ["STEP", "TIME", "(UTC)", "TOKENS", "COST", "LOSS", "BITS/BYTE", "BALANCE", "CV", "TOKENS/S"]
    assert head.split() == heads
    assert len(lines) == 20
    assert lines[0].split() == ["11", "09-09", "01:46:51", "11.0", "k", "$11.00", "0.45455", "-", "0.5", "64"]
    assert lines[-1].split() == ["30", "09-09", "01:47:10", "30.0", "k", "$30.00", "0.16667", "3", "0.5", "64"]
    assert err == "not shown: 10 earlier steps (--all), 2 metrics (--metric NAME, or -o csv)\n"
    assert len(cli(run, "--all")[1].splitlines()) == STEPS + 1


def test_chosen_metrics_are_all_shown(cli: Cli, run: Path) -> None:
    wanted = ["train/grad_norm", "moe/cv", "train/loss", "eval/bits_per_byte", "train/tokens_per_second"]
    code, out, err = cli(run, *(option for name in wanted for option in ("--metric", name)))
    assert (code, err) == (0, "not shown: 10 earlier steps (--all)\n")
    assert out.splitlines()[1].split()[6:] == ["1", "0.5", "0.45455", "-", "64"]
    code, out, err = cli(run, "--metric", "eval/bits_per_byte")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["10", "20", "30"], "steps that have it"
    assert err == ""


def test_a_table_in_a_file_has_room(cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert cli(run, "--all", "--out", tmp_path / "t.txt")[0] == 0
    lines = (tmp_path / "t.txt").read_text().splitlines()
    assert len(lines) == STEPS + 1
    assert "TOKENS/S" in lines[0]


def test_names_of_metrics_are_no_markup(cli: Cli, record: Record) -> None:
    record.folder.resolved(1).write_text(resolved().model_dump_json())
    say(record, event("progress", 1.0, step=1, tokens=1, metrics={"[red]x": 1.0}))
    assert "[red]x" in cli(record.folder.root)[1]


# ------------------------------------------------------------------- for programs
def test_csv_and_json_have_all_steps(cli: Cli, run: Path) -> None:
    code, out, err = cli(run, "-o", "csv")
    assert (code, err) == (0, "")
    assert steps(out) == list(range(1, STEPS + 1))
    *_, last = csv.DictReader(io.StringIO(out))
    assert (last["eval/arc/acc"], last["cost"], last["time"]) == ("0.25", "30.0", "2001-09-09T01:47:10.000000+00:00")
    content = json.loads(cli(run, "-o", "json")[1])
    assert [row["step"] for row in content["rows"]] == steps(out)
    assert (content["job"], content["currency"]) == ("tiny", "USD")


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_the_name_of_the_file_says_the_format(cli: Cli, run: Path, tmp_path: Path, form: str) -> None:
    code, out, err = cli(run, "--out", tmp_path / f"m.{form.upper()}")
    assert (code, out) == (0, "")
    assert err.endswith("30 steps, 12 columns\n")
    assert cli(run, "-o", form, "--out", tmp_path / "same")[0] == 0
    written = (tmp_path / "same").read_bytes()
    assert (tmp_path / f"m.{form.upper()}").read_bytes() == written
    if form == "parquet":
        assert pq.read_table(io.BytesIO(written)).column("step").to_pylist() == list(range(1, STEPS + 1))
    else:
        assert cli(run, "-o", form)[1].encode() == written


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_base_install_is_enough(run: Path, tmp_path: Path, form: str) -> None:
    command = [sys.executable, "-c", BASE, "metrics", str(run), "-o", form]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    if form == "csv":
        assert steps(done.stdout.decode()) == list(range(1, STEPS + 1))
    else:
        assert pq.read_table(io.BytesIO(done.stdout)).schema.metadata[b"fathom.currency"] == b"USD"


def test_a_run_that_goes_on_is_not_disturbed(cli: Cli, record: Record, run: Path) -> None:
    with record.folder.events.open("ab") as stream:
        stream.write(b'{"kind": "progr')  # being written
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")}
    with hold_lock(record.folder.launcher_lock), hold_lock(record.folder.lock):
        assert steps(cli(run, "-o", "csv")[1]) == list(range(1, STEPS + 1))
    after = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in before if path != run}
    assert after == {path: seen for path, seen in before.items() if path != run}


@pytest.mark.parametrize(("form", "out"), [("table", ""), ("csv", "step,time,attempt,tokens,hours,cost\n")])
def test_a_run_without_a_step(cli: Cli, record: Record, form: str, out: str) -> None:
    assert cli(record.folder.root, "-o", form) == (0, out, f"no step of {record.folder.root} is done yet\n")


# ------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--metric", "train/los"], 3, "no metric 'train/los': did you mean train/loss"),
        (["--metric", "x"], 3, "no metric 'x': there are eval/arc/acc, eval/bits_per_byte, moe/cv, "),
        (["--out", "nowhere/m.csv"], 2, "nowhere/m.csv cannot be written: No such file"),
        (["--out", "."], 2, "is a folder"),
        (["--out", "x" * 300], 2, "cannot be written: File name too long"),
        (["-o", "xml"], 2, "xml"),
    ],
)
def test_errors(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended, out, err = cli(run, *arguments)
    assert (ended, out) == (code, "")
    assert words in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_folder_that_is_no_run(cli: Cli, tmp_path: Path) -> None:
    assert cli(tmp_path)[0] == 3
    assert cli(tmp_path / "nowhere")[0] == 3


def test_a_file_is_replaced_only_by_force(cli: Cli, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.csv"
    out.write_text("precious")
    code, _, err = cli(run, "--out", out)
    assert (code, out.read_text()) == (4, "precious")
    assert "--force" in err
    assert cli(run, "--out", out, "--force")[0] == 0
    assert steps(out.read_text()) == list(range(1, STEPS + 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "runs"]


def test_a_full_disk_leaves_the_old_file_and_no_draft(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "m.csv", Path.write_bytes
    out.write_text("precious")

    def full(path: Path, data: bytes) -> int:
        real(path, data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = cli(run, "--out", out, "--force")
    assert (code, out.read_text()) == (2, "precious")
    assert "m.csv cannot be written: No space left on device" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "runs"]


def test_parquet_is_not_for_a_terminal(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = cli(run, "-o", "parquet")
    assert (code, out) == (2, "")
    assert "--out FILE" in err


def test_without_pyarrow_there_is_csv(cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = cli(run, "--out", tmp_path / "m.parquet")
    assert code == 2
    assert "pip install pyarrow" in err
    assert not (tmp_path / "m.parquet").exists()
    assert cli(run, "-o", "csv")[0] == 0
