from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support.runs import dataset

from model.dataset import content_digest, read_manifest
from model.recipe import Anomalies
from orchestrator.errors import InvalidJob, OverBudget, UsageError
from orchestrator.launch.choose import LEARNING_RATES
from orchestrator.launch.resolve import Resolved, quantity_bytes, read_resolved, resolve
from orchestrator.plan.efficiency import efficiencies
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.search import search
from orchestrator.plan.workload import Cluster, Workload
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

Patch = dict[str, Any]
H100: Patch = {"compute": {"accelerator": "H100", "gpus": 16, "gpusPerNode": 8}}
H100S = Cluster(accelerator("H100"), 16, 8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return dataset(tmp_path / "data")


def _merge(base: Patch, patch: Patch) -> Patch:
    merged = dict(base)
    for key, value in patch.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "compute"
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def run(data: Path | str, patch: Patch | None = None, **arguments: Any) -> Resolved:  # noqa: ANN401
    spec = {
        "model": {"preset": "mini"},
        "data": {"source": str(data), "sequenceLength": 256},
        "training": {"tokens": 2_000_000, "globalBatchTokens": 8192},
        "compute": {"accelerator": "cpu", "workers": 2},
    }
    job = TrainingJob.model_validate({"metadata": {"name": "mini"}, "spec": _merge(spec, patch or {})})
    settings = Settings.load({"FATHOM_HOME": "/nowhere"})
    common: Patch = {
        "uid": "u1",
        "attempt": 1,
        "incarnation": "i1",
        "settings": settings,
        "storage_uri": "/nowhere/run",
    }
    return resolve(job, **(common | arguments))


def chosen(resolved: Resolved) -> dict[str, str]:
    return {choice.path: choice.value for choice in resolved.chosen}


def refusal(data: Path | str, patch: Patch) -> tuple[str, str]:
    with pytest.raises(InvalidJob) as caught:
        run(data, patch)
    [problem] = caught.value.problems
    return problem.path, problem.message


def test_the_datasets_of_these_tests_are_real(data: Path) -> None:
    manifest = read_manifest(data)
    assert manifest.digest == content_digest(manifest.tokenizer.sha256, manifest.shards())


def test_a_laptop_job(data: Path) -> None:
    resolved = run(data)
    recipe = resolved.recipe
    assert (resolved.workers, resolved.cpus_per_worker, resolved.gpus_per_worker) == (2, 1, 0)
    assert (recipe.device, recipe.precision, recipe.peak_flops) == ("cpu", "fp32", None)
    assert recipe.data == str(data)
    assert recipe.batch_tokens == 8192
    assert recipe.steps == 245  # ceil(2,000,000 / 8192)
    assert (recipe.layout.expert_parallel, recipe.layout.micro_batch, recipe.layout.accumulation) == (
        2,
        16,
        1,
    )
    assert recipe.schedule.warmup_steps == 8
    assert (recipe.schedule.decay_start_step, recipe.schedule.decay_end_step) == (164, 245)
    assert recipe.schedule.final_learning_rate == pytest.approx(recipe.schedule.learning_rate / 10)
    assert recipe.multi_token.switch_step == 164
    assert recipe.balance.bias_update_speed == 0.01
    assert recipe.balance.bias_stop_step == 238
    assert (recipe.checkpoint.uri, recipe.checkpoint.interval_seconds, recipe.checkpoint.keep) == (
        "/nowhere/run",
        120,
        3,
    )
    assert (recipe.eval_every_steps, recipe.eval_tokens) == (24, 20_000)
    assert (resolved.tracking.experiment, resolved.restarts_without_progress) == ("mini", 2)
    assert resolved.stall_seconds == 300
    assert recipe.anomalies == Anomalies()
    assert resolved.hard_deadline_seconds is None
    assert resolved.rate.units == 2


def test_a_cluster_job(data: Path) -> None:
    patch = H100 | {
        "model": {"preset": "v2-lite-16b"},
        "training": {"tokens": 10**12, "globalBatchTokens": 1 << 20},
        "data": {"sequenceLength": 4096},
        "checkpoint": {"uri": "s3://bucket/c"},
    }
    resolved = run(data, patch)
    recipe = resolved.recipe
    assert (resolved.workers, resolved.gpus_per_worker, resolved.rate.units, resolved.rate.unit) == (
        16,
        1,
        16,
        "gpu-hour",
    )
    assert (recipe.device, recipe.precision, recipe.peak_flops) == ("cuda", "bf16", 989.4e12)
    best = search(Workload(recipe.model, 4096, 1 << 20, "bf16", 10**12), H100S, efficiencies(), today=True)[0]
    layout = recipe.layout
    assert (layout.expert_parallel, layout.zero_stage) == (best.parallel.expert, best.parallel.zero_stage)
    assert (layout.micro_batch, layout.recompute) == (best.parallel.micro_batch, best.parallel.recompute)
    assert layout.world_size * layout.micro_batch * layout.accumulation * 4096 == 1 << 20
    reasons = {choice.path: choice.reason for choice in resolved.chosen}
    assert f"{best.memory.peak / 1e9:.1f} of 80 GB by the plan" in reasons["spec.parallelism.zeroStage"]
    assert (recipe.schedule.learning_rate, recipe.schedule.warmup_steps) == (4.2e-4, 2000)
    assert recipe.balance.bias_update_speed == 0.001
    assert recipe.checkpoint.uri == resolved.storage_uri == "s3://bucket/c"
    assert recipe.checkpoint.interval_seconds == 1200


def test_given_sizes_stay_and_the_rest_is_chosen_to_fit(data: Path) -> None:
    given = {"expert": 8, "zeroStage": 1, "microBatch": 1, "recompute": "full"}
    patch = H100 | {"model": {"preset": "v2-lite-16b"}, "training": {"globalBatchTokens": 1 << 20}}
    patch |= {"data": {"sequenceLength": 4096}, "parallelism": given}
    layout = run(data, _merge(patch, {"training": {"tokens": 10**9}})).recipe.layout
    assert (layout.expert_parallel, layout.zero_stage, layout.micro_batch, layout.recompute) == (8, 1, 1, "full")
    patch = _merge(
        patch, {"parallelism": {"expert": 1, "zeroStage": 0, "recompute": None}, "training": {"precision": "fp32"}}
    )
    path, message = refusal(data, _merge(patch, {"training": {"tokens": 10**9}}))
    assert path == "spec.compute.gpus"
    assert "there are 80.0 GB" in message


@pytest.mark.parametrize(("gpus", "words"), [(16, ["there are 80.0 GB", "use ", " H100"]), (8, ["80.0 GB"])])
def test_a_model_that_cannot_fit_is_refused_with_both_numbers(data: Path, gpus: int, words: list[str]) -> None:
    patch = {"model": {"preset": "v3-671b"}, "compute": {"accelerator": "H100", "gpus": gpus}}
    path, message = refusal(data, patch | {"training": {"tokens": 10**12, "globalBatchTokens": 1 << 22}})
    assert path == "spec.compute.gpus"
    assert all(word in message for word in words), message
    needed = float(message.split("needs ")[1].split(" GB")[0])
    assert needed > 80


def test_what_is_chosen_is_listed_and_what_is_given_is_not(data: Path) -> None:
    open_job = run(data, {"data": {"sequenceLength": None}, "training": {"globalBatchTokens": None}})
    listed = chosen(open_job)
    assert set(listed) == {
        "spec.checkpoint.uri", "spec.checkpoint.intervalMinutes", "spec.compute.cpuPerWorker",
        "spec.data.sequenceLength", "spec.parallelism.expert", "spec.parallelism.microBatch",
        "spec.parallelism.recompute", "spec.parallelism.zeroStage", "spec.tracking.experiment",
        "spec.training.precision", "spec.training.globalBatchTokens", "spec.training.balance.biasUpdateSpeed",
        "spec.training.evaluation.everySteps", "spec.training.evaluation.tokens",
        "spec.training.schedule.learningRate", "spec.training.schedule.finalLearningRate",
        "spec.training.schedule.warmupSteps", "spec.training.schedule.constantShare",
        "spec.training.schedule.decayShare",
    }  # fmt: skip
    assert listed["spec.training.globalBatchTokens"] == str(open_job.recipe.batch_tokens)
    assert all(choice.reason for choice in open_job.chosen)
    assert "spec.training.globalBatchTokens" not in chosen(run(data))
    given = {"schedule": {"learningRate": 0.01, "warmupSteps": 3, "constantShare": 0.5, "decayShare": 0.25}}
    schedule = run(data, {"training": given}).recipe.schedule
    assert (schedule.learning_rate, schedule.warmup_steps) == (0.01, 3)
    assert (schedule.decay_start_step, schedule.decay_end_step) == (122, 184)


def test_the_result_is_a_file_and_comes_back(data: Path) -> None:
    resolved = run(data, {"budget": {"limit": "1.00"}, "tracking": {"tags": {"a": "b"}}})
    assert Resolved.model_validate_json(resolved.model_dump_json()) == resolved
    assert run(data, {"budget": {"limit": "1.00"}, "tracking": {"tags": {"a": "b"}}}) == resolved


def test_relative_paths_become_absolute(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    resolved = run("data", {"checkpoint": {"uri": "c"}})
    assert resolved.recipe.data == str(data)
    assert resolved.storage_uri == str(data.parent / "c")


def test_learning_rates_follow_the_width_and_meet_the_published_ones(data: Path) -> None:
    for preset, published in (("v2-lite-16b", 4.2e-4), ("v3-671b", 2.2e-4)):
        assert LEARNING_RATES[preset] == published
        by_width = 2.2e-4 * (7168 / (2048 if preset == "v2-lite-16b" else 7168)) ** 0.5
        assert by_width == pytest.approx(published, rel=0.05)
    wide = run(data, {"model": {"overrides": {"hiddenSize": 448}}}).recipe.schedule
    assert wide.learning_rate == pytest.approx(8.8e-4)


@pytest.mark.parametrize("tokens", [600, 10_000, 10**6, 10**9, 10**13])
@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_chosen_batches_always_fit(data: Path, tokens: int, workers: int) -> None:
    compute = {"accelerator": "cpu", "workers": workers}
    wanted = max(tokens, 256 * workers)
    training = {"tokens": wanted, "globalBatchTokens": None}
    recipe = run(data, {"training": training, "compute": compute}).recipe
    assert recipe.total_tokens >= wanted
    assert recipe.batch_tokens <= max(1 << 20, 256 * workers)
    assert workers % recipe.layout.expert_parallel == 0


# Money


def test_the_budget_becomes_a_deadline(data: Path) -> None:
    rate = run(data).rate.per_hour
    hour = {"budget": {"limit": str(rate * 2)}}
    assert run(data, hour).hard_deadline_seconds == pytest.approx(7200)
    assert run(data, hour, spent=rate).hard_deadline_seconds == pytest.approx(3600)


def test_cores_are_what_a_cpu_job_pays_for(data: Path) -> None:
    one = run(data).rate
    four = run(data, {"compute": {"accelerator": "cpu", "workers": 2, "cpuPerWorker": 4}})
    assert four.rate.per_hour == 4 * one.per_hour
    assert four.cpus_per_worker == 4


def test_nothing_left(data: Path) -> None:
    with pytest.raises(OverBudget, match=r"limit is 1\.00 USD, 1 is spent"):
        run(data, {"budget": {"limit": "1.00"}}, spent=Decimal(1))


def test_another_currency_and_an_unknown_price(data: Path) -> None:
    path, message = refusal(data, {"budget": {"limit": "1", "currency": "EUR"}})
    assert path == "spec.budget.currency"
    assert "EUR" in message
    assert "USD" in message
    with pytest.raises(UsageError, match="barter"):
        run(data, {"compute": {"accelerator": "cpu", "workers": 2, "priceClass": "barter"}})


# What cannot run


def test_missing_data_names_the_command(tmp_path: Path) -> None:
    path, message = refusal(tmp_path / "none", {})
    assert path == "spec.data.source"
    assert message.endswith(f"run `fathom data prepare SOURCE {tmp_path / 'none'}`")


def test_damaged_data(data: Path) -> None:
    (data / "manifest.json").write_text("{")
    assert refusal(data, {})[0] == "spec.data.source"


def test_a_vocabulary_that_does_not_fit(tmp_path: Path) -> None:
    path, message = refusal(dataset(tmp_path / "big", vocabulary=5000), {})
    assert path == "spec.model.overrides.vocabSize"
    assert "4096" in message
    assert message.endswith("--set model.overrides.vocabSize=5000")
    run(tmp_path / "big", {"model": {"overrides": {"vocabSize": 5000}}})


@pytest.mark.parametrize(
    ("patch", "path", "words"),
    [
        ({"model": {"preset": "mimi"}}, "model.preset", ["mimi"]),
        ({"model": {"preset": "v3.2-671b"}}, "model.preset", ["indexer", "64"]),
        (
            {"model": {"overrides": {"expertsPerToken": 9}}},
            "model.overrides",
            ["expertsPerToken (9)", "8", "groupsPerToken=2"],
        ),
        ({"model": {"overrides": {"ropeHeadDim": 7}}}, "model.overrides", ["ropeHeadDim", "7"]),
        ({"model": {"overrides": {"denseLayers": 5}}}, "model.overrides", ["denseLayers (5)", "layers (4)"]),
        ({"data": {"sequenceLength": 2048}}, "data.sequenceLength", ["2048", "1024"]),
        ({"training": {"globalBatchTokens": 10_000}}, "training.globalBatchTokens", ["9728", "10240"]),
        ({"training": {"globalBatchTokens": 100}}, "training.globalBatchTokens", ["100", "512"]),
        (
            {"training": {"globalBatchTokens": 1024}, "parallelism": {"microBatch": 3}},
            "training.globalBatchTokens",
            ["1024", "microBatch 3", "1536"],
        ),
        ({"training": {"tokens": 511, "globalBatchTokens": None}}, "training.tokens", ["511", "512"]),
        (
            {
                "parallelism": {"expert": 3},
                "compute": {"accelerator": "cpu", "workers": 3},
                "training": {"globalBatchTokens": 768},
            },
            "parallelism.expert",
            ["3", "16"],
        ),
        ({"compute": {"accelerator": "H100", "gpus": 12}}, "compute.gpus", ["12", "8", "16"]),
        (
            {"compute": {"accelerator": "H100", "gpus": 2}, "parallelism": {"zeroStage": 0}},
            "parallelism.zeroStage",
            ["bf16", "FP32 master weights", "zeroStage 1"],
        ),
        ({"parallelism": {"pipeline": 2}}, "parallelism.pipeline", ["2 stages", "parallelism.expert", "zeroStage"]),
        ({"training": {"schedule": {"warmupSteps": 300}}}, "training.schedule.warmupSteps", ["300", "164"]),
        (
            {"training": {"schedule": {"finalLearningRate": 0.5}}},
            "training.schedule.finalLearningRate",
            ["0.5", "0.0015"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused(data: Path, patch: Patch, path: str, words: list[str]) -> None:
    found, message = refusal(data, patch)
    assert found == f"spec.{path}"
    for word in words:
        assert word in message


@pytest.mark.parametrize(("side", "tokens"), [("train", 257), ("heldout", 257)])
def test_data_shorter_than_one_sequence(tmp_path: Path, side: str, tokens: int) -> None:
    path, message = refusal(dataset(tmp_path / "short", **{side: tokens}), {})
    assert path == "spec.data.sequenceLength"
    assert "256 needs 258" in message
    assert "257" in message
    run(dataset(tmp_path / "enough", **{side: 258}))


def test_quantities() -> None:
    assert quantity_bytes("2Gi") == 2 * 2**30
    assert quantity_bytes("500M") == 500 * 10**6
    assert quantity_bytes("1024") == 1024


def test_memory_is_handed_on(data: Path) -> None:
    compute = {"accelerator": "cpu", "workers": 2, "memoryPerWorker": "3Mi"}
    assert run(data, {"compute": compute}).memory_bytes_per_worker == 3 * 2**20


def test_resolving_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "ray", "mlflow", "deepspeed", "transformers"}
    code = f"import sys, orchestrator.launch.resolve; print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_tokenizer_that_is_not_the_datasets_is_refused(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    path, message = refusal(data, {"data": {"tokenizer": str(other)}})
    assert path == "spec.data.tokenizer"
    assert "SHA-256 44136fa355b3" in message
    assert "made with 222222222222" in message
    path, message = refusal(data, {"data": {"tokenizer": str(tmp_path / "none.json")}})
    assert path == "spec.data.tokenizer"
    assert "cannot read" in message


def test_a_tokenizer_that_never_ends_is_not_read(data: Path) -> None:
    path, message = refusal(data, {"data": {"tokenizer": "/dev/full"}})  # its zeros have no end
    assert path == "spec.data.tokenizer"
    assert "is a device or pipe, not a file" in message


def test_pretraining_starts_before_the_context_extension(data: Path) -> None:
    resolved = run(data, {"model": {"preset": "v2-lite-16b"}})
    assert resolved.recipe.model.yarn is None
    assert resolved.recipe.model.max_position_embeddings == 4096
    assert chosen(resolved)["spec.model.overrides.maxPositions"] == "4096"


# Attempts after the first


def layout(resolved: Resolved) -> tuple[int, int, int, int, int]:
    chosen = resolved.recipe.layout
    return (
        chosen.world_size, chosen.expert_parallel, chosen.zero_stage, chosen.micro_batch, chosen.accumulation,
    )  # fmt: skip


@pytest.mark.parametrize("given", [8192, None], ids=["given", "chosen"])
@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({}, (2, 2, 1, 16, 1)),
        ({"compute": {"accelerator": "cpu", "workers": 1}}, (1, 1, 1, 32, 1)),
        ({"compute": {"accelerator": "cpu", "workers": 4}}, (4, 4, 1, 8, 1)),
        ({"compute": {"accelerator": "cpu", "workers": 8}, "parallelism": {"expert": 2}}, (8, 2, 1, 4, 1)),
        ({"parallelism": {"expert": 1, "zeroStage": 3}}, (2, 1, 3, 16, 1)),
        ({"parallelism": {"microBatch": 4}}, (2, 2, 1, 4, 4)),
        ({"parallelism": {"pipeline": 1, "recompute": "full"}}, (2, 2, 1, 16, 1)),
    ],
)
def test_a_later_attempt_has_another_layout_and_the_same_mathematics(
    data: Path, given: int | None, patch: Patch, expected: tuple[int, ...]
) -> None:
    training = {"training": {"tokens": 20_000_000, "globalBatchTokens": given}}
    first = run(data, training)
    assert first.recipe.batch_tokens == 8192, "so that both cases expect the same"
    later = run(data, _merge(training, patch), earlier=first, attempt=2)
    assert layout(later) == expected
    assert later.recipe.model_copy(update={"layout": first.recipe.layout}) == first.recipe
    assert later.recipe.batch_tokens == first.recipe.batch_tokens
    assert later.workers == later.recipe.layout.world_size


def test_a_later_attempt_shows_all_that_was_ever_chosen(data: Path) -> None:
    open_job: Patch = {"data": {"sequenceLength": None}, "training": {"globalBatchTokens": None}}
    first = run(data, open_job)
    assert sorted(chosen(run(data, open_job, earlier=first, attempt=2)).items()) == sorted(chosen(first).items())
    given = _merge(open_job, {"parallelism": {"microBatch": 1}})
    later = run(data, given, earlier=first, attempt=2)
    assert set(chosen(first)) - set(chosen(later)) == {"spec.parallelism.microBatch"}
    third = run(data, given, earlier=later, attempt=3)
    assert third.chosen == later.chosen, "they do not pile up"


def test_what_may_change_does(data: Path) -> None:
    first = run(data)
    patch = {"checkpoint": {"intervalMinutes": 7.0, "keep": 9}, "retry": {"stallMinutes": 1.5}}
    later = run(data, patch, earlier=first, attempt=2)
    assert (later.recipe.checkpoint.interval_seconds, later.recipe.checkpoint.keep) == (420, 9)
    assert later.stall_seconds == 90


@pytest.mark.parametrize(
    ("patch", "path", "words"),
    [
        ({"compute": {"accelerator": "cpu", "workers": 3}}, "compute.workers", ["3 workers", "32 seq", "2 or 4"]),
        ({"compute": {"accelerator": "cpu", "workers": 64}}, "compute.workers", ["64 workers", "use 32"]),
        ({"parallelism": {"microBatch": 3}}, "parallelism.microBatch", ["3 does", "16 sequences", "2 or 4"]),
        ({"parallelism": {"pipeline": 4}}, "parallelism.pipeline", ["4 stages"]),
    ],
)
def test_a_layout_that_cannot_share_the_batch_is_refused(data: Path, patch: Patch, path: str, words: list[str]) -> None:
    first = run(data)
    with pytest.raises(InvalidJob) as caught:
        run(data, patch, earlier=first, attempt=2)
    [problem] = caught.value.problems
    assert problem.path == f"spec.{path}"
    for word in words:
        assert word in problem.message


def test_gpus_are_named_where_they_are_the_workers(data: Path) -> None:
    model: Patch = {"training": {"globalBatchTokens": 16 * 256}}
    first = run(data, H100 | model)
    with pytest.raises(InvalidJob, match=r"compute\.gpus: 32 workers cannot share the 16 sequences"):
        run(data, _merge(H100 | model, {"compute": {"accelerator": "H100", "gpus": 32}}), earlier=first, attempt=2)


def test_relative_paths_stay_where_the_first_attempt_found_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    first = run("data", {"checkpoint": {"uri": "c"}})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    later = run("data", {"checkpoint": {"uri": "c"}}, earlier=first, attempt=2)
    assert (later.recipe.data, later.storage_uri) == (first.recipe.data, first.storage_uri)
    assert later.recipe.checkpoint.uri == first.recipe.checkpoint.uri
    moved = run("data", earlier=run(str(data)), attempt=2, storage_uri="/moved/run")
    assert moved.storage_uri == "/moved/run", "storage in the run's own folder moves with it"


def test_one_job_is_paid_in_one_currency(data: Path) -> None:
    first = run(data)
    paid = first.model_copy(update={"rate": first.rate.model_copy(update={"currency": "EUR"})})
    with pytest.raises(UsageError, match=r"attempt 1 was paid in EUR.* in USD"):
        run(data, earlier=paid, attempt=2)


@pytest.mark.parametrize("window", [4, 16, 128, 1000])
def test_judging_begins_before_the_window_is_full(data: Path, window: int) -> None:
    found = run(data, {"training": {"anomalies": {"window": window, "maxRollbacks": 0}}}).recipe.anomalies
    assert (found.window, found.minimum, found.max_rollbacks) == (window, min(32, window), 0)


@pytest.mark.parametrize("text", ["{", "{}", b"\xff"])
def test_a_damaged_configuration_is_named(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "resolved-1.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=r"resolved-1\.json cannot be read"):
        read_resolved(path)
