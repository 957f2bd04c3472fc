"""What a run was expected to take stands in its folder, and beside what it took."""

from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.recipes import tiny_recipe
from support.runs import RATE, event, resolved, tiny_job

from model.recipe import Layout
from orchestrator.controller.expected import against, expect, expected, request_of_run
from orchestrator.controller.record import Record
from orchestrator.cost.ledger import Ledger, build_ledger
from orchestrator.cost.timeline import Held
from orchestrator.plan.basis import Basis
from orchestrator.plan.cpu import CpuRates, forecast_cpu
from orchestrator.plan.estimate import estimate
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

RATES = CpuRates(5e10, 2e10, 2e10, 1e10, 2e5, 1e9)
LAYOUT = Layout(world_size=2, expert_parallel=2, micro_batch=2, accumulation=2)
RECIPE = tiny_recipe(layout=LAYOUT)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """With constants for processor cores."""
    file = tmp_path / "own.yaml"
    rows = (f"- {{name: cpu_{name}, value: {value!r}, origin: measured}}" for name, value in vars(RATES).items())
    file.write_text("\n".join(rows))
    return Settings.load({"FATHOM_HOME": str(tmp_path), "FATHOM_EFFICIENCIES": str(file)})


def ledger() -> Ledger:
    """Ten seconds at a dollar each, six of them training, of which the first still counts as starting."""
    events = [
        event("started", 2.0, step=0, tokens=0, world_size=2),
        *(event("progress", 2.0 + step, step=step, tokens=64 * step, metrics={}) for step in range(1, 7)),
        event("ended", 8.5, outcome="succeeded", step=6),
    ]
    return build_ledger(events, [Held(1, 0.0, 10.0)], RATE)


def test_the_run_as_it_was_resolved_is_forecast(tmp_path: Path, settings: Settings) -> None:
    record = Record.create(tmp_path, tiny_job())
    plan = expect(record, resolved(recipe=RECIPE), settings)
    assert plan is not None
    assert plan.cost is not None
    assert plan.hours is not None
    request = request_of_run(record, resolved(recipe=RECIPE), settings)
    assert (request.tokens, request.batch_tokens, request.config) == (
        RECIPE.total_tokens, RECIPE.batch_tokens, RECIPE.model,
    )  # fmt: skip
    run = SimpleNamespace(
        model=RECIPE.model, layout=LAYOUT, sequence_length=RECIPE.sequence_length, precision="fp32", device="cpu"
    )
    step = forecast_cpu(run, RATES)
    assert plan.gpu_hours is not None
    assert plan.gpu_hours.expected == pytest.approx(RECIPE.steps * step / 3600)
    assert expected(record.folder) == plan.model_validate_json(plan.model_dump_json()), "as it is read again"


def test_hindsight_does_not_better_it(tmp_path: Path, settings: Settings) -> None:
    record = Record.create(tmp_path, tiny_job())
    first = expect(record, resolved(recipe=RECIPE), settings)
    longer = tiny_recipe(layout=LAYOUT, steps=80)
    assert first is not None
    again = expect(record, resolved(recipe=longer), settings)
    assert again is not None
    assert again.hours == first.hours
    record.folder.forecast.unlink()
    assert expect(record, resolved(attempt=2, recipe=RECIPE), settings) is None, "it has begun"


def test_without_figures_there_is_none(tmp_path: Path) -> None:
    record = Record.create(tmp_path, tiny_job())
    plan = expect(record, resolved(recipe=RECIPE), Settings.load({"FATHOM_HOME": str(tmp_path)}))
    assert plan is not None
    assert plan.cost is None
    assert "calibrate" in plan.notes[0]
    assert against(plan, ledger()) is None
    assert against(None, ledger()) is None


def test_what_cannot_be_read_is_none(tmp_path: Path, settings: Settings) -> None:
    record = Record.create(tmp_path, tiny_job())
    assert expected(record.folder) is None
    expect(record, resolved(recipe=RECIPE), settings)
    for damage in ("", "{}", "[1", '{"hours": NaN}'):
        record.folder.forecast.write_text(damage)
        assert expected(record.folder) is None
    record.folder.forecast.unlink()
    record.folder.forecast.mkdir()
    assert expected(record.folder) is None


def test_a_planner_that_refuses_does_not_stop_the_run(tmp_path: Path) -> None:
    broken = tmp_path / "own.yaml"
    broken.write_text("- {name: unheard, value: 1, origin: x}")
    record = Record.create(tmp_path, tiny_job())
    given = Settings.load({"FATHOM_HOME": str(tmp_path), "FATHOM_EFFICIENCIES": str(broken)})
    assert expect(record, resolved(recipe=RECIPE), given) is None


def test_on_cpus_the_steps_are_compared(tmp_path: Path, settings: Settings) -> None:
    plan = expect(Record.create(tmp_path, tiny_job()), resolved(recipe=RECIPE), settings)
    found = against(plan, ledger())
    assert found is not None
    assert (found.what, found.actual, found.currency) == ("productive time", Decimal(5), "USD")
    assert found.low < found.expected < found.high
    foreign = ledger().model_copy(update={"rate": RATE.model_copy(update={"currency": "CHF"})})
    assert against(plan, foreign) is None


def test_on_gpus_all_that_is_held_is_compared(tmp_path: Path) -> None:
    document = tiny_job().document()
    document["spec"]["compute"] = {"accelerator": "H100", "gpus": 2}
    given = Settings.load({"FATHOM_HOME": str(tmp_path)})
    record = Record.create(tmp_path, TrainingJob.model_validate(document))
    plan = expect(record, resolved(recipe=RECIPE, gpus_per_worker=1), given)
    assert plan is not None
    assert plan.layout is not None
    chosen = (plan.layout.expert, plan.layout.zero_stage, plan.layout.micro_batch, plan.layout.recompute)
    assert chosen == (2, LAYOUT.zero_stage, 2, "none"), "nothing is searched: the run is laid out already"
    found = against(plan, ledger())
    assert found is not None
    assert (found.what, found.actual) == ("all held time", Decimal(10))
    assert plan.cost == estimate(request_of_run(record, resolved(recipe=RECIPE), given), Basis.load(given)).cost
