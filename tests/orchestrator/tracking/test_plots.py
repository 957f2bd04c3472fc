import csv
import datetime
import json
import struct
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from orchestrator.cost.ledger import Held, Ledger, build_ledger
from orchestrator.cost.meter import Rate
from orchestrator.launch.events import Event, Progress, Started
from orchestrator.tracking.artifacts import spent_by, surviving, write_artifacts
from orchestrator.tracking.plots import Curve, expert_load, loss_against_money, loss_against_tokens, smoothed

RATE = Rate(
    per_hour=Decimal("36.00"),
    currency="USD",
    units=1,
    unit="gpu-hour",
    source="$a list$ _of_ prices",
    date=datetime.date(2026, 5, 1),
)


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def progress(seq: int, step: int, incarnation: str = "a", **metrics: float) -> Progress:
    return Progress(
        job="u",
        attempt=1,
        incarnation=incarnation,
        seq=seq,
        time=100.0 + 10 * seq,
        step=step,
        tokens=step * 1000,
        metrics=metrics,
    )


def story() -> tuple[list[Event], Ledger]:
    start = Started(job="u", attempt=1, incarnation="a", seq=1, time=105, step=0, tokens=0, world_size=1)
    events: list[Event] = [
        start,
        progress(2, 1, **{"train/loss": 5.0}),
        progress(3, 2, **{"train/loss": 4.0}),
        progress(4, 2, **{"eval/bits_per_byte": 2.0}),
    ]
    return events, build_ledger(events, [Held(1, 100, 150)], RATE)


@pytest.mark.parametrize("points", [0, 1, 2, 300])
def test_pictures_have_the_promised_size_at_any_length(points: int) -> None:
    xs = [1000.0 * index for index in range(points)]
    loss, bits = Curve(xs, [5 - x / 1e6 for x in xs]), Curve(xs[::50], [2.0] * len(xs[::50]))
    assert size(loss_against_tokens(loss, bits, subtitle="x")) == (900, 540)
    assert size(loss_against_money(loss, bits, currency="EUR")) == (900, 540)


def test_values_that_cannot_be_drawn_are_left_out() -> None:
    broken = Curve([1, 2, 3, float("nan")], [1.0, float("nan"), float("inf"), 2.0])
    assert broken.finite() == Curve([1], [1.0])
    assert loss_against_tokens(broken, Curve([], [])) == loss_against_tokens(Curve([1], [1.0]), Curve([], []))


def test_a_curve_shows_its_values() -> None:
    flat = loss_against_tokens(Curve([1, 2, 3], [3.0, 3.0, 3.0]), Curve([], []))
    assert flat != loss_against_tokens(Curve([1, 2, 3], [3.0, 2.0, 1.0]), Curve([], []))
    assert flat != loss_against_tokens(Curve([1, 2, 3], [3.0, 3.0, 3.0]), Curve([3], [2.0]))


def test_moving_average_has_no_bias_at_its_start() -> None:
    assert smoothed([2.0] * 5, 3) == pytest.approx([2.0] * 5)
    assert smoothed([0.0, 3.0], 1) == pytest.approx([0.0, 2.0])
    assert smoothed([], 1) == []


@pytest.mark.parametrize(("layers", "experts"), [(1, 1), (4, 16), (60, 256)])
def test_load_map_of_any_shape(layers: int, experts: int) -> None:
    load = [[float(1 + (x * y) % 7) for x in range(experts)] for y in range(layers)]
    names = [*(str(layer) for layer in range(1, layers)), "mtp.0"]
    assert size(expert_load(names, load, step=3)) == (900, 540)


def test_load_map_knows_fair_dead_and_silent() -> None:
    fair = expert_load(["1"], [[5, 5]], step=1)
    assert fair == expert_load(["1"], [[0, 0]], step=1)
    assert fair == expert_load(["1"], [[7, 7]], step=1)
    assert fair != expert_load(["1"], [[10, 0]], step=1)


@pytest.mark.parametrize(
    ("layers", "load", "says"),
    [
        (["1", "2"], [[1.0]], "2 layers are named, but the load has 1 rows"),
        ([], [], "0 layers"),
        (["1", "2"], [[1.0], [1.0, 2.0]], r"got \[1, 2\]"),
        (["1"], [[]], r"got \[0\]"),
        (["1"], [[-1.0, 2.0]], "not negative"),
        (["1"], [[float("nan"), 2.0]], "finite"),
    ],
)
def test_impossible_loads_are_refused(layers: list[str], load: list[list[float]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        expert_load(layers, load, step=1)


def test_artifacts_of_a_run(tmp_path: Path) -> None:
    events, ledger = story()
    load = json.dumps({"step": 2, "layers": ["1", "mtp.0"], "load": [[1, 3], [2, 2]]})
    paths = write_artifacts(tmp_path / "out", events, ledger, '{"a": 1}', load)
    assert sorted(path.name for path in paths) == [
        "cost.html",
        "expert_load.csv",
        "expert_load.png",
        "ledger.json",
        "ledger.png",
        "loss_vs_dollars.png",
        "loss_vs_tokens.png",
        "metrics.csv",
        "resolved.json",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)
    assert Ledger.from_json((tmp_path / "out/ledger.json").read_bytes()) == ledger
    assert (tmp_path / "out/resolved.json").read_text() == '{"a": 1}'
    assert (tmp_path / "out/expert_load.csv").read_text().splitlines() == [
        "step,layer,expert,tokens,load_over_fair",
        "2,1,0,1,0.5",
        "2,1,1,3,1.5",
        "2,mtp.0,0,2,1",
        "2,mtp.0,1,2,1",
    ]
    with (tmp_path / "out/metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert [row["train/loss"] for row in rows] == ["5.0", "4.0"]
    assert [row["eval/bits_per_byte"] for row in rows] == ["", "2.0"]
    assert [row["cost/usd"] for row in rows] == ["0.2", "0.4"]
    assert size((tmp_path / "out/loss_vs_dollars.png").read_bytes()) == (900, 540)


def test_artifacts_of_a_run_without_a_step_or_a_load(tmp_path: Path) -> None:
    paths = write_artifacts(tmp_path, [], build_ledger([], [Held(1, 0, 1)], RATE), "{}", None)
    assert "expert_load.png" not in {path.name for path in paths}
    assert (tmp_path / "metrics.csv").read_text() == "\n"


@pytest.mark.parametrize("load", ["", "[]", "{}", '{"step": 1, "layers": ["1"], "load": 5}', "null"])
def test_a_broken_load_file_is_named(tmp_path: Path, load: str) -> None:
    events, ledger = story()
    with pytest.raises(ValueError, match="expert load must be"):
        write_artifacts(tmp_path, events, ledger, "{}", load)


def test_a_repeated_step_replaces_the_first_and_an_evaluation_joins_it() -> None:
    events = [
        progress(1, 1, **{"train/loss": 9.0}),
        progress(2, 1, **{"train/loss": 8.0}),
        progress(3, 1, **{"eval/loss": 7.0}),
    ]
    (only,) = surviving(events)
    assert only.metrics == {"train/loss": 8.0, "eval/loss": 7.0}


def test_money_by_time_follows_the_held_intervals() -> None:
    ledger = build_ledger([], [Held(1, 100, 110), Held(2, 200, 210)], RATE)
    at = spent_by(ledger)
    cents = [at(time).amount * 100 for time in (0, 100, 105, 150, 205, 1000)]
    assert cents == [0, 0, 5, 10, 15, 20]


def test_nothing_heavy_is_imported_before_a_picture_is_drawn() -> None:
    code = (
        "import sys, orchestrator.tracking.artifacts, orchestrator.tracking.mlflow\n"
        "print([name for name in ('matplotlib', 'mlflow', 'torch', 'numpy', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
