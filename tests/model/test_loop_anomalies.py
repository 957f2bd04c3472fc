"""Losses and gradients that are not to be trusted, from the step they occur in to the end of the run that goes on."""

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.plain_loop import (
    Bench,
    Data,
    Disturb,
    Inline,
    PlainEngine,
    Recorder,
    Start,
    assert_same_weights,
    one_thread,
    run_to_the_end,
    write_data,
)
from torch import Tensor

from model.checkpoint import Fenced
from model.loop import RolledBack
from model.metrics import NotFinite
from model.recipe import Anomalies

NAN, SPIKE = float("nan"), 50.0
EARLY = Anomalies(minimum=3, window=8)
"""Judges from the fourth step on."""


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


def once(factor: float, when: int) -> Disturb:
    """The first micro-batch after step `when`, and never again."""
    left = [factor]
    return lambda reporter, window: left.pop() if left and reporter.last == when else 1.0


def always(factor: float, when: int) -> Disturb:
    """Every micro-batch after step `when`, whatever is in it."""
    return lambda reporter, window: factor if reporter.last == when else 1.0


def by_data(factor: float, belongs: Callable[[Tensor], bool]) -> Disturb:
    """Every micro-batch of a data step, whenever it comes."""
    return lambda reporter, window: factor if belongs(window) else 1.0


def actions(starts: list[Start]) -> list[str]:
    return [action for start in starts for _, _, _, action in start.reporter.actions]


def samples(starts: list[Start]) -> dict[int, int]:
    """Of the steps that were kept."""
    found: dict[int, int] = {}
    for start in starts:
        found |= start.reporter.samples
    return found


# ------------------------------------------------------------------- a fault that passes
@pytest.mark.parametrize("often", [True, False], ids=["from a checkpoint", "from the start"])
@pytest.mark.parametrize(("factor", "kind"), [(NAN, "not-finite"), (float("inf"), "not-finite"), (SPIKE, "spike")])
def test_a_fault_that_passes_leaves_no_trace(bench: Bench, factor: float, kind: str, often: bool) -> None:
    recipe = (bench.often if often else bench.recipe)(anomalies=EARLY)
    first, second = run_to_the_end(bench, recipe, once(factor, when=5))
    assert isinstance(first.error, RolledBack)
    assert "step 6 (data step 5)" in str(first.error)
    assert "going back to the last checkpoint to compute it again" in str(first.error)
    assert list(first.reporter.steps) == [1, 2, 3, 4, 5], "the step itself is not reported"
    assert isinstance(first.loop.engine, PlainEngine)
    assert first.loop.engine.updates == 5, "nor does it change the weights"
    assert first.reporter.actions == [(6, 5, kind, "replay")]
    incident, message = first.reporter.anomalies[0]
    assert message == str(first.error)
    assert (incident.attempt, incident.incarnation) == (1, "a")
    assert json.loads(first.reporter.artifacts["incidents.json"]) == [incident.model_dump(mode="json")]
    assert first.reporter.saved[:2] == ([1, 3] if often else [])
    assert second.error is None
    assert second.reporter.starts[0][0] == max(first.reporter.saved, default=0)
    assert second.reporter.anomalies == []
    engine, losses = bench.written_out(recipe, list(range(8)))
    assert_same_weights(second.loop, engine)
    assert samples([first, second]) == {step: bench.samples(recipe, step - 1) for step in range(1, 9)}
    assert bench.manifest(8)["skipped"] == []
    assert bench.saved(8)["state"]["losses"] == pytest.approx(losses, rel=1e-6)
    assert second.loop.store.epoch == 2
    assert first.reporter.warnings == second.reporter.warnings == []


def test_a_gradient_that_is_no_number_is_found_though_the_loss_is_finite(bench: Bench) -> None:
    """The engine has applied it by then: nothing of this process may be saved any more."""
    recipe, reporter = bench.often(), Recorder()

    def poison(step: int) -> None:
        if step == 4:
            loop.engine.model.lm_head.weight.register_hook(lambda g: g * NAN)  # type: ignore[attr-defined]

    reporter.after = poison
    loop = bench.loop(reporter, recipe)
    with pytest.raises(RolledBack, match=r"step 5 .*the gradient norm is not finite \(loss [0-9.]+\)"):
        loop.run()
    assert list(reporter.steps) == [1, 2, 3, 4]
    assert reporter.saved == bench.published() == [1, 3]
    again = bench.loop(Recorder(), recipe)
    assert again.run() == 8
    assert_same_weights(again, bench.written_out(recipe, list(range(8)))[0])


# ------------------------------------------------------------------- a bad batch
@pytest.mark.parametrize(("factor", "kind"), [(NAN, "not-finite"), (SPIKE, "spike")])
def test_a_batch_that_is_always_bad_is_left_out(bench: Bench, factor: float, kind: str) -> None:
    recipe = bench.often(anomalies=EARLY)
    starts = run_to_the_end(bench, recipe, by_data(factor, bench.of_data_step(recipe, 4)))
    assert [start.reporter.actions for start in starts] == [[(5, 4, kind, "replay")], [(5, 4, kind, "skip")], []]
    begun = [start.reporter.starts[0][0] for start in starts]
    assert begun[0] == 0
    assert all(step in (3, 4) for step in begun[1:])
    assert "leave its data out" in str(starts[1].error)
    assert starts[-1].error is None
    # data step 4 is missing, and nothing else changes places
    order = [0, 1, 2, 3, 5, 6, 7, 8]
    assert samples(starts) == {step: bench.samples(recipe, data) for step, data in enumerate(order, start=1)}
    engine, losses = bench.written_out(recipe, order)
    assert_same_weights(starts[-1].loop, engine)
    assert bench.saved(8)["state"]["losses"] == pytest.approx(losses, rel=1e-6)
    # and that is said where it can be found
    assert {1, 3, 8} < set(bench.published())
    for step in bench.published():
        written_by_last = bench.manifest(step)["epoch"] == len(starts)
        assert bench.manifest(step)["skipped"] == ([4] if written_by_last else []), step
        assert written_by_last or step <= 4
    rows = json.loads(starts[1].reporter.artifacts["incidents.json"])
    assert [(row["step"], row["data_step"], row["action"]) for row in rows] == [(5, 4, "replay"), (5, 4, "skip")]
    assert bench.store().read_incidents() == rows


def test_what_is_left_out_stays_left_out_in_later_attempts(bench: Bench) -> None:
    recipe = bench.often(anomalies=EARLY)
    bad = by_data(NAN, bench.of_data_step(recipe, 1))
    assert run_to_the_end(bench, recipe, bad, stop_at=3)[-1].error is None
    reporter = Recorder()
    loop = bench.loop(reporter, recipe, attempt=2, incarnation="b")
    assert loop.run() == 8
    assert reporter.samples == {step: bench.samples(recipe, step) for step in range(4, 9)}
    assert_same_weights(loop, bench.written_out(recipe, [0, 2, 3, 4, 5, 6, 7, 8])[0])
    assert bench.manifest(8)["skipped"] == [1]


def test_two_bad_batches_in_a_row_are_both_left_out(bench: Bench) -> None:
    recipe = bench.often()
    fourth, fifth = bench.of_data_step(recipe, 4), bench.of_data_step(recipe, 5)
    starts = run_to_the_end(bench, recipe, by_data(NAN, lambda window: fourth(window) or fifth(window)))
    assert actions(starts) == ["replay", "skip"] * 2
    assert bench.manifest(8)["skipped"] == [4, 5]
    assert_same_weights(starts[-1].loop, bench.written_out(recipe, [0, 1, 2, 3, 6, 7, 8, 9])[0])


# ------------------------------------------------------------------- a fault that stays
def test_a_fault_that_stays_ends_the_run_at_last(bench: Bench) -> None:
    """Whatever data the step gets, its loss is not finite."""
    starts = run_to_the_end(bench, bench.often(), always(NAN, when=4))
    assert actions(starts) == ["replay", "skip"] * 3 + ["fail"]
    assert [start.reporter.actions[0][:2] for start in starts] == [(5, n) for n in (4, 4, 5, 5, 6, 6, 7)]
    assert isinstance(starts[-1].error, NotFinite)
    assert "nothing of this step is saved; lower training.schedule.learningRate" in str(starts[-1].error)
    assert max(bench.published()) in (3, 4), "as far as it went well"
    assert {start.reporter.last for start in starts} == {4}


def test_a_spike_that_stays_is_accepted_at_last(bench: Bench) -> None:
    """And it is not judged again when the run goes on from a checkpoint before it."""
    recipe, spike = bench.recipe(anomalies=EARLY), always(SPIKE, when=4)
    starts = run_to_the_end(bench, recipe, spike, stop_at=6)
    assert actions(starts) == ["replay", "skip"] * 3 + ["accept"]
    assert starts[-1].error is None
    assert starts[-1].reporter.steps[5]["train/loss"] > 100
    (bench.storage / "checkpoints/step-6/manifest.json").unlink()
    (again,) = run_to_the_end(bench, recipe, spike, stop_at=6)
    assert again.reporter.starts[0][0] == 0
    assert again.reporter.anomalies == []
    assert again.reporter.steps[5]["train/loss"] == starts[-1].reporter.steps[5]["train/loss"]


def test_no_more_rollbacks_than_allowed(bench: Bench) -> None:
    starts = run_to_the_end(bench, bench.recipe(anomalies=Anomalies(max_rollbacks=1)), always(NAN, when=2))
    assert actions(starts) == ["replay", "fail"]
    assert isinstance(starts[-1].error, NotFinite)


# ------------------------------------------------------------------- other policies
def test_warn_goes_on_after_a_spike_and_ends_with_no_number(bench: Bench) -> None:
    policy = EARLY.model_copy(update={"action": "warn"})
    (spiked,) = run_to_the_end(bench, bench.recipe(anomalies=policy), once(SPIKE, when=4))
    assert spiked.error is None
    assert spiked.reporter.actions == [(5, 4, "spike", "warn")]
    assert "going on, as anomalies.action says" in spiked.reporter.anomalies[0][1]
    assert list(spiked.reporter.steps) == list(range(1, 9))
    assert len(bench.store().read_incidents()) == 1
    losses = [metrics["train/loss"] for metrics in spiked.reporter.steps.values()]
    assert bench.saved(8)["state"]["losses"] == losses, "later losses are compared with this one too"
    elsewhere = Bench(bench.data, bench.storage / "other")
    (broken,) = run_to_the_end(elsewhere, elsewhere.often(anomalies=policy), once(NAN, when=4))
    assert isinstance(broken.error, NotFinite)
    assert broken.reporter.actions == [(5, 4, "not-finite", "fail")]
    assert elsewhere.published() == [1, 3]


def test_a_warning_that_cannot_be_stored_does_not_end_training(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Recorder()
    loop = bench.loop(reporter, bench.recipe(anomalies=EARLY.model_copy(update={"action": "warn"})))
    loop.engine.disturb = lambda window: SPIKE if reporter.last == 4 else 1.0  # type: ignore[attr-defined]

    def full(rows: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop.store, "write_incidents", full)
    assert loop.run() == 8
    assert reporter.actions == [(5, 4, "spike", "warn")]
    assert "No space left on device" in reporter.warnings[0]


@pytest.mark.parametrize(("factor", "last"), [(NAN, "fail"), (SPIKE, "accept")])
def test_replay_leaves_no_data_out(bench: Bench, factor: float, last: str) -> None:
    policy = EARLY.model_copy(update={"action": "replay"})
    recipe = bench.often(anomalies=policy)
    starts = run_to_the_end(bench, recipe, by_data(factor, bench.of_data_step(recipe, 4)))
    assert actions(starts) == ["replay", last]
    assert isinstance(starts[-1].error, NotFinite) == (last == "fail")
    if last == "accept":
        assert samples(starts) == {step: bench.samples(recipe, step - 1) for step in range(1, 9)}
        assert bench.manifest(8)["skipped"] == []


def test_there_is_no_judgement_before_enough_losses(bench: Bench) -> None:
    reporter = run_to_the_end(bench, bench.recipe(), once(SPIKE, when=4))[0].reporter
    assert reporter.anomalies == []
    assert list(reporter.steps) == list(range(1, 9))


def test_the_losses_of_before_a_resume_count(bench: Bench) -> None:
    """With three losses from before, the first step after it can be a spike."""
    recipe = bench.recipe(anomalies=EARLY)
    bench.loop(Recorder(stop_at=3), recipe).run()
    starts = run_to_the_end(bench, recipe, once(SPIKE, when=3))
    assert [start.reporter.actions for start in starts] == [[(4, 3, "spike", "replay")], []]


# ------------------------------------------------------------------- on the way out
@pytest.mark.parametrize("often", [True, False], ids=["a copy on its way", "none"])
def test_a_run_that_was_replaced_records_nothing(bench: Bench, often: bool) -> None:
    """The storage belongs to the newer one."""

    def overtake(step: int) -> None:
        if step == 4:
            bench.store(attempt=2).claim()

    reporter = Recorder(after=overtake)
    loop = bench.loop(reporter, bench.often() if often else bench.recipe())
    loop.engine.disturb = lambda window: NAN if reporter.last == 4 else 1.0  # type: ignore[attr-defined]
    with pytest.raises(Fenced):
        loop.run()
    assert bench.store().read_incidents() == []
    assert reporter.anomalies == []


@pytest.mark.parametrize("saves", [False, True], ids=["without a copy", "with a copy of them"])
def test_weights_that_are_no_numbers_are_never_published(bench: Bench, saves: bool) -> None:
    """They were spoilt between two steps, and a copy was made before the loss could show it."""
    recipe, reporter = bench.often(keep=1) if saves else bench.recipe(), Recorder()

    def poison(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                loop.engine.model.lm_head.weight[0, 0] = NAN  # type: ignore[attr-defined]

    reporter.after = poison
    loop = bench.loop(reporter, recipe)
    with pytest.raises(RolledBack, match=r"step 4 .*the loss is not finite"):
        loop.run()
    assert bench.published() == ([1] if saves else [])
    again = bench.loop(Recorder(), recipe)
    assert again.run() == 8
    assert_same_weights(again, bench.written_out(recipe, list(range(8)))[0])
