"""The training loop with an engine of its own kind: whole runs, stopping and going on, refusals, two processes.

Checkpoints and their thread are in `test_loop_checkpoints`, anomalies in `test_loop_anomalies`.
"""

import json
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support.plain_loop import (
    Bench,
    Data,
    Inline,
    Recorder,
    assert_same_weights,
    one_thread,
    run_ranks,
    weights,
    write_data,
)

from model.anomaly import LossHistory
from model.checkpoint import CheckpointError, Fenced
from model.loop import Loop, RolledBack, recipe_digest
from model.ramp import ramp
from model.recipe import Anomalies, Checkpointing, Layout, SourceWeight
from model.schedule import learning_rate


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def bench(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process_group: None) -> Bench:
    monkeypatch.setattr("model.saving.ThreadPoolExecutor", Inline)
    return Bench(data, tmp_path / "job")


# ------------------------------------------------------------------- a whole run
def test_a_run_from_start_to_end(bench: Bench) -> None:
    reporter = Recorder()
    loop = bench.loop(reporter)
    assert loop.run() == 8
    assert reporter.starts == [(0, 0, 1, None)]
    assert reporter.arithmetic == "fp32: by torch alone"
    assert list(reporter.steps) == list(range(1, 9))
    assert reporter.tokens == [step * 8 * 16 for step in range(1, 9)]
    always = {"train/loss", "train/mtp_loss", "train/mtp_accuracy", "train/aux_loss", "train/grad_norm"}
    always |= {"train/learning_rate", "train/tokens_per_second", "train/gflops_per_second", "train/step_seconds"}
    always |= {"moe/cv", "moe/max_violation", "moe/dead_share", "memory/peak_bytes", "train/cpu_seconds"}
    scores = {"eval/loss", "eval/bits_per_byte", "eval/mtp_accuracy"}
    for step, metrics in reporter.steps.items():
        assert metrics.keys() == always | (scores if step in (4, 8) else set()), step
        assert metrics["train/learning_rate"] == learning_rate(step - 1, loop.recipe.schedule)
    assert reporter.steps[8]["eval/loss"] < reporter.steps[4]["eval/loss"]
    assert bench.published() == [8]
    (step, uri, size), files = reporter.committed[0], bench.storage / "checkpoints/step-8/1-a-1"
    assert (step, uri) == (8, f"{bench.storage}/checkpoints/step-8")
    assert size == sum(p.stat().st_size for p in files.iterdir())
    assert loop.load_ME is not None  # every token visits two experts in each of two layers
    assert loop.load_ME.sum(1).tolist() == [8 * 128 * 2] * 2
    load = json.loads(reporter.artifacts.pop("expert_load.json"))
    assert load == {"step": 8, "layers": ["0", "mtp.0"], "load": loop.load_ME.tolist()}
    assert (reporter.warnings, reporter.anomalies, reporter.artifacts) == ([], [], {})


def test_cpu_seconds_are_of_the_passes_and_of_the_update_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(time, "process_time", lambda: float(next(clock)))  # looked at three times in each step
    bench.loop(reporter := Recorder()).run()
    assert [metrics["train/cpu_seconds"] for metrics in reporter.steps.values()] == [1.0] + [2.0] * 7


def test_batches_that_grow_are_the_same_run_over_a_resume(bench: Bench) -> None:
    stages = ramp(4, 12, 16, 4)
    assert [stage.first_step for stage in stages] == [0, 2, 3]
    layout = Layout(world_size=1, expert_parallel=1, micro_batch=4, accumulation=3)
    recipe = bench.recipe(batch_stages=stages, layout=layout)
    whole, parts = Recorder(), Recorder(stop_at=2)
    straight = bench.loop(whole, recipe)
    assert straight.run() == 8
    assert whole.tokens[:4] == [16 * 4, 16 * 8, 16 * 16, 16 * 28]
    assert recipe.total_tokens == whole.tokens[-1] == (2 * 4 + 8 + 5 * 12) * 16
    _, losses = bench.written_out(recipe, list(range(8)))
    assert [metrics["train/loss"] for metrics in whole.steps.values()] == pytest.approx(losses)
    bench.storage = bench.storage.with_name("again")
    recipe = bench.recipe(batch_stages=stages, layout=layout)
    bench.loop(parts, recipe).run()
    rest = Recorder()
    again = bench.loop(rest, recipe, attempt=2)
    assert again.run() == 8
    assert {step: rest.samples[step] for step in range(3, 9)} == {step: whole.samples[step] for step in range(3, 9)}
    assert_same_weights(again, straight)


def test_tasks_are_scored_with_every_evaluation_and_told_one_by_one(bench: Bench) -> None:
    reporter, alive = Recorder(), []
    loop = bench.loop(reporter)
    loop.alive = lambda: alive.append(reporter.last)
    loop.tasks = (lambda: {"eval/one/acc": 0.5}, lambda: {"eval/two/acc": 0.25})
    loop.run()
    assert {step for step, metrics in reporter.steps.items() if "eval/one/acc" in metrics} == {4, 8}
    assert reporter.steps[8]["eval/two/acc"] == 0.25
    assert "train/loss" in reporter.steps[8]
    assert len(alive) == 8 + 2 * 2


def test_the_load_of_experts_is_that_of_the_whole_run(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=5)).run()
    loop = bench.loop(Recorder(), attempt=2)
    loop.run()
    assert loop.load_ME is not None
    assert loop.load_ME.sum(1).tolist() == [8 * 128 * 2] * 2


def test_every_step_begins_with_a_sign_of_life(bench: Bench) -> None:
    reporter, seen = Recorder(), []
    loop = bench.loop(reporter)
    loop.alive = lambda: seen.append(reporter.last)
    loop.run()
    assert seen == list(range(8))


def test_the_last_step_is_evaluated_wherever_it_falls(bench: Bench) -> None:
    reporter = Recorder()
    bench.loop(reporter, bench.recipe(eval_every_steps=5)).run()
    assert [step for step, m in reporter.steps.items() if "eval/loss" in m] == [5, 8]


def test_training_equals_the_steps_written_out(bench: Bench) -> None:
    reporter = Recorder()
    loop = bench.loop(reporter)
    loop.run()
    recipe = loop.recipe
    assert recipe.multi_token.switch_step < recipe.steps > recipe.balance.bias_stop_step  # both are crossed
    engine, losses = bench.written_out(recipe, list(range(8)))
    assert [m["train/loss"] for m in reporter.steps.values()] == pytest.approx(losses, rel=1e-6)
    assert_same_weights(loop, engine)


def test_a_dense_model_reports_no_balance(bench: Bench) -> None:
    reporter = Recorder()
    dense = bench.recipe().model.replace(first_k_dense_replace=1, num_nextn_predict_layers=0)
    bench.loop(reporter, bench.recipe(model=dense)).run()
    assert not [name for name in reporter.steps[8] if name.startswith("moe/")]
    assert "eval/mtp_accuracy" not in reporter.steps[8]


@pytest.mark.parametrize(("micro_batch", "accumulation"), [(8, 1), (4, 2), (1, 8)])
def test_the_number_of_its_samples_is_that_of_the_whole_step(bench: Bench, micro_batch: int, accumulation: int) -> None:
    """However the step's sequences are divided: the same sequences, the same number."""
    layout = Layout(world_size=1, expert_parallel=1, micro_batch=micro_batch, accumulation=accumulation)
    reporter, recipe = Recorder(), bench.recipe(layout=layout, steps=3)
    bench.loop(reporter, recipe).run()
    assert reporter.samples == {step: bench.samples(bench.recipe(), step - 1) for step in (1, 2, 3)}
    assert len(set(reporter.samples.values())) == 3


# ------------------------------------------------------------------- stopping and going on
def test_an_order_to_stop_saves_and_ends(bench: Bench) -> None:
    reporter = Recorder(stop_at=3)
    assert bench.loop(reporter).run() == 3
    assert list(reporter.steps) == [1, 2, 3]
    assert reporter.saved == bench.published() == [3]


def test_an_order_to_stop_before_the_first_step_saves_nothing(bench: Bench) -> None:
    reporter = Recorder(stop_at=0)
    assert bench.loop(reporter).run() == 0
    assert reporter.steps == {}
    assert bench.published() == []


@pytest.mark.parametrize("stops", [[3], [1, 2, 7], [5, 5]])
def test_going_on_is_bitwise_the_same_run(bench: Bench, stops: list[int], tmp_path: Path) -> None:
    """Weights, losses, samples, and the losses by which later steps are judged."""
    expected, elsewhere = Recorder(), Bench(bench.data, tmp_path / "straight")
    straight = elsewhere.loop(expected)
    straight.run()
    done = 0
    for attempt, stop in enumerate([*stops, None], start=1):
        reporter = Recorder(stop_at=stop)
        loop = bench.loop(reporter, attempt=attempt)
        assert loop.run() == (stop or 8)
        where = f"{bench.storage}/checkpoints/step-{done}" if done else None
        assert reporter.starts == [(done, done * 128, 1, where)]
        assert list(reporter.steps) == list(range(done + 1, (stop or 8) + 1))
        for step, metrics in reporter.steps.items():
            assert metrics["train/loss"] == expected.steps[step]["train/loss"]
            assert metrics["train/grad_norm"] == expected.steps[step]["train/grad_norm"]
            assert reporter.samples[step] == expected.samples[step]
        if stop == done:
            assert reporter.committed == []  # nothing new to save
        done = stop or 8
    assert_same_weights(loop, straight)
    biases = [tensor for name, tensor in weights(loop).items() if name.endswith("e_score_correction_bias")]
    assert all(bias.abs().max() > 0 for bias in biases), "a zero bias could not show that it was restored"
    losses = [metrics["train/loss"] for metrics in expected.steps.values()]
    assert (
        bench.saved(8)["state"]
        == elsewhere.saved(8)["state"]
        == {
            "step": 8,
            "losses": losses,
            "load": loop.load_ME.tolist() if loop.load_ME is not None else None,
        }
    )


def test_a_resumed_run_keeps_only_as_many_losses_as_it_judges_by(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=6)).run()
    narrow = bench.recipe(anomalies=Anomalies(window=4, minimum=4))
    loop = bench.loop(reporter := Recorder(), narrow, attempt=2)
    before: list[float] = bench.saved(6)["state"]["losses"]
    loop.run()
    assert bench.saved(8)["state"]["losses"] == [*before[-2:], *(m["train/loss"] for m in reporter.steps.values())]
    assert LossHistory(narrow.anomalies, before).values() == before[-4:]


def test_a_finished_run_does_nothing_more(bench: Bench) -> None:
    bench.loop(Recorder()).run()
    reporter = Recorder()
    assert bench.loop(reporter, attempt=2).run() == 8
    assert reporter.steps == {}
    assert reporter.committed == []
    assert reporter.starts[0][0] == 8


def test_another_split_of_the_same_batch_goes_on(bench: Bench) -> None:
    straight = Recorder()
    Bench(bench.data, bench.storage / "straight").loop(straight).run()
    bench.loop(Recorder(stop_at=3)).run()
    other = Layout(world_size=1, expert_parallel=1, micro_batch=2, accumulation=4, recompute="full")
    reporter = Recorder()
    assert bench.loop(reporter, bench.recipe(layout=other), attempt=2).run() == 8
    assert reporter.starts[0][0] == 3
    for step, metrics in reporter.steps.items():
        assert metrics["train/loss"] == pytest.approx(straight.steps[step]["train/loss"], rel=1e-4)
        assert reporter.samples[step] == straight.samples[step]


# ------------------------------------------------------------------- refusals
def test_a_topology_that_cannot_be_converted_is_refused_with_both(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=3)).run()
    sharded = Layout(world_size=1, expert_parallel=1, zero_stage=3, micro_batch=4, accumulation=2)
    reporter = Recorder()
    with pytest.raises(CheckpointError, match=r"written by 1 process, ZeRO-1, fp32, .* has 1 process, ZeRO-3, fp32"):
        bench.loop(reporter, bench.recipe(layout=sharded), attempt=2).run()
    assert reporter.starts == []
    assert bench.published() == [3]


def test_other_data_and_another_recipe_are_refused_with_both_digests(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=3)).run()
    with pytest.raises(CheckpointError, match=r"step-3 was written with other data \(digest d, now e\)"):
        bench.loop(Recorder(), attempt=2, digest="e").run()
    recipe, other = bench.recipe(), bench.recipe(seed=2)
    digests = rf"\(digest {recipe_digest(recipe)[:12]}, now {recipe_digest(other)[:12]}\)"
    with pytest.raises(CheckpointError, match=rf"another recipe {digests}: start a new job"):
        bench.loop(Recorder(), other, attempt=2).run()
    assert bench.published() == [3]


def test_what_the_digest_of_a_recipe_covers(bench: Bench) -> None:
    recipe = bench.recipe()
    same = {
        "checkpoint": Checkpointing(uri="moved", interval_seconds=1, keep=9),
        "data": "moved",
        "eval_every_steps": 1,
        "eval_tokens": 64,
        "eval_tasks": ("tasks.jsonl",),
        "sample_tokens": 5,
        "peak_flops": 1e12,
        "anomalies": Anomalies(action="warn", threshold=3),
        "precision": "fp8",
        "init_from": "weights",
    }
    assert recipe_digest(bench.recipe(**same)) == recipe_digest(recipe)
    moments = recipe.optimizer.model_copy(update={"moments_precision": "bf16"})
    assert recipe_digest(bench.recipe(optimizer=moments)) == recipe_digest(recipe)
    ways = [(2, 2, 2, 2, 3), (8, 4, 1, 1, 0), (1, 1, 8, 1, 2)]
    for world, expert, micro_batch, accumulation, stage in ways:
        layout = Layout(
            world_size=world,
            expert_parallel=expert,
            zero_stage=stage,  # type: ignore[arg-type]
            micro_batch=micro_batch,
            accumulation=accumulation,
            recompute="full",
        )
        assert recipe_digest(bench.recipe(layout=layout)) == recipe_digest(recipe), layout
    different = {
        "model": recipe.model.replace(rms_norm_eps=1e-5),
        "seed": 9,
        "sequence_length": 8,
        "steps": 9,
        "schedule": recipe.schedule.model_copy(update={"learning_rate": 0.02}),
        "optimizer": recipe.optimizer.model_copy(update={"beta2": 0.9}),
        "balance": recipe.balance.model_copy(update={"aux_loss_alpha": 0.0}),
        "multi_token": recipe.multi_token.model_copy(update={"weight": 0.1}),
        "layout": recipe.layout.model_copy(update={"micro_batch": 8}),
        "mixture": (SourceWeight(source="numbers", weight=1.0),),
        "isolate_documents": True,
        "end_of_text": 1,
        "batch_stages": ramp(4, 8, 16, 4),
        "init_fingerprint": "a" * 64,
    }
    for name, value in different.items():
        assert recipe_digest(recipe.model_copy(update={name: value})) != recipe_digest(recipe), name
    assert not same.keys() - {"layout"} & different.keys()
    assert (same.keys() | different.keys() | {"device"}) == recipe.model_dump().keys(), "a new field: which is it?"


# ------------------------------------------------------------------- fencing
def test_a_newer_attempt_ends_the_older_at_the_step_after_its_next_publication(bench: Bench) -> None:
    def overtake(step: int) -> None:
        if step == 3:
            bench.store(attempt=2).claim()

    reporter = Recorder(after=overtake)
    with pytest.raises(Fenced, match="a newer attempt of this job has begun"):
        bench.loop(reporter, bench.often()).run()
    # step 3 is copied before the fourth step and may not be published before the fifth, which is the last
    assert list(reporter.steps) == [1, 2, 3, 4, 5]
    assert reporter.saved == bench.published() == [1]
    assert reporter.warnings == []


def test_a_newer_attempt_ends_the_older_at_its_last_save(bench: Bench) -> None:
    reporter = Recorder(after=lambda step: bench.store(attempt=2).claim() and None if step == 8 else None)
    with pytest.raises(Fenced, match=r"epoch 2 \(attempt 2, incarnation a\) has begun, this is epoch 1"):
        bench.loop(reporter).run()
    assert bench.published() == reporter.saved == []


def test_an_older_attempt_does_not_even_begin(bench: Bench) -> None:
    bench.store(attempt=2).claim()
    reporter = Recorder()
    with pytest.raises(Fenced, match="attempt 2 has begun, this is attempt 1"):
        bench.loop(reporter).run()
    assert reporter.starts == []


def test_the_same_attempt_may_start_its_processes_again(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=3)).run()
    bench.loop(reporter := Recorder()).run()
    assert reporter.starts[0][0] == 3
    assert [bench.manifest(step)["epoch"] for step in (3, 8)] == [1, 2]


# ------------------------------------------------------------------- two processes
def in_two(folder: Path, data: Data) -> dict[str, Any]:
    """On each rank: a run whose second process has bad luck once, is started again, and ends."""
    bench, out = Bench(data, folder / "job"), {}
    layout = Layout(world_size=2, expert_parallel=1, micro_batch=2, accumulation=2)
    recipe, reporter = bench.recipe(layout=layout), Recorder(stop_at=3)
    bench.loop(reporter, recipe).run()
    seen = []
    loop = bench.loop(Recorder(), recipe)
    if loop.engine.rank == 1:
        loop.engine.disturb = lambda window: seen.append(window) or float("nan")  # type: ignore[attr-defined]
    try:
        loop.run()
    except RolledBack as error:
        out["rolled back"] = str(error)
    again = bench.loop(last := Recorder(), recipe)
    out["steps done"] = again.run()
    out["weights"], out["epoch"] = weights(again), again.store.epoch
    out["starts"] = reporter.starts + last.starts
    out["samples"] = reporter.samples | last.samples
    out["losses"] = {step: metrics["train/loss"] for step, metrics in (reporter.steps | last.steps).items()}
    return out


@pytest.mark.processes
def test_two_processes_do_what_one_does(bench: Bench, tmp_path: Path) -> None:
    first, second = run_ranks(in_two, 2, tmp_path, bench.data)
    alone = Bench(bench.data, tmp_path / "alone")
    straight: Loop = alone.loop(expected := Recorder())
    straight.run()
    assert first["rolled back"] == second["rolled back"]
    assert "step 4 (data step 3): the loss is not finite: going back" in first["rolled back"]
    assert first["steps done"] == second["steps done"] == 8
    assert first["epoch"] == second["epoch"] == 3
    assert [start[:3] for start in first["starts"]] == [(0, 0, 2), (3, 3 * 128, 2)]
    assert second["starts"] == []
    assert second["samples"] == {}, "only rank 0 reports"
    assert first["samples"] == expected.samples
    for step, loss in first["losses"].items():
        assert loss == pytest.approx(expected.steps[step]["train/loss"], rel=1e-4)
    assert all((first["weights"][name] == tensor).all() for name, tensor in second["weights"].items())
    assert {file["name"] for file in Bench(bench.data, tmp_path / "job").manifest(8)["files"]} == {
        "rank-0.pt",
        "rank-1.pt",
    }
