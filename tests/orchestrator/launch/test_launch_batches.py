"""Growing batches, mixtures and tasks of a job become parts of its recipe, or are refused by field and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tokens import write_tokens

from model.ramp import BatchStage
from model.recipe import SourceWeight
from orchestrator.errors import InvalidJob
from orchestrator.launch.resolve import Resolved, resolve
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

Patch = dict[str, Any]


def data(folder: Path, weights: dict[str, float] | None = None, web: int = 50) -> Path:
    sides = {"code": (list(range(1, 200)) * 50, [1, 2] * 200), "web": (list(range(1, 100)) * web, [1, 2] * 200)}
    manifest = write_tokens(folder, sides, shard_tokens=100_000, weights=weights, end_of_text=7)
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def job(folder: Path, **patch: Patch) -> TrainingJob:
    spec: Patch = {
        "model": {"preset": "mini"},
        "data": {"source": str(folder), "sequenceLength": 32} | patch.get("data", {}),
        "training": {"tokens": 640_000, "globalBatchTokens": 3200} | patch.get("training", {}),
        "parallelism": {"microBatch": 5} | patch.get("parallelism", {}),
        "compute": {"accelerator": "cpu", "workers": 2} | patch.get("compute", {}),
    }
    return TrainingJob.model_validate({"metadata": {"name": "mini"}, "spec": spec})


def run(folder: Path, earlier: Resolved | None = None, **patch: Patch) -> Resolved:
    return resolve(
        job(folder, **patch),
        uid="u",
        attempt=1 if earlier is None else 2,
        incarnation="i",
        settings=Settings.load({"FATHOM_HOME": "/nowhere"}),
        storage_uri="/nowhere/run",
        earlier=earlier,
    )


def refusal(folder: Path, earlier: Resolved | None = None, **patch: Patch) -> str:
    with pytest.raises(InvalidJob) as caught:
        run(folder, earlier, **patch)
    [problem] = caught.value.problems
    return str(problem)


def test_without_a_ramp_all_batches_are_the_same(tmp_path: Path) -> None:
    recipe = run(data(tmp_path)).recipe
    assert recipe.batch_stages == ()
    assert (recipe.steps, recipe.total_tokens) == (200, 640_000)
    assert (recipe.batches.at(0), recipe.batches.at(199)) == (100, 100)


def test_a_ramp_in_the_papers_proportions(tmp_path: Path) -> None:
    resolved = run(data(tmp_path), training={"batchRamp": {}})
    recipe = resolved.recipe
    assert recipe.batch_stages[0] == BatchStage(first_step=0, sequences=20)
    assert recipe.batch_stages[-1].sequences == 100 == recipe.batch_sequences
    reached = recipe.batches.samples_before(recipe.batch_stages[-1].first_step)
    assert reached * 32 == pytest.approx(0.0317 * 640_000, rel=0.1)
    assert 640_000 <= recipe.total_tokens < 640_000 + 3200
    chosen = {choice.path: choice.value for choice in resolved.chosen}
    assert chosen["spec.training.batchRamp.startTokens"] == "640"


def test_a_ramp_of_ones_own(tmp_path: Path) -> None:
    recipe = run(data(tmp_path), training={"batchRamp": {"startTokens": 1600, "share": 0.5}}).recipe
    assert [stage.sequences for stage in recipe.batch_stages] == [50, 60, 70, 80, 90, 100]
    assert recipe.batches.samples_before(recipe.batch_stages[-1].first_step) * 32 == pytest.approx(320_000, rel=0.02)


@pytest.mark.parametrize("tokens", [1601, 100, 3520])
def test_a_start_that_does_not_fit_is_refused_with_one_that_does(tmp_path: Path, tokens: int) -> None:
    message = refusal(data(tmp_path), training={"batchRamp": {"startTokens": tokens}})
    assert message.startswith(f"spec.training.batchRamp.startTokens: {tokens} is no multiple of 320")
    fits = int(message.rpartition("use ")[2])
    assert run(data(tmp_path), training={"batchRamp": {"startTokens": fits}}).recipe.batches.at(0) == fits // 32


def test_a_resume_on_other_workers_keeps_every_batch(tmp_path: Path) -> None:
    ramp = {"batchRamp": {"startTokens": 1600, "share": 0.5}}
    first = run(data(tmp_path), training=ramp)
    other = {"compute": {"workers": 5}, "parallelism": {"microBatch": 2}}
    again = run(data(tmp_path), first, training=ramp, **other)
    assert again.recipe.batch_stages == first.recipe.batch_stages
    assert (again.recipe.layout.accumulation, again.recipe.batch_sequences) == (10, 100)
    message = refusal(data(tmp_path), first, training=ramp, compute={"workers": 4})
    assert "4 workers cannot share the 10 sequences" in message


def test_weights_of_the_dataset_or_of_the_job(tmp_path: Path) -> None:
    plain, weighted = data(tmp_path / "a"), data(tmp_path / "b", weights={"code": 0.7, "web": 0.3})
    assert run(plain).recipe.mixture == ()
    own = (SourceWeight(source="code", weight=0.7), SourceWeight(source="web", weight=0.3))
    assert run(weighted).recipe.mixture == own, "in the recipe, so that a resume notices other weights"
    given = [{"source": "web", "weight": 2.0}, {"source": "code", "weight": 1.0}]
    for folder in (plain, weighted):
        mixture = run(folder, data={"mixture": given}).recipe.mixture
        assert mixture == (SourceWeight(source="code", weight=1.0), SourceWeight(source="web", weight=2.0))


@pytest.mark.parametrize("names", [["code"], ["code", "code"], ["code", "web", "books"], ["code", "book"]])
def test_a_mixture_of_other_sources_is_refused(tmp_path: Path, names: list[str]) -> None:
    given = [{"source": name, "weight": 1.0} for name in names]
    message = refusal(data(tmp_path), data={"mixture": given})
    assert message == (
        f"spec.data.mixture: weighs {', '.join(names)}, but the dataset has code, web: give each of them one weight"
    )


def test_each_source_needs_a_sequence(tmp_path: Path) -> None:
    message = refusal(data(tmp_path, web=2), data={"sequenceLength": 320})
    assert "320 needs 322 tokens" in message
    assert "the training data of web has 198" in message


def test_isolated_documents_know_where_documents_end(tmp_path: Path) -> None:
    recipe = run(data(tmp_path), data={"isolateDocuments": True}).recipe
    assert (recipe.isolate_documents, recipe.end_of_text) == (True, 7)


def test_tasks_are_read_before_anything_starts(tmp_path: Path) -> None:
    folder, file = data(tmp_path / "data"), tmp_path / "sums.jsonl"
    file.write_text(json.dumps({"question": "1+1?", "choices": ["1", "2"], "answer": 1}) + "\n")
    evaluation = {"evaluation": {"tasks": [str(file)]}}
    assert run(folder, training=evaluation).recipe.eval_tasks == (str(file),)
    file.write_text("{")
    assert "sums.jsonl" in refusal(folder, training=evaluation)
    file.unlink()
    assert "spec.training.evaluation.tasks" in refusal(folder, training=evaluation)
