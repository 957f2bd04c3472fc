import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cli import Cli, command

V3 = ["--preset", "v3-671b", "--accelerator", "H800", "--gpus", "2048", "--tokens", "14.8T", "--precision", "fp8"]
LITE = ["--preset", "v2-lite-16b", "--accelerator", "H100", "--gpus", "16", "--tokens", "100B"]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path / "home"))
    for name in ("FATHOM_PRICES", "FATHOM_HARDWARE"):
        monkeypatch.delenv(name, raising=False)
    return command("plan", monkeypatch, capsys)


def document(found: tuple[int, str, str]) -> Any:  # noqa: ANN401 - JSON
    code, out, err = found
    assert (code, err) == (0, "")
    return json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no number"))


def test_the_json_that_was_promised(plan: Cli) -> None:
    found = document(plan(*V3, "-o", "json"))
    assert set(found["gpuHours"]) == {"low", "expected", "high"}
    assert set(found["cost"]) == {"low", "expected", "high", "currency"}
    assert found["gpuHours"]["expected"] == pytest.approx(2_664_000, rel=0.01)
    assert found["cost"]["expected"] == pytest.approx(5_328_000, rel=0.01)
    assert found["price"]["source"]
    assert found["price"]["date"]
    assert found["step"]["mfuConvention"]
    assert found["alternatives"]
    assert "against" not in found


def test_a_person_can_read_it_on_80_columns(plan: Cli) -> None:
    code, out, err = plan(*V3, "--against", "llama-3.1-405b", "--against", "deepseek-v3")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    for text in (
        "v3-671b: 14.8 T tokens on 2,048 H800, fp8",
        "GPU-hours",
        "Memory of the fullest GPU",
        "Time of one step",
        "experts' all-to-all over the network",
        "Layouts that fit",
        "runs today",
        "needs pipeline parallelism",
        "Failures and checkpoints",
        "Cheaper ways",
        "Llama-3.1-405B",
        "30,840,000",
        "Where the figures come from",
    ):
        assert text in out, text


def test_a_job_file_is_planned_for_what_runs_today(plan: Cli, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "metadata: {name: lite}\n"
        "spec:\n"
        "  model: {preset: v2-lite-16b}\n"
        "  data: {source: not/there/yet}\n"
        "  training: {tokens: 100000000000, globalBatchTokens: 1048576}\n"
        "  compute: {accelerator: H100, gpus: 16}\n"
    )
    found = document(plan(file, "-o", "json"))
    assert found["layout"]["needs"] == []
    other = document(plan(file, "--gpus", "32", "--set", "parallelism.expert=8", "-o", "json"))
    assert (other["request"]["gpus"], other["layout"]["expert"]) == (32, 8)
    assert other["hours"]["expected"] < found["hours"]["expected"]


def test_yaml_says_the_same(plan: Cli) -> None:
    _, out, _ = plan(*LITE, "-o", "yaml")
    assert yaml.safe_load(out) == document(plan(*LITE, "-o", "json"))


def test_against_is_in_the_json(plan: Cli) -> None:
    columns = document(plan(*LITE, "--against", "deepseek-r1", "-o", "json"))["against"]
    assert [column["name"] for column in columns] == ["plan", "deepseek-r1"]
    assert columns[1]["totalGpuHours"] == 2_935_336


def test_ones_own_failures_and_hardware(plan: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = document(plan(*LITE, "--failures", "opt-175b", "-o", "json"))
    assert worse["goodput"]["source"].startswith("opt-175b")
    assert worse["goodput"]["mtbfHours"] == pytest.approx(992 * 7.5 / 16)
    hardware = tmp_path / "hardware.yaml"
    row = {
        "name": "Own1", "bf16Teraflops": 500, "memoryGigabytes": 96, "memoryTerabytesPerSecond": 4,
        "nvlinkGigabytesPerSecond": 300, "networkGigabytesPerSecond": 50, "tdpWatts": 500, "source": "a contract",
        "date": "2026-01-01",
    }  # fmt: skip
    hardware.write_text(yaml.safe_dump([row]))
    prices = tmp_path / "prices.yaml"
    price = {"accelerator": "Own1", "priceClass": "on-demand", "amount": "1.00", "currency": "USD", "unit": "gpu-hour"}
    prices.write_text(yaml.safe_dump([price | {"source": "a contract", "date": "2026-01-01"}]))
    monkeypatch.setenv("FATHOM_HARDWARE", str(hardware))
    monkeypatch.setenv("FATHOM_PRICES", str(prices))
    own = document(plan(*LITE, "--accelerator", "Own1", "-o", "json"))
    assert own["request"]["accelerator"] == "Own1"
    assert own["cost"]["expected"] == pytest.approx(own["gpuHours"]["expected"], abs=0.01)
    assert own["energy"]["wattsPerGpu"] == 450
    job = tmp_path / "job.yaml"
    job.write_text(
        "apiVersion: fathom.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: own}\nspec:\n  data: {source: nowhere}\n"
        "  model: {preset: v2-lite-16b}\n  training: {tokens: 100000000000}\n  compute: {accelerator: Own1, gpus: 16}\n"
    )
    code, _, err = plan(job)
    assert code == 2
    assert "got 'Own1'; to plan for another one, use `fathom plan FILE --accelerator NAME`" in err
    assert document(plan(job, "--accelerator", "Own1", "-o", "json"))["request"]["accelerator"] == "Own1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["job file", "--preset"]),
        ([*V3, "--gpus", "8"], ["needs", "GB per GPU", "80.0 GB", "use ", "H800"]),
        ([*V3, "--gpus", "nan"], ["--gpus", "'nan'"]),
        ([*V3, "--tokens=-5"], ["--tokens", "at least 1", "-5"]),
        ([*V3, "--accelerator", "TPU[/bold]"], ["'TPU[/bold]'", "H100"]),
        ([*V3, "--against", "gpt-4"], ["'gpt-4'", "llama-3.1-405b"]),
        ([*V3, "--failures", "never"], ["'never'", "llama-3"]),
        ([*V3, "--set", "parallelism.expert=24"], ["24", "2048"]),
        ([*LITE, "--batch-tokens", "4096", "--engine", "today"], ["16"]),
        (["/does/not/exist.yaml"], ["/does/not/exist.yaml"]),
    ],
)
def test_what_is_wrong_is_said_on_stderr(plan: Cli, arguments: list[str], words: list[str]) -> None:
    code, out, err = plan(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert all(word in err for word in words), err
    assert "Traceback" not in err


@pytest.mark.parametrize("width", [40, 200])
def test_any_terminal_will_do(plan: Cli, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = plan(*LITE)
    assert code == 0
    assert max(map(len, out.splitlines())) <= max(width, 66)
