"""`fathom goodput`: readable, exact for programs, and firm with nonsense."""

import builtins
import json
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from support.cli import Cli, command

from orchestrator.plan.failures import failure_models
from orchestrator.plan.goodput import Recovery, goodput

FEW = ("--gpus", 1024, "--days", 10, "--runs", 3)


@pytest.fixture
def fathom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.delenv("FATHOM_PRICES", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    return command("goodput", monkeypatch, capsys)


def test_a_person_reads_it_without_a_manual(fathom: Cli) -> None:
    code, out, _ = fathom("--gpus", 16384, "--days", 54, "--runs", 5)
    assert code == 0
    for text in (
        "16,384 GPUs for 54 days, failures as llama-3: one every 3.09 h",
        "88.3% by formula",
        "checkpoint every 7.75 min of training (the best)",
        "cost $62,639,308.80, of it $7,",
        "2.95 USD per GPU-hour: H100 SXM",
        "arXiv 2407.21783",
        "WHERE THE TIME GOES",
        "LOST BY CAUSE",
        "WHAT ONE CHANGE WOULD BE WORTH",
        "restart in place (in use: what it saves now)",
        "11 more (-o json)",
    ):
        assert text in out, text


def test_the_document_shows_what_is_printed(fathom: Cli) -> None:
    """After a change: run the command, and look at what has become worse."""
    document = (Path(__file__).parents[3] / "docs" / "goodput.md").read_text(encoding="utf-8")
    _, out, _ = fathom("--gpus", 16384, "--days", 54)
    shown = "\n".join(line.rstrip() for line in out.splitlines())
    assert f"$ fathom goodput --gpus 16384 --days 54\n{shown}\n```" in document


def test_a_moment_in_which_nothing_happens(fathom: Cli) -> None:
    code, out, _ = fathom("--gpus", 1, "--days", "1e-6")
    assert code == 0
    assert "one every 2,112 days, 0 in a run" in out
    assert "goodput 100.0%" in out
    assert "LOST BY CAUSE" not in out, "a table without rows"


def test_programs_get_all_of_it(fathom: Cli) -> None:
    code, out, err = fathom("--gpus", 16384, "--days", 54, "--runs", 5, "--spares", 6, "-o", "json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    expected = goodput(16384, 8, failure_models()["llama-3"], Recovery(spares=6))
    assert found["goodput"]["expected"] == pytest.approx(expected.fraction)
    assert found["goodput"]["low"] <= found["goodput"]["simulated"] <= found["goodput"]["high"]
    assert found["interval"]["recommendedSeconds"] == pytest.approx(expected.interval_seconds)
    assert found["failures"]["expected"] == pytest.approx(419)
    assert found["cost"]["total"] == "62639308.80"
    parts = sum(Decimal(one["cost"]) for one in found["time"].values())
    assert abs(parts - Decimal(found["cost"]["total"])) < Decimal("0.05"), "each is rounded to cents"
    assert found["time"]["waiting"]["hours"] > 10
    assert "more spares" in [one["name"] for one in found["better"]]
    assert found["recovery"]["replaceSeconds"] == 570
    assert found["origins"]["replaceSeconds"].startswith("9.5 min")


def test_yaml_is_the_same(fathom: Cli) -> None:
    _, as_json, _ = fathom(*FEW, "-o", "json")
    _, as_yaml, _ = fathom(*FEW, "-o", "yaml")
    assert yaml.safe_load(as_yaml) == json.loads(as_json)


def test_seeds(fathom: Cli) -> None:
    outs = [fathom(*FEW, "--seed", seed, "-o", "json")[1] for seed in (4, 4, 5)]
    assert outs[0] == outs[1] != outs[2]


def test_what_never_fails_is_null_not_infinity(fathom: Cli, tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    path.write_text("{name: none, source: us, date: 2026-01-01, causes: [{name: x, perJobDay: 0, cure: node}]}")
    code, out, _ = fathom(*FEW, "--failures", path, "-o", "json")
    found = json.loads(out)
    assert (code, found["interval"]["recommendedSeconds"], found["failures"]["mtbfHours"]) == (0, None, None)
    assert found["goodput"]["simulated"] == 1
    table = fathom(*FEW, "--failures", path)[1]
    assert "no failures" in table
    assert "no checkpoints, since nothing fails" in table


def test_names_of_causes_are_no_markup(fathom: Cli, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(
        "{name: '[red]', source: '[b]us', date: 2026-01-01, causes: [{name: '[/x]', perJobDay: 9, cure: node}]}"
    )
    code, out, _ = fathom(*FEW, "--failures", path)
    assert code == 0
    assert all(name in out for name in ("[red]", "[b]us", "[/x]"))


def test_prices(fathom: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(fathom(*FEW, "--accelerator", "H800", "-o", "json")[1])["cost"]["perGpuHour"] == "2.00"
    own = json.loads(fathom(*FEW, "--price", "1.5", "-o", "json")[1])["cost"]
    assert (own["total"], own["currency"]) == (str(Decimal("1.5") * 1024 * 240) + "0", "USD")
    book = tmp_path / "prices.yaml"
    book.write_text(
        "- {accelerator: H100, priceClass: on-demand, amount: '3', currency: EUR, unit: gpu-hour, source: c, "
        "date: 2026-09-01}"
    )
    monkeypatch.setenv("FATHOM_PRICES", str(book))
    assert "€" in fathom(*FEW)[1]


def test_a_timeline(fathom: Cli, tmp_path: Path) -> None:
    for name, start in (("a.html", b"<!doctype html>"), ("a.png", b"\x89PNG")):
        assert fathom(*FEW, "--timeline", tmp_path / name)[0] == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    before = (tmp_path / "a.html").read_bytes()
    code, out, err = fathom(*FEW, "--seed", 7, "--timeline", tmp_path / "a.html")
    assert code != 0
    assert (out, "a.html exists already: give --force to replace it" in err) == ("", True)
    assert (tmp_path / "a.html").read_bytes() == before
    assert fathom(*FEW, "--seed", 7, "--timeline", tmp_path / "a.html", "--force")[0] == 0
    assert (tmp_path / "a.html").read_bytes() != before
    (tmp_path / "folder.png").mkdir()
    assert "folder.png is a folder: name a file in it" in fathom(*FEW, "--timeline", tmp_path / "folder.png")[2]


def test_a_timeline_without_matplotlib(fathom: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def barred(name: str, *rest: object) -> object:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", barred)
    code, _, err = fathom(*FEW, "--timeline", tmp_path / "a.html")
    assert (code, err) == (2, "error: a timeline needs matplotlib: run `pip install 'fathom-train[train]'`\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpus", 0), "GPUs must be between 1 and 10,000,000, got 0"),
        (("--gpus", -8), "got -8"),
        (("--gpus", 10**9), "got 1000000000"),
        (("--gpus", 8, "--gpus-per-node", 0), "GPUs per node must be between 1 and 10,000,000, got 0"),
        (("--gpus", 8, "--days", "nan"), "--days must be more than 0 and at most 34,000, got nan"),
        (("--gpus", 8, "--days", "-3"), "at most 34,000, got -3"),
        (("--gpus", 8, "--days", "1e300"), "got 1e+300"),
        (("--gpus", 8, "--interval", 30), "the interval must be at least 60 s"),
        (("--gpus", 8, "--interval", "inf"), "interval must be more than 0 and at most 1,000,000,000 s, got inf"),
        (("--gpus", 8, "--save-seconds", 0), "save seconds must be more than 0, got 0"),
        (("--gpus", 8, "--restart-minutes", "nan"), "--restart-minutes must be between 0 and 16,000,000, got nan"),
        (("--gpus", 8, "--days", "100000"), "--days must be more than 0 and at most 34,000, got 100000"),
        (("--gpus", 8, "--replace-minutes", -1), "--replace-minutes must be between 0 and 16,000,000, got -1"),
        (("--gpus", 8, "--hang-minutes", "inf"), "--hang-minutes must be between 0 and 16,000,000, got inf"),
        (("--gpus", 8, "--spares", -1), "spares must be between 0 and 1,000,000,000, got -1"),
        (("--gpus", 8, "--exclude-after", -1), "--exclude-after must be 0 (never) or more, got -1"),
        (("--gpus", 8, "--peer-copies"), "--peer-copies needs --local-save-seconds"),
        (("--gpus", 8, "--runs", 0), "number of runs must be between 1 and 1,000, got 0"),
        (("--gpus", 8, "--failures", "lama"), "unknown failure model 'lama'; known: llama-3, rsc-1"),
        (("--gpus", 8, "--accelerator", "TPU"), "no price for accelerator 'TPU'; known: A100"),
        (("--gpus", 8, "--price", "cheap"), "--price must be a number of USD per GPU-hour, got 'cheap'"),
        (("--gpus", 8, "--price", "nan"), "--price must be between 0 and 1,000,000 USD per GPU-hour, got nan"),
        (("--gpus", 8, "--price", "-1"), "got -1"),
        (("--gpus", 8, "--timeline", "a.pdf"), "--timeline must end in .html or .png, got 'a.pdf'"),
        (("--gpus", 8, "--timeline", ""), "--timeline must end in .html or .png, got '.'"),
        (("--gpus", 8, "--timeline", "/nowhere/a.png"), "/nowhere/a.png cannot be written: No such file or directory"),
        (
            ("--gpus", 10**7, "--days", 3650, "--failures", "ant"),
            "too many to play out, at most 200,000: simulate 0.37 days",
        ),
    ],
)
def test_nonsense_names_both_numbers(fathom: Cli, arguments: tuple[object, ...], said: str) -> None:
    code, out, err = fathom(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
