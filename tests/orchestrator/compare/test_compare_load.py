"""Runs as their folders tell them: steps that count, money by the ledger, data by the checkpoints."""

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from support.base import BASE
from support.compared import BITS, T, folder, write
from support.runs import dataset, event, resolved, tiny_job

from orchestrator.compare.comparison import compare
from orchestrator.compare.facts import Axis
from orchestrator.compare.load import load_run
from orchestrator.controller.record import Record
from orchestrator.controller.report import training_flops
from orchestrator.cost.timeline import Held
from orchestrator.status import JobStatus, Phase
from orchestrator.tracking.reached import Reached

ROOT = Path(__file__).parents[3]
LOSSES = [5.0, 4.0, 3.5, 3.0]


def test_a_run_that_has_ended(tmp_path: Path) -> None:
    found = load_run(folder(tmp_path, "one", LOSSES))
    assert (found.name, found.team, found.phase, found.currency) == ("one", "default", Phase.SUCCEEDED, "USD")
    assert found.totals is not None
    assert (found.totals.cost, found.totals.tokens) == (Decimal(7), 400)
    assert [point.dollars for point in found.points] == [3.0, 4.0, 5.0, 6.0]
    assert [point.hours for point in found.points] == pytest.approx([3 / 3600, 4 / 3600, 5 / 3600, 6 / 3600])
    assert found.points[1].flops == 200 * training_flops(resolved().recipe)
    assert found.points[1].metrics == {"train/loss": 4.0, "train/tokens_per_second": 100, BITS: 2.0}
    assert found.configuration["model.num_hidden_layers"] == "3"
    assert found.configuration["arithmetic"] == "fp32"
    assert found.limit is None


def test_the_slower_run_buys_less_for_a_dollar_and_as_much_for_a_token(tmp_path: Path) -> None:
    runs = [
        load_run(folder(tmp_path, "fast", LOSSES)),
        load_run(folder(tmp_path, "slow", LOSSES, slower=2, sequence_length=32)),
    ]
    found = compare(runs, Axis.dollars)
    assert found.equal[0].x == 6.0
    assert [value.value for value in found.equal[0].values] == [1.5, 2.0]
    assert found.equal[0].best == ["fast"]
    tokens = found.equal_at(Axis.tokens)
    assert tokens is not None
    assert tokens.best == []
    assert {one.key for one in found.differing} == {"sequence_length", "batch_tokens", "total_tokens", *FLOPS}


FLOPS = {"model.training_flops_per_token"}


def test_steps_done_again_count_once_and_cost_twice(tmp_path: Path) -> None:
    record = Record.create(tmp_path, tiny_job())
    for attempt in (1, 2):
        record.folder.resolved(attempt).write_text(resolved(attempt=attempt).model_dump_json())
    record.save_held([Held(1, T, T + 10), Held(2, T + 100, T + 110)])
    bits = {BITS: 2.0}
    write(
        record,
        event("started", T + 1, step=0, tokens=0, world_size=2),
        *(event("progress", T + 1 + n, step=n, tokens=100 * n, metrics={BITS: 9.0}) for n in (1, 2, 3)),
        event("ended", T + 9, outcome="failed", failure_class="worker-lost", seq=999),
        event("started", T + 101, attempt=2, step=1, tokens=100, world_size=2),
        *(event("progress", T + 100 + n, attempt=2, step=n, tokens=100 * n, metrics=bits) for n in (2, 3)),
    )
    found = load_run(record.folder.root)
    assert [(point.step, point.metrics[BITS]) for point in found.points] == [(1, 9.0), (2, 2.0), (3, 2.0)]
    assert [point.dollars for point in found.points] == [2.0, 12.0, 13.0], "the first attempt's ten are in them"
    assert found.phase is Phase.RUNNING


def test_a_run_that_was_never_started(tmp_path: Path) -> None:
    found = load_run(Record.create(tmp_path, tiny_job()).folder.root)
    assert (found.phase, found.points, found.totals, dict(found.configuration)) == (Phase.PENDING, (), None, {})


def test_a_cancelled_run_says_so(tmp_path: Path) -> None:
    run = folder(tmp_path, "one", LOSSES)
    record = Record.open(run)
    for phase, expected in ((Phase.CANCELLED, Phase.CANCELLED), (Phase.RUNNING, Phase.SUCCEEDED)):
        record.save_status(JobStatus(phase=phase))
        assert load_run(run).phase is expected, "what the events tell is newer than a status that was left behind"


def test_which_data_as_the_checkpoints_say(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    digest = json.loads((data / "manifest.json").read_text())["digest"]
    run = folder(tmp_path / "runs", "one", LOSSES, data=str(data))
    (run / "checkpoints" / "step-by-hand").mkdir(parents=True)
    assert load_run(run).data.digest == digest, "nothing is recorded: what lies there"
    for step, text in ((9, {"data_digest": digest}), (10, {"data_digest": "f" * 64}), (11, "damaged")):
        manifest = run / "checkpoints" / f"step-{step}" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps(text) if step < 11 else "{")
        found = load_run(run).data
        if step == 9:
            assert (found.digest, found.tokenizer) == (digest, "2" * 64)
            assert found.heldout is not None
        else:
            assert (found.digest, found.tokenizer, found.heldout) == ("f" * 64, None, None), "prepared anew since then"


def test_where_it_is_in_mlflow(tmp_path: Path) -> None:
    run = folder(tmp_path, "one", LOSSES)
    assert load_run(run).mlflow is None
    Reached(target="https://m.example/", experiment_id="3", parent="abc").save(run / "tracking.json")
    found = load_run(run).mlflow
    assert found is not None
    assert (found.experiment_id, found.run_id) == ("3", "abc")
    assert found.url == "https://m.example/#/experiments/3/runs/abc"


def test_reading_and_drawing_import_nothing_heavy(tmp_path: Path) -> None:
    runs = [folder(tmp_path, "one", LOSSES), folder(tmp_path, "two", LOSSES[:3])]
    for options in (["-o", "json"], ["-o", "wide"], ["--html", str(tmp_path / "page.html")]):
        command = [sys.executable, "-c", BASE, "compare", *map(str, runs), *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
