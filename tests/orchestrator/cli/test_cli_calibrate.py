"""`fathom calibrate`: what is printed and written, and what is refused."""

import json
import os
from pathlib import Path

import pytest
from support.cli import Cli, command
from support.recipes import tiny_recipe

from benchmarks import calibrate as benchmark
from orchestrator.plan.cpu import cpu_rates
from orchestrator.plan.efficiency import efficiencies

MEASURED = json.loads((Path(__file__).parents[3] / "tests/golden/cpu_seconds.json").read_text())[0]["seconds"]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path / "home"))
    return command("calibrate", monkeypatch, capsys)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs.json"
    rows = [benchmark.observed(name, MEASURED[name]).model_dump(mode="json") for name in benchmark.FITTED]
    path.write_text(json.dumps({"runs": rows}))
    return path


def test_the_table_and_the_file(cli: Cli, runs: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    code, out, err = cli(runs, "--write", own)
    assert code == 0
    assert "MEASURED: CPU seconds of all workers of a step." in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["mini"][-2:] == ["-2.2%", "-3.4%"], "as the document says"
    assert lines["cpu_matrix_flops"][2] == "7.717e+10"
    assert f"FATHOM_EFFICIENCIES={own}" in err
    rates = cpu_rates(own)
    assert rates is not None
    assert rates.matrix_flops == pytest.approx(7.717e10, rel=1e-3)


def test_what_json_says_can_be_given_again(cli: Cli, runs: Path, tmp_path: Path) -> None:
    code, out, _ = cli(runs, "-o", "json")
    found = json.loads(out)
    assert code == 0
    assert found["device"] == "cpu"
    assert [one["name"] for one in found["errors"]] == list(benchmark.FITTED)
    assert all(abs(one["after"] / one["measuredSeconds"] - 1) < 0.05 for one in found["errors"])
    again = tmp_path / "again.json"
    again.write_text(out)
    assert json.loads(cli(again, "-o", "json")[1]) == found


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "no runs: give folders of runs, a JSON file, or --experiment NAME"),
        (("--mlflow", "http://x"), 2, "--mlflow needs --experiment"),
        (("nowhere",), 3, "nowhere is not the folder of a run"),
        (("RUNS", "--write", "RUNS/below-a-file"), 2, "cannot be written: File exists"),
        (("RUNS", "--write", "/proc/none"), 2, "/proc/none cannot be written"),
        (("RUNS", "--write", "/dev/full"), 2, "/dev/full is a device or pipe"),
        (("RUNS", "--write", "FOLDER"), 2, "is a folder, not a file"),
        (("PIPE",), 2, "pipe is a device or pipe, not a file"),
        (("/dev/zero",), 2, "/dev/zero is a device or pipe, not a file"),
        (("FOLDER",), 3, "is not the folder of a run"),
        (("a" * 300,), 2, "File name too long"),
    ],
)
def test_what_is_refused(cli: Cli, runs: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    os.mkfifo(runs.parent / "pipe")
    places = {"RUNS": str(runs), "FOLDER": str(runs.parent), "PIPE": str(runs.parent / "pipe")}
    given = [places.get(text, text.replace("RUNS", str(runs))) for text in arguments]
    ended, out, err = cli(*given)
    assert (ended, out) == (code, "")
    assert words in err


def test_a_job_file_is_not_replaced(cli: Cli, runs: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("metadata: {name: a}\n")
    code, _, err = cli(runs, "--write", job)
    assert code == 2
    assert "must be a list of rows" in err
    assert job.read_text() == "metadata: {name: a}\n"


def test_rows_of_the_users_own_stay_and_a_link_stays_a_link(cli: Cli, runs: Path, tmp_path: Path) -> None:
    own, link = tmp_path / "own.yaml", tmp_path / "link.yaml"
    own.write_text("- {name: attention, value: 0.5, origin: mine}\n")
    link.symlink_to(own)
    assert cli(runs, "--write", link)[0] == 0
    assert link.is_symlink()
    assert efficiencies(own).attention == 0.5
    assert cpu_rates(own) is not None
    own.write_text("- {name: magic, value: 0.5, origin: mine}\n")
    code, _, err = cli(runs, "--write", own)
    assert (code, own.read_text()) == (2, "- {name: magic, value: 0.5, origin: mine}\n")
    assert "unknown magic" in err
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_name_cannot_steer_the_terminal(cli: Cli, runs: Path) -> None:
    rows = json.loads(runs.read_text())
    rows["runs"][0]["name"] = "\x1b[31mred\n"
    runs.write_text(json.dumps(rows))
    code, out, _ = cli(runs)
    assert (code, "\x1b" in out) == (0, False)
    assert "\ufffd[31mred\ufffd" in out


def test_one_run_is_enough(cli: Cli, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    row = {
        "name": "one",
        "device": "cpu",
        "model": recipe.model.model_dump(mode="json"),
        "layout": recipe.layout.model_dump(mode="json"),
        "sequence_length": 16,
        "precision": "fp32",
        "seconds": 0.02,
    }
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"runs": [row]}))
    code, out, _ = cli(path)
    assert code == 0
    assert out.split("one")[1].split()[3] == "-", "nothing is left to forecast it from"


def test_the_table_says_of_which_fit_the_forecasts_are(cli: Cli, runs: Path) -> None:
    """Seven runs are left out one by one; three times as many, 21, in 20 groups."""
    assert "by a fit to all other runs" in " ".join(cli(runs)[1].split())
    rows = json.loads(runs.read_text())["runs"]
    runs.write_text(json.dumps({"runs": rows * 3}))
    assert "by a fit to the runs outside its group, one of 20," in " ".join(cli(runs)[1].split())
