from pathlib import Path

import pytest
from support.runs import dataset, tiny_job

from model.loop import recipe_digest
from orchestrator.controller.change import CHANGEABLE, change, resolve_next
from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.cost.timeline import Held
from orchestrator.errors import Conflict, InvalidJob, OverBudget, UsageError
from orchestrator.launch import local
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

SETTINGS = Settings.load({"FATHOM_HOME": "/nowhere"})


def begun(root: Path, job: TrainingJob | None = None) -> Record:
    """A run whose first attempt held its devices for an hour."""
    data = dataset(root / "data")
    record = Record.create(root, job or tiny_job(str(data)))
    first = resolve_next(record, History(record), SETTINGS, 1)
    record.folder.resolved(1).write_text(first.model_dump_json())
    record.save_held([Held(1, 0.0, 3600.0)])
    return record


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return begun(tmp_path)


def price(record: Record) -> float:
    """Of the hour that was held."""
    return float(History(record).paid())


@pytest.mark.parametrize(
    "assignment",
    [
        "budget.limit=100.00", "retry.maxAttempts=9", "retry.stopAfterAttemptsWithoutProgress=4",
        "retry.stallMinutes=0.5", "tracking.tags.why=again", "checkpoint.intervalMinutes=3", "checkpoint.keep=9",
        "parallelism.expert=1", "parallelism.zeroStage=2", "parallelism.microBatch=1", "parallelism.recompute=full",
        "compute.workers=4", "compute.cpuPerWorker=2", "compute.memoryPerWorker=2Gi",
    ],
)  # fmt: skip
def test_what_may_change(record: Record, assignment: str) -> None:
    changed = change(record, [assignment], SETTINGS)
    assert changed.job != record.job
    assert Record.open(record.folder.root) == changed
    assert changed.uid == record.uid
    later = resolve_next(changed, History(changed), SETTINGS, 2)
    first = resolve_next(record, History(record), SETTINGS, 1)
    same = {"layout": first.recipe.layout, "checkpoint": first.recipe.checkpoint}
    assert later.recipe.model_copy(update=same) == first.recipe


def test_a_run_may_go_on_in_another_precision(record: Record) -> None:
    first = resolve_next(record, History(record), SETTINGS, 1).recipe
    assert (first.precision, first.optimizer.moments_precision) == ("fp32", "fp32")
    changed = change(record, ["training.precision=fp8", "training.optimizer.momentsPrecision=bf16"], SETTINGS)
    later = resolve_next(changed, History(changed), SETTINGS, 2)
    assert (later.recipe.precision, later.recipe.optimizer.moments_precision) == ("fp8", "bf16")
    same = {"precision": first.precision, "optimizer": first.optimizer, "checkpoint": first.checkpoint}
    assert later.recipe.model_copy(update=same) == first
    assert recipe_digest(later.recipe) == recipe_digest(first), "the checkpoint is of the same run"
    assert [c.path for c in later.chosen if "precision" in c.path.lower()] == [], "given, not chosen"


@pytest.mark.parametrize(
    "assignment",
    [
        "training.tokens=200000", "training.seed=2", "training.globalBatchTokens=512", "model.preset=small",
        "model.overrides.layers=2", "data.source=elsewhere", "data.sequenceLength=64", "tracking.experiment=x",
        "checkpoint.uri=elsewhere", "metadata.name=other", "metadata.namespace=other", "suspend=true",
        "compute.image=x", "training.anomalies.action=warn", "training.optimizer.beta1=0.8",
    ],
)  # fmt: skip
def test_what_must_stay(record: Record, assignment: str) -> None:
    field = assignment.partition("=")[0]
    with pytest.raises(UsageError, match=rf"^{field} cannot change .*budget\.limit, retry\.\*"):
        change(record, [assignment], SETTINGS)
    assert Record.open(record.folder.root) == record


def test_a_value_that_stays_the_same_is_no_change(record: Record) -> None:
    assert change(record, ["training.tokens=100000", "model.preset=mini"], SETTINGS).job == record.job


def test_each_field_of_the_list_exists() -> None:
    known = TrainingJob.model_json_schema()["$defs"]
    parts = {"budget": "Budget", "retry": "Retry", "tracking": "Tracking", "checkpoint": "Checkpoint"}
    parts |= {"parallelism": "Parallelism", "compute": "Compute", "training": "Training"}
    for path in CHANGEABLE:
        part, field, *_ = path.split(".")
        assert field == "*" or field in known[parts[part]]["properties"], path


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("retry.maxAttempts=many", ["spec.retry.maxAttempts"]),
        ("retry.maxAttempt=5", ["maxAttempts"]),
        ("compute.workers=3", ["spec.compute.workers", "3 workers", "8 sequences"]),
        ("parallelism.pipeline=2", ["spec.parallelism.pipeline"]),
        ("parallelism.microBatch=3", ["spec.parallelism.microBatch", "4 sequences"]),
        ("budget.currency=EUR", ["spec.budget.limit"]),
    ],
)
def test_a_wrong_value_leaves_the_job_as_it_was(record: Record, assignment: str, words: list[str]) -> None:
    with pytest.raises(InvalidJob) as caught:
        change(record, [assignment], SETTINGS)
    for word in words:
        assert word in str(caught.value)
    assert Record.open(record.folder.root) == record


def test_a_budget_below_what_is_spent_names_both(record: Record) -> None:
    spent = price(record)
    assert spent > 0.01
    with pytest.raises(UsageError, match=rf"limit=0\.01 is below the {spent:.6f} USD that are spent"):
        change(record, ["budget.limit=0.01"], SETTINGS)
    with pytest.raises(OverBudget, match="raise the limit"):
        change(record, [f"budget.limit={spent:.6f}"], SETTINGS)
    enough = change(record, [f"budget.limit={2 * spent:.6f}"], SETTINGS)
    resolved = resolve_next(enough, History(enough), SETTINGS, 2)
    assert resolved.hard_deadline_seconds == pytest.approx(3600)


def test_a_limit_can_be_raised_and_its_currency_cannot_change(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    record = change(begun(tmp_path / "runs"), ["budget.limit=5.00"], SETTINGS)
    assert change(record, ["budget.limit=50"], SETTINGS).job.spec.budget is not None
    with pytest.raises(UsageError, match=r"budget\.currency cannot change"):
        change(record, ["budget.currency=EUR"], SETTINGS)


def test_more_workers_cost_more_from_then_on_and_not_before(record: Record) -> None:
    spent = price(record)
    wider = change(record, ["compute.workers=4"], SETTINGS)
    second = resolve_next(wider, History(wider), SETTINGS, 2)
    wider.folder.resolved(2).write_text(second.model_dump_json())
    wider.save_held([Held(1, 0.0, 3600.0), Held(2, 4000.0, 7600.0)])
    assert float(History(wider).paid()) == pytest.approx(3 * spent)
    assert History(wider).ledger(second).totals.cost == History(wider).paid()


def test_nothing_changes_while_a_driver_lives(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE_SECONDS", 0.02)
    with local.hold_lock(record.folder.lock), pytest.raises(Conflict, match="stop it first"):
        change(record, ["retry.maxAttempts=9"], SETTINGS)
    assert Record.open(record.folder.root) == record
