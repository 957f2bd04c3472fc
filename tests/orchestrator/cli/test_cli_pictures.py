"""`--plot` of `fathom plan`, `goodput` and `cost`: one convention, and errors that say what to do."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from support.cli import Cli, command
from support.pages import Page, alone, image

ROOT = Path(__file__).parents[3]
LEDGER = ROOT / "tests/orchestrator/cost/data/ledger-v1.json"
V3 = ("--preset", "v3-671b", "--accelerator", "H800", "--gpus", 2048, "--tokens", "14.8T", "--precision", "fp8")
USES: dict[str, tuple[object, ...]] = {
    "plan": ("--preset", "v2-lite-16b", "--accelerator", "H100", "--gpus", 16, "--tokens", "1B"),
    "goodput": ("--gpus", 1024, "--days", 10, "--runs", 2),
    "cost": (LEDGER,),
}


@pytest.fixture(params=USES)
def use(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    """`fathom VERB ... --plot ...`."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    run = command(request.param, monkeypatch, capsys)
    return lambda *arguments: run(*USES[request.param], *arguments)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("FATHOM_PRICES", "FATHOM_HARDWARE", "FATHOM_EFFICIENCIES"):
        monkeypatch.delenv(name, raising=False)
    return command("plan", monkeypatch, capsys)


def test_a_page_and_a_picture(use: Cli, tmp_path: Path) -> None:
    code, _, err = use("--plot", "a.html")
    assert (code, err) == (0, "a.html: written\n")
    alone((tmp_path / "a.html").read_bytes())
    assert use("--plot", "a.PNG")[0] == 0
    assert image((tmp_path / "a.PNG").read_bytes()).width == 900


def test_where_nothing_can_be_written(use: Cli, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "there.png").write_text("mine")
    for name, code, said in (
        ("a.pdf", 2, "--plot must end in .html or .png, got a.pdf"),
        ("a", 2, "--plot must end in .html or .png, got a"),
        ("folder.html", 2, "folder.html is a folder: name a file in it"),
        ("no/such/a.png", 2, "no/such/a.png cannot be written: No such file or directory"),
        ("x" * 300 + ".png", 2, "cannot be written: File name too long"),
        ("there.png", 4, "there.png exists already: give --force to replace it"),
    ):
        found = use("--plot", name)
        assert found[0] == code
        assert found[2].startswith("error: ")
        assert said in found[2]
    assert (tmp_path / "there.png").read_text() == "mine"
    assert use("--plot", "there.png", "--force")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["folder.html", "there.png"]


def test_without_matplotlib(use: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def barred(name: str, *rest: Any) -> Any:  # noqa: ANN401 - whatever a module is
        if name.partition(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", barred)
    code, _, err = use("--plot", "a.html")
    assert (code, err) == (2, "error: a picture needs matplotlib: run `pip install matplotlib`\n")
    assert not (tmp_path / "a.html").exists()


def test_a_page_of_a_plan_says_what_the_plan_says(plan: Cli, tmp_path: Path) -> None:
    code, out, _ = plan(*V3, "--plot", "plan.html", "-o", "json")
    assert code == 0
    found = json.loads(out)
    text = (tmp_path / "plan.html").read_text()
    page = Page(text)
    peaks = [f"{size / 1e9:,.2f}" for size in found["memory"]["byRecompute"].values()]
    assert page.row("at its highest")[1:] == peaks
    assert page.row("together")[1] == f"{found['step']['seconds']:.3f}"
    assert text.count("<dt>note</dt>") == len(found["notes"])
    assert "this layout cannot run yet" in text


def test_nothing_to_draw_on_cpus(plan: Cli, tmp_path: Path) -> None:
    code, out, err = plan(ROOT / "k8s/samples/mini.yaml", "--plot", "a.png")
    assert (code, out) == (2, "")
    assert "--plot has nothing to draw: this plan has no memory and no time by part; no forecast" in err
    assert not (tmp_path / "a.png").exists()
