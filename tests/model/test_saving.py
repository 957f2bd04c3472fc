"""Checkpoints in another thread: what is under way, what goes wrong, and that training never pays for it."""

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.checkpoints import claimed, manifest_for
from support.plain_loop import PATIENCE, Inline, Recorder, run_ranks, tracked

from model.checkpoint import CheckpointError, Fenced, Manifest, Store, StoredFile
from model.collective import on_first
from model.saving import IDLE, WRITING, WRITTEN, Saver

FULL = OSError(errno.ENOSPC, "No space left on device")
Write = Callable[[Path], None]


class TwoFiles:
    """As much of an engine as is needed: a snapshot becomes two files of this rank."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.before: Callable[[], None] = lambda: None
        """Called in the saver's thread before the first file."""
        self.between: Callable[[], None] = lambda: None

    def snapshot(self, state: dict[str, Any]) -> Write:
        step = state["step"]

        def write(folder: Path) -> None:
            self.before()
            (folder / f"a-{self.rank}.pt").write_bytes(b"a" * step)
            self.between()
            (folder / f"b-{self.rank}.pt").write_bytes(b"b" * step)

        return write


class Rig:
    """A saver and all around it."""

    def __init__(self, root: Path, keep: int = 9) -> None:
        self.root, self.reporter, self.engine = root, Recorder(), TwoFiles()
        self.store = claimed(root)
        self.saver = saver(self.engine, self.store, self.reporter, keep)

    def save(self, step: int) -> None:
        self.saver.start(step, {"step": step})
        self.saver.finish()

    def published(self) -> list[int]:
        return sorted(int(p.parent.name.removeprefix("step-")) for p in self.root.glob("checkpoints/*/manifest.json"))

    def left_over(self) -> list[str]:
        """Folders that belong to no checkpoint."""
        known = {"fence", *(f"step-{step}" for step in self.published())}
        return sorted({path.name for path in (self.root / "checkpoints").iterdir()} - known)


def saver(engine: TwoFiles, store: Store, reporter: Recorder, keep: int = 9) -> Saver:
    def describe(step: int, files: tuple[StoredFile, ...]) -> Manifest:
        return manifest_for(store, step, list(files))

    return Saver(engine, store, reporter, keep, describe)  # type: ignore[arg-type]


def raising(error: Exception) -> Callable[..., Any]:
    def act(*_: object) -> Any:  # noqa: ANN401
        raise error

    return act


@pytest.fixture
def rig(tmp_path: Path, process_group: None) -> Iterator[Rig]:
    rig = Rig(tmp_path / "job")
    yield rig
    rig.saver.close()


@pytest.fixture
def inline(tmp_path: Path, process_group: None, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr("model.saving.ThreadPoolExecutor", Inline)
    return Rig(tmp_path / "job")


# ------------------------------------------------------------------- the real thread
def test_from_the_copy_to_the_checkpoint(tmp_path: Path, process_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, settle = tracked()
    monkeypatch.setattr("model.saving.ThreadPoolExecutor", executor)
    rig, written, published = Rig(tmp_path / "job"), threading.Event(), threading.Event()
    saver, publish = rig.saver, rig.store.publish

    def slow(manifest: Manifest) -> str:
        assert published.wait(PATIENCE)
        return publish(manifest)

    rig.engine.before = lambda: expect(written)
    monkeypatch.setattr(rig.store, "publish", slow)
    assert (saver.state(), saver.busy(), saver.replaced()) == (IDLE, False, False)
    saver.start(5, {"step": 5})
    assert (saver.state(), saver.busy()) == (WRITING, True)
    with pytest.raises(AssertionError, match="one checkpoint at a time"):
        saver.start(6, {"step": 6})
    written.set()
    settle()
    assert (saver.state(), saver.busy(), rig.published()) == (WRITTEN, True, [])
    saver.conclude()
    assert (saver.state(), saver.busy(), rig.published()) == (IDLE, True, [])
    published.set()
    settle()
    assert (saver.state(), saver.busy(), saver.replaced()) == (IDLE, False, False)
    assert rig.reporter.committed == [(5, f"{rig.root}/checkpoints/step-5", 10)]
    assert [file.name for file in rig.store.verify(5).files] == ["a-0.pt", "b-0.pt"]
    assert rig.left_over() == []
    saver.close()


def expect(event: threading.Event) -> None:
    assert event.wait(PATIENCE)


def test_to_finish_waits_for_the_files_and_for_the_manifest(rig: Rig) -> None:
    rig.saver.finish()  # nothing to do
    for step in (5, 6):
        rig.save(step)
        assert (rig.saver.state(), rig.saver.busy()) == (IDLE, False)
        assert rig.published()[-1] == step
    assert rig.reporter.saved == [5, 6]
    assert rig.reporter.warnings == []


def test_to_close_waits_for_nothing(rig: Rig) -> None:
    gate = threading.Event()
    rig.engine.before = lambda: expect(gate)
    rig.saver.start(5, {"step": 5})
    rig.saver.close()  # in the middle of an error: training must be able to end
    assert rig.saver.state() == WRITING
    gate.set()


def test_files_are_written_by_another_thread(rig: Rig) -> None:
    threads = []
    rig.engine.before = lambda: threads.append(threading.current_thread().name)
    rig.save(5)
    assert len(threads) == 1
    assert threads[0].startswith("checkpoint")
    assert threads[0] != threading.current_thread().name


# ------------------------------------------------------------------- how long training stood still
def test_the_seconds_are_those_of_the_copy_and_of_the_agreement(inline: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("model.saving.time", SimpleNamespace(monotonic=lambda: now[0]))
    snapshot = inline.engine.snapshot

    def slow(state: dict[str, Any]) -> Write:
        now[0] += 3
        return snapshot(state)

    def agree(action: Callable[[], object]) -> list[object]:
        now[0] += 0.25
        return [action()]

    monkeypatch.setattr(inline.engine, "snapshot", slow)
    monkeypatch.setattr("model.saving.together", agree)
    inline.engine.before = lambda: now.__setitem__(0, now[0] + 1000)
    inline.saver.start(5, {"step": 5})
    now[0] += 50  # of training
    inline.saver.conclude()
    assert inline.reporter.seconds == [3.25]


def test_waiting_for_the_files_at_the_end_counts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third look at the clock is that of `conclude`: from then on training stands still."""
    now, looks, concluding = [100.0], [], threading.Event()

    def clock() -> float:
        looks.append(now[0])
        if len(looks) == 3:
            concluding.set()
        return now[0]

    def write() -> None:
        expect(concluding)
        now[0] += 7

    monkeypatch.setattr("model.saving.time", SimpleNamespace(monotonic=clock))
    rig.engine.before = write
    rig.save(5)
    assert rig.reporter.seconds == [7.0]


# ------------------------------------------------------------------- what goes wrong
Fault = Callable[[Rig, pytest.MonkeyPatch, Exception], None]


def at_staging(rig: Rig, patch: pytest.MonkeyPatch, error: Exception) -> None:
    patch.setattr(rig.store, "staging", raising(error))


def at_write(rig: Rig, patch: pytest.MonkeyPatch, error: Exception) -> None:
    patch.setattr(rig.engine, "between", raising(error))


def at_the_second_file(rig: Rig, patch: pytest.MonkeyPatch, error: Exception) -> None:
    put = rig.store._storage.put

    def one(source: Path, name: str) -> None:
        if source.name.startswith("b"):
            raise error
        put(source, name)

    patch.setattr(rig.store._storage, "put", one)


def at_reading_back(rig: Rig, patch: pytest.MonkeyPatch, error: Exception) -> None:
    patch.setattr(rig.store._storage, "digest", raising(error))


def at_the_fence(rig: Rig, patch: pytest.MonkeyPatch, error: Exception) -> None:
    patch.setattr(rig.store, "check_fence", raising(error))


def at_the_manifest(rig: Rig, patch: pytest.MonkeyPatch, error: Exception) -> None:
    patch.setattr(rig.store._storage, "create", raising(error))


@pytest.mark.parametrize("error", [FULL, CheckpointError("lost"), RuntimeError("odd"), KeyError("x"), MemoryError()])
@pytest.mark.parametrize(
    "fault", [at_staging, at_write, at_the_second_file, at_reading_back, at_the_fence, at_the_manifest]
)
def test_any_failure_is_a_warning_and_the_next_one_is_written(inline: Rig, fault: Fault, error: Exception) -> None:
    inline.save(5)
    with pytest.MonkeyPatch.context() as patch:
        fault(inline, patch, error)
        inline.saver.start(6, {"step": 6})
        assert inline.saver.state() == WRITTEN, "it is over, for better or worse"
        inline.saver.conclude()
        inline.saver.finish()
    assert len(inline.reporter.warnings) == 1
    assert inline.reporter.warnings[0].startswith("the checkpoint of step 6 could not be written (")
    assert f"{type(error).__name__}: {error}" in inline.reporter.warnings[0]
    assert (inline.saver.busy(), inline.saver.replaced()) == (False, False)
    assert inline.published() == [5]
    assert inline.left_over() == []
    inline.save(7)
    assert inline.reporter.saved == inline.published() == [5, 7]
    assert len(inline.reporter.warnings) == 1


def test_a_failure_in_the_real_thread(rig: Rig) -> None:
    rig.engine.between = raising(FULL)
    rig.save(5)
    rig.engine.between = lambda: None
    rig.save(6)
    assert "step 5 could not be written (process 0: OSError: [Errno 28]" in rig.reporter.warnings[0]
    assert rig.reporter.saved == rig.published() == [6]
    assert rig.left_over() == []


def test_nothing_is_left_in_a_staging_folder_elsewhere(
    tmp_path: Path, process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the storage is no folder of this machine."""
    monkeypatch.setattr("model.saving.ThreadPoolExecutor", Inline)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store, reporter, engine = claimed(f"memory://{tmp_path.name}/job"), Recorder(), TwoFiles()
    one = saver(engine, store, reporter)
    engine.between = raising(FULL)
    one.start(5, {"step": 5})
    one.finish()
    engine.between = lambda: None
    one.start(6, {"step": 6})
    one.finish()
    assert (reporter.saved, len(reporter.warnings)) == ([6], 1)
    assert list(tmp_path.glob("fathom-staging-*")) == []
    assert store.steps() == [6]


def test_old_ones_that_cannot_be_removed_are_a_warning(inline: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline.store, "prune", raising(PermissionError("not yours")))
    inline.save(5)
    assert inline.reporter.saved == inline.published() == [5]
    assert inline.reporter.warnings == ["old checkpoints could not be removed: not yours"]
    assert not inline.saver.replaced()


def test_as_many_are_kept_as_asked_for(tmp_path: Path, process_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.saving.ThreadPoolExecutor", Inline)
    rig = Rig(tmp_path / "job", keep=2)
    for step in (1, 2, 3, 4):
        rig.save(step)
    assert rig.published() == [3, 4]


# ------------------------------------------------------------------- replaced
def test_a_replaced_run_learns_it_when_it_publishes(inline: Rig) -> None:
    claimed(inline.root, attempt=2)
    inline.saver.start(5, {"step": 5})
    assert not inline.saver.replaced()
    inline.saver.conclude()
    assert inline.saver.replaced()
    assert not inline.saver.busy()
    for _ in range(2):
        with pytest.raises(Fenced, match="attempt 2"):
            inline.saver.finish()
    assert (inline.published(), inline.reporter.saved, inline.reporter.warnings) == ([], [], [])


def test_or_when_it_removes_old_ones(inline: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline.store, "prune", raising(Fenced("too late")))
    inline.saver.start(5, {"step": 5})
    inline.saver.conclude()
    assert inline.reporter.saved == [5]
    assert inline.saver.replaced()


# ------------------------------------------------------------------- two processes
def in_two(folder: Path) -> dict[str, Any]:
    """Three saves, of which the second fails on rank 1; then another writer takes over."""
    import torch.distributed as dist

    import model.saving

    executor, settle = tracked()
    model.saving.ThreadPoolExecutor = executor  # type: ignore[misc]
    rank, out = dist.get_rank(), {}
    store, reporter, engine = Store(str(folder / "job"), *writer()), Recorder(), TwoFiles(rank)
    store.join(on_first(store.claim))
    one = saver(engine, store, reporter)
    for step in (5, 6, 7):
        engine.between = raising(FULL) if (step, rank) == (6, 1) else lambda: None
        one.start(step, {"step": step})
        one.finish()
        settle()
        dist.barrier()
        out[f"steps after {step}"] = store.steps()
        dist.barrier()  # all have looked before anybody goes on
    on_first(lambda: claimed(folder / "job", attempt=2) and None)
    one.start(8, {"step": 8})
    try:
        one.finish()
    except Fenced as error:
        out["fenced"] = str(error)
    one.close()
    out |= {"saved": reporter.saved, "warnings": reporter.warnings}
    return out


def writer() -> tuple[Any, bytes]:
    from support.checkpoints import KEY, identity

    return identity(), KEY


@pytest.mark.processes
def test_two_processes_write_one_checkpoint_or_none(tmp_path: Path) -> None:
    first, second = run_ranks(in_two, 2, tmp_path)
    for rank in (first, second):
        assert [rank[f"steps after {step}"] for step in (5, 6, 7)] == [[5], [5], [5, 7]]
        assert "epoch 2 (attempt 2, incarnation a) has begun, this is epoch 1" in rank["fenced"]
    assert first["saved"] == [5, 7]
    assert first["warnings"] == [
        "the checkpoint of step 6 could not be written (process 1: OSError: [Errno 28] No space left on device): "
        "the one before stays"
    ]
    assert (second["saved"], second["warnings"]) == ([], [])
    store = Store(str(tmp_path / "job"), *writer())
    names = [file.name for file in store.verify(7).files]
    assert names == ["a-0.pt", "b-0.pt", "a-1.pt", "b-1.pt"]


def test_the_real_executor_is_what_is_replaced_here() -> None:
    """Otherwise `Inline` and `tracked` would replace nothing."""
    import model.saving

    assert model.saving.ThreadPoolExecutor is ThreadPoolExecutor
