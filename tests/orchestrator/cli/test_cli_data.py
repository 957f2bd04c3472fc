import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.data import data_app
from orchestrator.errors import Conflict, FathomError, UsageError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(data_app, ["prepare", *map(str, arguments)])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "drafts").mkdir(parents=True)
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"document {number} about rivers and stones\n" * 5)
        (folder / "drafts" / f"{number}.txt").write_text(f"draft {number}\n")
    return folder


def test_prints_the_result_as_json_on_stdout_only(source: Path, tmp_path: Path) -> None:
    options = [
        "--vocab-size",
        280,
        "--exclude",
        "drafts",
        "--license",
        "CC0",
        "--provenance",
        "drawn",
        "-o",
        "json",
    ]
    result = run(source, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["path"] == str(tmp_path / "out")
    assert value["splits"]["train"]["documents"] + value["splits"]["heldout"]["documents"] == 12
    assert (value["license"], value["provenance"]) == ("CC0", "drawn")
    assert result.stderr.splitlines() == ["reading files", "learning the vocabulary", "writing tokens"]
    again = run(source, tmp_path / "out", *options)
    assert json.loads(again.stdout) == value
    assert again.stderr.splitlines() == ["reading files", "already prepared from the same inputs"]


def test_prints_a_table_for_people(source: Path, tmp_path: Path) -> None:
    (source / "x").write_bytes(b"\0")
    result = run(source, tmp_path / "out", "--vocab-size", 280)
    assert result.exit_code == 0, result.output
    rows = dict(line.split(None, 1) for line in result.stdout.replace("held out", "held-out").splitlines())
    assert set(rows) == {"dataset", "training", "held-out", "vocabulary", "baselines", "skipped", "digest"}
    assert rows["skipped"] == "1 binary"
    assert rows["vocabulary"].startswith("280 tokens")
    assert "bits per byte" in rows["baselines"]


def failure(result: Result) -> FathomError:
    """The error that the main program prints; nothing may have gone to stdout."""
    assert isinstance(result.exception, FathomError), result.exception
    assert result.stdout == ""
    return result.exception


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/absent", "{tmp}/out"], "no file or folder"),
        (["{tmp}/empty", "{tmp}/out"], "0 usable document"),
        (["{tmp}/source", "{tmp}/source/out"], "lies inside the source"),
        (["{tmp}/source", "{tmp}/out", "--vocab-size", "256"], "vocabulary of 256 .* at least 257"),
        (["{tmp}/source", "{tmp}/out", "--heldout-share", "0.9"], "got 0.9"),
        (["{tmp}/source", "{tmp}/out", "--include", "*.md"], "0 usable document"),
        (["{tmp}/source", "{tmp}/out", "--tokenizer", "{tmp}/none.json"], "no tokenizer at"),
    ],
)
def test_bad_input_ends_with_2_and_a_sentence(source: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    error = failure(run(*[argument.replace("{tmp}", str(tmp_path)) for argument in arguments]))
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    with pytest.raises(UsageError, match=message):
        raise error
    assert not (tmp_path / "out").exists()


def test_another_dataset_is_a_conflict_unless_forced(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "out", "--vocab-size", 280).exit_code == 0
    error = failure(run(source, tmp_path / "out", "--vocab-size", 290))
    assert isinstance(error, Conflict)
    assert "--force" in str(error)
    assert run(source, tmp_path / "out", "--vocab-size", 290, "--force").exit_code == 0


def test_unknown_options_are_usage_errors(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "out", "--vocabulary", 3).exit_code == 2
    assert run(source, tmp_path / "out", "-o", "xml").exit_code == 2


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = "import sys, orchestrator.cli.data; print(sorted({'numpy', 'tokenizers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
