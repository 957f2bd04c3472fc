"""When the training loop saves, and that it goes on while it does; whatever goes wrong with it is only a warning."""

import errno
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.plain_loop import (
    PATIENCE,
    Bench,
    Data,
    Inline,
    PlainEngine,
    Recorder,
    assert_same_weights,
    one_thread,
    tracked,
    write_data,
)

from model.checkpoint import CheckpointError, Fenced, Manifest
from model.loop import Loop
from model.recipe import Checkpointing

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def bench(data: Data, tmp_path: Path, process_group: None) -> Bench:
    return Bench(data, tmp_path / "job")


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.saving.ThreadPoolExecutor", Inline)


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Waits until the saver's thread has nothing to do."""
    executor, settle = tracked()
    monkeypatch.setattr("model.saving.ThreadPoolExecutor", executor)
    return settle


def undisturbed(bench: Bench) -> PlainEngine:
    """The engine after the eight steps."""
    return bench.written_out(bench.recipe(), list(range(8)))[0]


def engine_of(loop: Loop) -> PlainEngine:
    assert isinstance(loop.engine, PlainEngine)
    return loop.engine


def assert_opens(gate: threading.Event) -> None:
    assert gate.wait(PATIENCE)


# ------------------------------------------------------------------- when, and how many
@pytest.mark.usefixtures("inline")
def test_saving_by_the_clock_keeps_as_many_as_asked_for(bench: Bench) -> None:
    reporter = Recorder()
    bench.loop(reporter, bench.often(keep=3)).run()
    assert reporter.saved == [1, 3, 5, 7, 8]
    assert bench.names() == ["step-5", "step-7", "step-8"]
    assert bench.published() == [5, 7, 8]


@pytest.mark.usefixtures("inline")
def test_the_interval_counts_from_the_last_save(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves one second per step and stands still in between."""
    now = [100.0]
    clocks = SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: 0.0, time=lambda: 1.5)
    monkeypatch.setattr("model.loop.time", clocks)
    monkeypatch.setattr("model.loop.speed", lambda recipe, tokens, seconds: {})  # no time passes within a step

    def tick(step: int) -> None:
        now[0] += 1.0

    reporter = Recorder(after=tick)
    bench.loop(reporter, bench.recipe(checkpoint=Checkpointing(uri="x", interval_seconds=3, keep=9))).run()
    assert reporter.saved == [3, 6, 8]


@pytest.mark.usefixtures("inline")
def test_the_manifest_says_what_was_saved(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=3)).run()
    manifest = bench.manifest(3)
    assert (manifest["step"], manifest["tokens"], manifest["data_digest"]) == (3, 3 * 128, "d")
    assert (manifest["identity"], manifest["epoch"]) == ({"job": "j", "attempt": 1, "incarnation": "a"}, 1)
    assert manifest["topology"] == {"world_size": 1, "expert_parallel": 1, "zero_stage": 1, "precision": "fp32"}
    assert manifest["skipped"] == []
    assert [file["name"] for file in manifest["files"]] == ["rank-0.pt"]


# ------------------------------------------------------------------- where to go on from
@pytest.mark.usefixtures("inline")
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=2)).run()
    bench.loop(Recorder(stop_at=5), attempt=2).run()
    bench.damage(5)
    reporter = Recorder()
    loop = bench.loop(reporter, bench.often(keep=1), attempt=3)
    loop.run()
    assert reporter.starts[0][0] == 2
    assert len(reporter.warnings) == 1
    assert "checkpoint passed over: step-5: rank-0.pt has" in reporter.warnings[0]
    assert bench.names() == ["step-8"]  # step 5 was written again, and pruned in its turn
    assert_same_weights(loop, undisturbed(bench))


@pytest.mark.usefixtures("inline")
def test_if_all_are_damaged_it_does_not_begin_anew(bench: Bench) -> None:
    """A run that trains from 0 again would in the end remove what a person may still repair."""
    bench.loop(Recorder(), bench.often(steps=4)).run()
    for step in (1, 3, 4):
        bench.damage(step)
    for attempt in (2, 3):
        reporter = Recorder()
        with pytest.raises(CheckpointError, match=r"none of the checkpoints .*step-4: .*step-3: .*step-1: .*repair"):
            bench.loop(reporter, bench.often(steps=4), attempt=attempt).run()
        assert (reporter.starts, reporter.steps) == ([], {})
        assert bench.published() == [1, 3, 4]


@pytest.mark.usefixtures("inline")
def test_unfinished_ones_are_cleared_away_and_it_begins_at_0(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=3)).run()
    (bench.storage / "checkpoints/step-3/manifest.json").unlink()
    (bench.storage / "checkpoints/.staging-x-1-y").mkdir()
    reporter = Recorder(stop_at=1)
    bench.loop(reporter, attempt=2).run()
    assert reporter.starts == [(0, 0, 1, None)]
    assert bench.published() == [1]
    assert "step-3" not in bench.names()


@pytest.mark.usefixtures("inline")
def test_incidents_that_were_changed_are_not_believed(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=2)).run()
    path = bench.storage / "checkpoints/incidents.json"
    path.write_text(json.dumps({"job": "j", "incidents": [], "signature": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"incidents\.json is damaged"):
        bench.loop(Recorder(), attempt=2).run()


# ------------------------------------------------------------------- training goes on meanwhile
def test_training_goes_on_while_a_checkpoint_is_on_its_way(bench: Bench, settle: Callable[[], None]) -> None:
    """The write of step 1 ends only after the last step: what it wrote is still the state after step 1."""
    gate, seen = threading.Event(), []

    def after(step: int) -> None:
        seen.append((step, list(engine.snapshots), bench.published()))
        if step == 8:
            gate.set()

    reporter = Recorder(after=after)
    loop = bench.loop(reporter, bench.often())
    engine = engine_of(loop)
    engine.on_write = lambda step, folder: assert_opens(gate)
    assert loop.run() == 8
    assert seen == [(1, [], [])] + [(step, [1], []) for step in range(2, 9)], "no second copy beside the first"
    assert engine.snapshots == reporter.saved == bench.published() == [1, 8]
    assert_same_weights(loop, undisturbed(bench))
    first, losses = bench.saved(1), [m["train/loss"] for m in reporter.steps.values()]
    assert (first["state"]["step"], first["state"]["losses"]) == (1, losses[:1])
    after_one, _ = bench.written_out(loop.recipe, [0])
    for name, tensor in after_one.full_weights():
        assert torch.equal(tensor, first["model"][name]), name
    assert bench.names() == ["step-1", "step-8"]


def test_the_next_copy_is_made_when_the_one_before_is_published(bench: Bench, settle: Callable[[], None]) -> None:
    gate = threading.Event()

    def after(step: int) -> None:
        if step == 4:
            gate.set()
        if step >= 4:
            settle()

    reporter = Recorder(after=after)
    loop = bench.loop(reporter, bench.often())
    engine_of(loop).on_write = lambda step, folder: assert_opens(gate)
    loop.run()
    # published before the fifth step; found so, and the next one copied, before the sixth
    assert reporter.saved == engine_of(loop).snapshots == [1, 5, 7, 8]


def test_publishing_does_not_hold_up_training_either(
    bench: Bench, settle: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, seen = threading.Event(), []

    def after(step: int) -> None:
        if step == 2:
            settle()  # uploaded; published from the next exchange on, and that takes its time
        if step == 7:
            seen.append((bench.published(), list(engine_of(loop).snapshots)))
            gate.set()
            settle()

    reporter = Recorder(after=after)
    loop = bench.loop(reporter, bench.often())
    publish = loop.store.publish

    def slow(manifest: Manifest) -> str:
        assert_opens(gate)
        return publish(manifest)

    monkeypatch.setattr(loop.store, "publish", slow)
    assert loop.run() == 8
    assert seen == [([], [1])], "no second copy while the first is being published"
    assert reporter.saved == bench.published() == [1, 7, 8]


def test_an_order_to_stop_waits_for_the_one_on_its_way_and_saves_the_last_step(
    bench: Bench, settle: Callable[[], None]
) -> None:
    gate = threading.Event()

    def after(step: int) -> None:
        if step == 4:
            gate.set()

    reporter = Recorder(stop_at=4, after=after)
    loop = bench.loop(reporter, bench.often())
    engine_of(loop).on_write = lambda step, folder: assert_opens(gate)
    assert loop.run() == 4
    assert reporter.saved == bench.published() == [1, 4]
    assert bench.names() == ["step-1", "step-4"]


def test_a_run_that_was_replaced_while_it_wrote_ends_at_the_next_step(bench: Bench, settle: Callable[[], None]) -> None:
    gate = threading.Event()

    def after(step: int) -> None:
        if step == 3:
            bench.store(attempt=2).claim()
            gate.set()
        if step >= 3:
            settle()

    reporter = Recorder(after=after)
    loop = bench.loop(reporter, bench.often())
    engine_of(loop).on_write = lambda step, folder: assert_opens(gate)
    with pytest.raises(Fenced, match="a newer attempt of this job has begun"):
        loop.run()
    assert list(reporter.steps) == [1, 2, 3, 4]  # written before the fourth, refused while it runs
    assert reporter.saved == bench.published() == []


@pytest.mark.usefixtures("inline")
def test_only_standing_still_counts_as_its_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("model.saving.time", SimpleNamespace(monotonic=lambda: now[0]))

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    reporter = Recorder()
    loop = bench.loop(reporter, bench.often())
    engine_of(loop).on_snapshot = lambda: pass_time(2)
    engine_of(loop).on_write = lambda step, folder: pass_time(1000)
    loop.run()
    assert reporter.seconds == [2.0] * 5


# ------------------------------------------------------------------- whatever goes wrong
@pytest.mark.usefixtures("inline")
def test_a_full_disk_is_a_warning_and_the_next_one_is_written(bench: Bench) -> None:
    """Steps 3 and 5 cannot be written; 1, the last good one, stays until 7 is there."""
    there: list[list[int]] = []
    reporter = Recorder(after=lambda step: there.append(bench.published()))
    loop = bench.loop(reporter, bench.often(keep=1))

    def fill(step: int, folder: Path) -> None:
        if step in (3, 4, 5):
            raise FULL

    engine_of(loop).on_write = fill
    assert loop.run() == 8
    assert reporter.warnings == [
        f"the checkpoint of step {step} could not be written (process 0: OSError: [Errno 28] No space left on device): "
        "the one before stays"
        for step in (3, 5)
    ]
    assert there[5:7] == [[1], [1]]
    assert reporter.saved == [1, 7, 8]
    assert bench.names() == ["step-8"]
    assert_same_weights(loop, undisturbed(bench))


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("where", ["staging", "upload", "publish"])
def test_a_last_checkpoint_that_fails_is_a_warning_too(
    bench: Bench, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends as if it had been written, and says so; the next start goes on from the one before."""
    reporter = Recorder()
    loop = bench.loop(reporter, bench.often())
    real = getattr(loop.store, where)

    def full(*args: object) -> object:
        if engine_of(loop).snapshots[-1] == 8:
            raise FULL
        return real(*args)

    monkeypatch.setattr(loop.store, where, full)
    assert loop.run() == 8
    assert reporter.saved == bench.published() == [1, 3, 5, 7]
    assert len(reporter.warnings) == 1
    assert "the checkpoint of step 8 could not be written" in reporter.warnings[0]
    assert bench.names() == ["step-1", "step-3", "step-5", "step-7"]
    bench.loop(again := Recorder(), bench.often()).run()
    assert again.starts[0][0] == 7
    assert again.saved == [8]
