import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.recipes import tiny_recipe
from support.runs import RATE, event, resolved, tiny_job
from support.tokens import prepared

from model.dataset import DatasetManifest
from orchestrator.cli.summary import summary, summary_table
from orchestrator.controller.observe import Observation
from orchestrator.controller.record import Record
from orchestrator.controller.result import Result
from orchestrator.cost.ledger import build_ledger
from orchestrator.cost.timeline import Held
from orchestrator.launch.events import Ended

METRICS = {
    "eval/bits_per_byte": 2.5,
    "eval/mtp_accuracy": 0.25,
    "moe/cv": 0.125,
    "moe/max_violation": 0.5,
    "moe/dead_share": 0.0,
    "train/tokens_per_second": 1234.0,
    "train/gflops_per_second": 5.5,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetManifest]:
    root = tmp_path_factory.mktemp("summary")
    (root / "text.txt").write_text("\n\n".join(f"def f{i}():\n    return {i} * {i}" for i in range(400)))
    return root / "data", prepared(root / "text.txt", root / "data", vocab_size=300, heldout_share=0.3)


def content(
    root: Path, data: Path, *, metrics: dict[str, float] = METRICS, source: str = "a list", sample: str | None = None
) -> dict[str, Any]:
    """Of a run that stopped after 4 of 8 steps, in its second attempt."""
    record = Record.create(root, tiny_job())
    if sample is not None:
        record.folder.artifacts.mkdir()
        (record.folder.artifacts / "sample.txt").write_text(sample)
    end = event("ended", 15.0, attempt=2, outcome="stopped", failure_class="interrupted", step=4)
    assert isinstance(end, Ended)
    events = [
        event("started", 11.0, attempt=2, step=0, tokens=0, world_size=2),
        event("progress", 12.0, attempt=2, step=4, tokens=256, metrics=metrics),
        end,
    ]
    seen = Observation(steps=8)
    for one in events:
        seen.add(one)
    plan = resolved(attempt=2, recipe=tiny_recipe(data=str(data)), rate=RATE.model_copy(update={"source": source}))
    ledger = build_ledger(events, [Held(1, 0.0, 5.0), Held(2, 10.0, 16.0)], plan.rate)
    return summary(record, Result("stop", end, seen, plan, ledger))


def screen(shown: dict[str, Any], width: int = 400) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(summary_table(shown))
    text = console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def test_plain_values_for_programs(tmp_path: Path, data: tuple[Path, DatasetManifest]) -> None:
    found = json.loads(json.dumps(content(tmp_path, data[0])))
    assert (found["outcome"], found["step"], found["steps"], found["tokens"]) == ("stopped", 4, 8, 256)
    assert found["order0BitsPerByte"] == data[1].baselines.order0_bits_per_byte
    assert found["metrics"] == METRICS
    assert found["attempts"] == 2
    assert found["sample"] is None
    money = found["ledger"]
    assert (money["currency"], money["unit"]) == ("USD", "cpu-hour")
    assert Decimal(money["cost"]) == 11
    assert Decimal(money["costPerBillionTokens"]) == Decimal(11 * 10**9) / 256
    assert sum(Decimal(v) for v in money["secondsByClass"].values()) == Decimal(money["heldSeconds"]) == 11
    assert money["price"] == "1800 USD per cpu-hour, a list, 2026-06-01", "of one device"


def test_the_screen_for_people(tmp_path: Path, data: tuple[Path, DatasetManifest]) -> None:
    shown = content(tmp_path, data[0], sample="def f():\n    return [bold]1[/bold]\n")
    text = screen(shown)
    ratio = 2.5 / data[1].baselines.order0_bits_per_byte
    for words in (
        "4/8 steps, 256 tokens",
        f"2.500 bits per byte = {ratio:.2f} of its order-0 entropy",
        "25.0% right",
        "variation 0.12, most loaded +50% over its share, dead 0%",
        "1,234 tokens/s, 5.5 GFLOP/s",
        "$11.00, $42,968,750.00 per billion tokens",
        "0 of workers, 1 of the driver",
        "return [bold]1[/bold]",
        f"fathom generate {shown['run']} --prompt",
    ):
        assert words in text


def test_a_run_that_never_got_to_a_step(tmp_path: Path, data: tuple[Path, DatasetManifest]) -> None:
    text = screen(content(tmp_path, data[0], metrics={}))
    assert "held-out text" not in text
    assert "$11.00" in text
    assert "sample" not in text


@pytest.mark.parametrize("name", ["runs[old]", "x[/b]"])
def test_names_are_shown_as_they_are(tmp_path: Path, data: tuple[Path, DatasetManifest], name: str) -> None:
    text = screen(content(tmp_path / name, data[0], source="offer [draft] of [/june]"))
    assert text.count(str(tmp_path / name)) == 3
    assert "offer [draft] of [/june]" in text


def test_a_narrow_screen_is_no_error(tmp_path: Path, data: tuple[Path, DatasetManifest]) -> None:
    assert screen(content(tmp_path, data[0], sample="x" * 500), width=20)


def test_forecast_and_actual_stand_side_by_side(tmp_path: Path, data: tuple[Path, DatasetManifest]) -> None:
    shown = content(tmp_path, data[0])
    assert shown["speed"] is None, "nothing is known of these processors"
    assert "CPU second" not in screen(shown)
    text = screen(shown | {"speed": {"forecast": 4500.0, "actual": 5000.0, "per": "CPU second"}})
    assert "4,500 tokens per CPU second, actual 5,000 (-10.0%)" in text


def test_the_forecast_of_money_beside_the_actual(tmp_path: Path, data: tuple[Path, DatasetManifest]) -> None:
    shown = content(tmp_path, data[0])
    assert shown["forecast"] is None, "none was made before this run"
    assert "cost forecast" not in screen(shown)
    found = {"low": "8.5", "expected": "10", "high": "12", "actual": "11", "currency": "USD", "what": "all held time"}
    text = screen(shown | {"forecast": found})
    assert "$10.00 ($8.50 to $12.00) for all held time; actual $11.00 (+10%)" in text
    assert "for all held time; actual $11.00" in screen(shown | {"forecast": found | {"expected": "0"}})
