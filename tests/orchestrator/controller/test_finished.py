"""Runs as calibration sees them, from their folders and from MLflow's parameters."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.recipes import tiny_recipe
from support.runs import resolved, tiny_job

from model.ramp import BatchStage
from model.recipe import Layout
from orchestrator.controller.finished import compared, observed
from orchestrator.controller.record import Record
from orchestrator.controller.report import run_parameters
from orchestrator.errors import NotFound, UsageError
from orchestrator.launch.events import EventLog
from orchestrator.plan.cpu import CpuRates, forecast_cpu
from orchestrator.settings import Settings
from orchestrator.tracking import finished

RECIPE = tiny_recipe()
RATES = CpuRates(5e10, 2e10, 2e10, 1e10, 2e5, 1e9)


def run(root: Path, seconds: dict[int, float], *, attempt: int = 1, starts: tuple[int, ...] = (0,)) -> Record:
    """A run with these CPU seconds by step; workers start after `starts`."""
    record = Record.create(root, tiny_job())
    plan = resolved(attempt=attempt)
    record.folder.resolved(attempt).write_text(plan.model_dump_json())
    log, known = EventLog(record.folder.events), {"job": "u", "attempt": attempt, "incarnation": f"i{attempt}"}
    for step, value in seconds.items():
        if step - 1 in starts:
            log.append("started", **known, time=float(step), step=step - 1, tokens=0, world_size=1)
        metrics = {"train/cpu_seconds": value, "train/step_seconds": 99.0}
        log.append("progress", **known, time=step + 0.5, step=step, tokens=step, metrics=metrics)
    return record


def test_the_median_of_a_run(tmp_path: Path) -> None:
    record = run(tmp_path, {1: 9.0, 2: 9.0, 3: 9.0, 4: 1.0, 5: 2.0, 6: 3.0})
    found = observed(record.folder.root)
    assert (found.name, found.device, found.measured) == (record.folder.root.name, "cpu", 2.0)
    assert (found.model, found.layout, found.sequence_length) == (RECIPE.model, RECIPE.layout, RECIPE.sequence_length)


def test_steps_after_workers_started_again_are_left_out(tmp_path: Path) -> None:
    slow = {5: 50.0, 6: 50.0, 7: 50.0}
    record = run(tmp_path, dict.fromkeys(range(1, 11), 1.0) | slow, starts=(0, 4))
    assert observed(record.folder.root).measured == 1.0


def test_only_steps_with_the_full_batch_count(tmp_path: Path) -> None:
    record = run(tmp_path, {step: 0.25 if step <= 6 else 1.0 for step in range(1, 10)})
    stages = (BatchStage(first_step=0, sequences=4), BatchStage(first_step=6, sequences=8))
    layout = Layout(world_size=1, expert_parallel=1, micro_batch=4, accumulation=2)
    recipe = tiny_recipe(batch_stages=stages, layout=layout, steps=20)
    record.folder.resolved(1).write_text(resolved(recipe=recipe).model_dump_json())
    assert observed(record.folder.root).measured == 1.0


def test_runs_that_say_too_little(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no job\.json"):
        observed(tmp_path)
    with pytest.raises(UsageError, match="was never started"):
        observed(Record.create(tmp_path / "a", tiny_job()).folder.root)
    with pytest.raises(UsageError, match="has 2 steps with train/cpu_seconds"):
        observed(run(tmp_path / "b", dict.fromkeys(range(1, 6), 1.0)).folder.root)
    old = run(tmp_path / "c", {})
    with pytest.raises(UsageError, match="has no train/cpu_seconds"):
        observed(old.folder.root)


# ------------------------------------------------------------------ forecast beside actual


def own_rates(folder: Path) -> Settings:
    file = folder / "own.yaml"
    file.write_text("\n".join(f"- {{name: cpu_{n}, value: {v!r}, origin: x}}" for n, v in vars(RATES).items()))
    return Settings.load({"FATHOM_HOME": str(folder), "FATHOM_EFFICIENCIES": str(file)})


def test_forecast_and_actual_side_by_side(tmp_path: Path) -> None:
    record = run(tmp_path, dict.fromkeys(range(1, 11), 0.5))
    found = compared(record.folder.root, own_rates(tmp_path))
    assert found is not None
    assert found.actual == RECIPE.batch_tokens / 0.5
    assert found.forecast == pytest.approx(RECIPE.batch_tokens / forecast_cpu(RECIPE, RATES))
    assert found.per == "CPU second"


def test_nothing_is_compared_that_is_not_known(tmp_path: Path) -> None:
    record = run(tmp_path, dict.fromkeys(range(1, 11), 0.5))
    assert compared(record.folder.root, Settings.load({"FATHOM_HOME": str(tmp_path)})) is None
    broken = Settings.load({"FATHOM_HOME": str(tmp_path), "FATHOM_EFFICIENCIES": str(tmp_path / "none")})
    assert compared(record.folder.root, broken) is None, "a run that went well must not end with an error"
    short = run(tmp_path / "short", {1: 1.0})
    assert compared(short.folder.root, own_rates(tmp_path)) is None


# ------------------------------------------------------------------ MLflow


class Mlflow:
    """Answers as MLflow's client does; one attempt for each set of changes of its parameters."""

    def __init__(self, *changes: dict[str, str], status: str = "FINISHED", steps: int = 10) -> None:
        params = run_parameters(resolved(), "cpu")
        self.steps = steps
        self.runs = [
            SimpleNamespace(
                info=SimpleNamespace(run_id=str(n), run_name=f"a #{n}", status=status, start_time=n),
                data=SimpleNamespace(params=params | changed),
            )
            for n, changed in enumerate(changes, start=1)
        ]

    def get_experiment_by_name(self, name: str) -> Any:  # noqa: ANN401
        return SimpleNamespace(experiment_id="7") if name == "mine" else None

    def search_experiments(self) -> list[Any]:
        return [SimpleNamespace(name="mine")]

    def search_runs(self, *_: object, **__: object) -> Any:  # noqa: ANN401
        class Page(list[Any]):
            token = None

        return Page(self.runs)

    def get_metric_history(self, _run: str, metric: str) -> list[Any]:
        value = {"train/cpu_seconds": 0.5, "train/step_seconds": 2.0}[metric]
        return [SimpleNamespace(step=step, value=90.0 if step <= 3 else value) for step in range(1, self.steps + 1)]


def from_mlflow(monkeypatch: pytest.MonkeyPatch, client: Mlflow, *, gpu: str | None = None) -> tuple[list[Any], str]:
    remarks: list[str] = []
    monkeypatch.setattr(finished, "connect", lambda _: client)
    return finished.from_mlflow("sqlite:///x", "mine", gpu, remarks.append), "\n".join(remarks)


def test_parameters_give_back_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,), remarks = from_mlflow(monkeypatch, Mlflow({}))
    assert (found.model, found.layout, found.sequence_length) == (RECIPE.model, RECIPE.layout, RECIPE.sequence_length)
    assert (found.name, found.device, found.precision, found.measured) == ("a #1", "cpu", "fp32", 0.5)
    assert remarks == ""


def test_mlflow_says_on_which_gpus_a_run_was(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = run_parameters(resolved(), "H800") | {"device": "cuda", "precision": "bf16"}
    for given in (None, "H100"):
        (found,), _ = from_mlflow(monkeypatch, Mlflow(gpus), gpu=given)
        assert (found.device, found.measured) == ("H800", 2.0), "its own word"


def test_runs_of_earlier_versions_on_gpus_need_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = {"device": "cuda", "precision": "bf16", "compute.accelerator": ""}  # as good as none
    assert from_mlflow(monkeypatch, Mlflow(gpus)) == (
        [],
        "a #1 ran on GPUs, and its version did not tell MLflow on which: give --accelerator",
    )
    (found,), _ = from_mlflow(monkeypatch, Mlflow(gpus), gpu="H100")
    assert (found.device, found.measured) == ("H100", 2.0)


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (Mlflow({}, status="FAILED"), "a #1 is FAILED"),
        (Mlflow({"batch_stages": "[{}]"}), "its batch grew"),
        (Mlflow({"layout.world_size": "none"}), "layout.world_size"),
        (Mlflow({"layout.zero_stage": "[1"}), "its parameters are not those of a run"),
        (Mlflow({}, steps=4), "a #1 has 1 steps"),
        (Mlflow({}, steps=0), "a #1 has no train/cpu_seconds"),
    ],
)
def test_runs_that_cannot_be_used_are_said_and_left_out(
    monkeypatch: pytest.MonkeyPatch, client: Mlflow, words: str
) -> None:
    found, remarks = from_mlflow(monkeypatch, client)
    assert found == []
    assert words in remarks


def test_an_experiment_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished, "connect", lambda _: Mlflow())
    with pytest.raises(NotFound, match="no experiment 'other'; there are: mine"):
        finished.from_mlflow("sqlite:///x", "other", None, print)
