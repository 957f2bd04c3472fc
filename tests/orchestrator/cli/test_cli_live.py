import io
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console
from support.runs import event, resolved, tiny_job

from orchestrator.cli import live
from orchestrator.cli.live import Display, duration, facts, line
from orchestrator.controller.follower import Snapshot
from orchestrator.controller.observe import Observation
from orchestrator.controller.record import Record

METRICS = {
    "train/loss": 2.51239,
    "eval/bits_per_byte": 3.14159,
    "train/mtp_accuracy": 0.255,
    "moe/cv": 0.126,
    "train/tokens_per_second": 1234.5,
}


def snapshot(step: int = 4, *, stopping: bool = False, metrics: dict[str, float] | None = None) -> Snapshot:
    seen = Observation(steps=8, total_tokens=512)
    if step:
        seen.add(event("started", 0.0, step=0, tokens=0, world_size=2))
        told = METRICS if metrics is None else metrics
        seen.add(event("progress", 1.0, step=step, tokens=64 * step, metrics=told))
    return Snapshot(seen, resolved(), Decimal("0.25"), stopping)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 m 00 s"),
        (250.0, "4 m 10 s"),
        (3599.7, "1 h 00 m"),
        (11_100.0, "3 h 05 m"),
        (400_000.0, "111 h 06 m"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_the_line_is_for_programs() -> None:
    values = dict(pair.split("=") for pair in line(snapshot()).split(" "))
    assert values == {
        "step": "4/8",
        "tokens": "256",
        "loss": "2.5124",
        "bits_per_byte": "3.1416",
        "moe_cv": "0.1260",
        "tokens_per_second": "1234",
        "cost_usd": "0.250000",
        "seconds_left": "0",
    }
    values = dict(pair.split("=") for pair in line(snapshot(metrics={})).split(" "))
    assert (values["tokens_per_second"], values["seconds_left"]) == ("nan", "nan")
    assert "loss" not in values


def test_facts_for_people() -> None:
    assert facts(snapshot()) == {
        "step": "4/8",
        "loss": "2.512",
        "bits/byte": "3.142",
        "2nd token": "25.5%",
        "balance cv": "0.13",
        "tokens/s": "1,234",
        "spent": "$0.2500",
        "left": "0 s",
    }
    before = snapshot(step=0)
    assert facts(before) == {"step": "0/8", "spent": "$0.2500", "left": "–"}
    before.observation.restarts = 2
    assert facts(before)["restarts"] == "2"


def panel(record: Record, shown: Snapshot, monkeypatch: pytest.MonkeyPatch) -> str:
    screen = Console(file=io.StringIO(), force_terminal=True, width=300, color_system=None)
    monkeypatch.setattr(live, "_console", screen)
    with Display(record) as display:
        display.show(shown)
    text = screen.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


@pytest.mark.parametrize("place", ["plain", "runs[old]", "x[/b]", "end[\\"])
def test_the_panel_shows_any_folder_as_it_is(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record.create(tmp_path / place, tiny_job())
    text = panel(record, snapshot(), monkeypatch)
    assert str(record.folder.root) in text
    assert "training" in text
    assert "50.0 %" in text


def test_the_panel_says_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record.create(tmp_path, tiny_job())
    assert "starting 2 workers" in panel(record, snapshot(step=0), monkeypatch)
    assert "Ctrl-C again" in panel(record, snapshot(stopping=True), monkeypatch)


def test_without_a_terminal_there_are_a_few_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "_console", Console(file=io.StringIO(), force_terminal=False))
    record = Record.create(tmp_path, tiny_job())
    with Display(record) as display:
        for shown in (snapshot(step=0), snapshot(), snapshot(step=5), snapshot(step=8), snapshot(step=8)):
            display.show(shown)
    out = capsys.readouterr()
    assert out.out == "", "results alone go to stdout"
    assert [text.split(" ")[0] for text in out.err.splitlines()] == ["step=8/8"], "the last step is always told"
