import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from model.presets import PRESETS, preset
from model.released import to_released
from orchestrator.cli.model import model_command, short
from orchestrator.errors import FathomError, NotFound, UsageError

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.setenv("COLUMNS", "120")
    app = typer.Typer()
    app.command("model")(model_command)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def data(result: Result) -> Any:  # noqa: ANN401 - JSON
    assert result.exit_code == 0, result.output
    assert not result.stderr
    return json.loads(result.stdout)


def test_json_is_exact(invoke: Invoke) -> None:
    report = data(invoke("v3-671b", "-o", "json"))
    parameters, work = report["parameters"], report["flopsPerToken"]
    assert parameters["total"] == 671_026_404_352
    assert parameters["active"] == 37_552_282_624
    assert parameters["mtp"] == 11_610_067_968
    assert (work["sequenceLength"], work["sixN"]) == (4096, 219_747_581_952)
    names = ("causal", "nonCausal", "causalWithMtp", "nonCausalWithMtp")
    assert [round(work[name] / 1e9, 1) for name in names] == [250.4, 281.2, 260.6, 291.8]
    assert all(isinstance(work[name], int) for name in names)
    assert report["cacheBytesPerToken"] == {"latent": 70_272, "plainAttention": 4_997_120}
    assert report["weightBytes"]["fp8Released"] == 688_574_839_360
    assert report["config"]["hidden_size"] == 7168


def test_table_for_people(invoke: Invoke) -> None:
    result = invoke("v3-671b")
    assert result.exit_code == 0
    for text in (
        "671.0 B",
        "671,026,404,352",
        "250.4 GFLOP",
        "70,272",
        "11.6 B",
        "sequences of 4,096",
    ):
        assert text in result.stdout
    assert "indexer" not in result.stdout
    assert "indexer" in invoke("v3.2-671b").stdout


def test_yaml_says_the_same_as_json(invoke: Invoke) -> None:
    assert yaml.safe_load(invoke("mini", "-o", "yaml").stdout) == data(invoke("mini", "-o", "json"))


def test_sequence_length(invoke: Invoke) -> None:
    long = data(invoke("v3-671b", "--sequence-length", "131072", "-o", "json"))["flopsPerToken"]
    assert round(long["causal"] / 1e9) == 1202
    assert invoke("mini", "--sequence-length", "0").exit_code == 2


def test_without_mtp_its_numbers_are_null(invoke: Invoke) -> None:
    report = data(invoke("v2-lite-16b", "-o", "json"))
    assert report["flopsPerToken"]["causalWithMtp"] is None
    assert report["weightBytes"]["bf16WithMtp"] is None
    assert "with MTP" not in invoke("v2-lite-16b").stdout


def test_without_a_name_presets_are_listed(invoke: Invoke) -> None:
    rows = data(invoke("-o", "json"))
    assert [row["name"] for row in rows] == list(PRESETS)
    assert {"total", "active", "mtp", "description"} <= rows[0].keys()
    table = invoke().stdout
    assert all(name in table for name in PRESETS)
    assert "671.0 B" in table


def test_reads_a_config_file_and_its_folder(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("[", "bold]")  # together "[/bold]": a path is never markup
    folder.mkdir(parents=True)
    file = folder / "config.json"
    file.write_text(json.dumps(to_released(preset("v2-236b"))))
    table = invoke(str(folder))
    assert table.exit_code == 0
    assert "[/bold]" in table.stdout
    for path in (file, folder):
        assert data(invoke(str(path), "-o", "json"))["parameters"]["total"] == 235_741_434_880


def failure(invoke: Invoke, *arguments: str) -> FathomError:
    result = invoke(*arguments)
    assert isinstance(result.exception, FathomError)
    assert not result.stdout
    return result.exception


def test_unknown_names(invoke: Invoke, tmp_path: Path) -> None:
    near = failure(invoke, "V3-671")
    assert isinstance(near, UsageError)
    assert "did you mean v3-671b" in str(near)
    far = failure(invoke, "zzzzzz")
    assert isinstance(far, UsageError)
    assert all(name in str(far) for name in PRESETS)
    missing = failure(invoke, str(tmp_path / "none.json"))
    assert isinstance(missing, NotFound)
    assert "none.json" in str(missing)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "llama"}', "'llama' is not one of"),
        ("not json", "not valid JSON"),
        ('{"model_type": "deepseek_v32", "q_lora_rank": null}', "q_lora_rank is null"),
    ],
)
def test_bad_files(invoke: Invoke, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    error = failure(invoke, str(file))
    assert isinstance(error, UsageError)
    assert message in str(error)
    assert str(file) in str(error)


@pytest.mark.parametrize("name", ["", ".", "a\0b/c", "x" * 5000, "/dev/null", "../../.."])
def test_hostile_names_are_errors_for_users(invoke: Invoke, tmp_path: Path, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        failure(invoke, name)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (999, "B", "999 B"),
        (999.96, "B", "1.0 kB"),
        (70_272, "B", "70.3 kB"),
        (671_026_404_352, "", "671.0 B"),
        (250_449_887_232, "FLOP", "250.4 GFLOP"),
        (1_342_052_808_704, "B", "1.3 TB"),
        (3e18, "FLOP", "3000.0 PFLOP"),
    ],
)
def test_short(value: float, unit: str, text: str) -> None:
    assert short(value, unit) == text


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = (
        "import sys; from orchestrator.cli.model import model_command\n"
        "print([m for m in ('torch', 'numpy', 'ray', 'mlflow', 'pydantic', 'yaml') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
