"""What a worker does around the loop, without Ray and with a plain engine: how it ends, and what it leaves behind."""

import errno
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support import tokens
from support.checkpoints import claimed, save
from support.plain_loop import Inline, PlainEngine, Recorder, one_thread
from support.recipes import TINY, tiny_recipe

from model.checkpoint import CheckpointError, Fenced, Identity
from model.dataset import DatasetManifest
from model.engine import zero
from model.loop import RolledBack
from model.metrics import NotFinite
from model.recipe import Checkpointing, Recipe
from model.tokenizer import MIN_VOCAB, Tokenizer
from model.weights import read_model

LENGTH = 16


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def train() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deepspeed's own
        import model.train
    return model.train


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetManifest]:
    folder = tmp_path_factory.mktemp("text")
    source, out = folder / "source", folder / "out"
    source.mkdir()
    for number in range(30):
        (source / f"{number}.txt").write_text(f"{number} stones lie in the river, and {number * 7} in the sea\n" * 4)
    return out, tokens.prepared(source, out, vocab_size=MIN_VOCAB, heldout_share=0.2)


class Worker:
    """One worker of one attempt."""

    def __init__(self, train: ModuleType, prepared: tuple[Path, DatasetManifest], root: Path) -> None:
        self.train, self.root, self.reporter = train, root, Recorder(stacks=root / "stacks")
        self.key = root / "key"
        root.mkdir()
        self.key.write_bytes(b"k" * 32)
        self.data = prepared[0]

    def recipe(self, **changes: object) -> Recipe:
        kept = Checkpointing(uri=str(self.root / "job"), interval_seconds=3600, keep=2)
        base = {"model": TINY.replace(vocab_size=MIN_VOCAB), "data": str(self.data), "sequence_length": LENGTH}
        return tiny_recipe(**(base | {"checkpoint": kept, "steps": 4, "sample_tokens": 6} | changes))

    def run(self, **changes: object) -> None:
        assignment = self.train.Assignment(
            recipe=self.recipe(**changes),
            identity=Identity(job="j", attempt=1, incarnation="a"),
            signing_key_file=self.key,
            reporter=self.reporter,
            stall_seconds=300.0,
        )
        self.train.train_worker({"assignment": assignment})

    @property
    def weights(self) -> Path:
        return self.root / "job" / "weights"


@pytest.fixture
def worker(
    train: ModuleType,
    prepared: tuple[Path, DatasetManifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    process_group: None,
) -> Worker:
    monkeypatch.setattr(zero, "ZeroEngine", PlainEngine)
    monkeypatch.setattr("model.saving.ThreadPoolExecutor", Inline)
    return Worker(train, prepared, tmp_path / "run")


# ------------------------------------------------------------------- what it leaves behind
def test_a_whole_run_leaves_weights_a_sample_and_the_load_of_the_experts(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[PlainEngine] = []

    def make(recipe: Recipe) -> PlainEngine:
        engines.append(PlainEngine(recipe))
        return engines[0]

    monkeypatch.setattr(zero, "ZeroEngine", make)
    worker.run()
    reporter = worker.reporter
    assert list(reporter.steps) == [1, 2, 3, 4]
    assert reporter.saved == [4]
    model, tokenizer = read_model(str(worker.weights))
    for name, tensor in engines[0].full_weights():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert tokenizer.to_json() == Tokenizer.load(worker.data).to_json()
    load = json.loads(reporter.artifacts["expert_load.json"])
    assert (load["step"], load["layers"]) == (4, ["1", "2", "mtp.0"])
    assert [sum(layer) for layer in load["load"]] == [4 * 4 * LENGTH * 2] * 3
    prompt, mark, written = reporter.artifacts["sample.txt"].decode().partition(worker.train.SAMPLE_MARK)
    assert mark
    assert written.endswith("\n")
    assert "stones lie in t" in prompt
    assert (reporter.failures, reporter.warnings) == ([], [])
    assert reporter.stacks is not None
    assert list(reporter.stacks.iterdir()) == [], "it never was stuck"


def test_the_stacks_of_a_process_that_is_stuck_are_written(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step puts the dump off, to the file that the reporter names."""
    limits: list[tuple[float, str]] = []
    monkeypatch.setattr(
        "model.stall.faulthandler.dump_traceback_later", lambda limit, file: limits.append((limit, file.name))
    )
    worker.run()
    file = str(worker.root / "stacks" / "stack-0.txt")
    assert limits == [(1800.0, file)] + [(300.0, file)] * 4


def test_a_run_that_was_told_to_stop_leaves_a_checkpoint_only(worker: Worker) -> None:
    worker.reporter.stop_at = 2
    worker.run()
    assert worker.reporter.saved == [2]
    assert not worker.weights.exists()
    assert list(worker.reporter.artifacts) == ["expert_load.json"]
    assert worker.reporter.failures == []


def test_no_sample_if_none_is_asked_for_or_the_model_is_large(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.run(sample_tokens=0)
    assert "sample.txt" not in worker.reporter.artifacts
    assert worker.reporter.warnings == []
    monkeypatch.setattr(worker.train, "SAMPLE_LIMIT", 10)
    worker.reporter = Recorder()
    worker.run()  # it goes on from the end, and only finishes
    assert worker.reporter.starts[0][0] == 4
    assert "sample.txt" not in worker.reporter.artifacts
    assert worker.reporter.warnings == [f"no sample: write one with `fathom generate {worker.weights}`"]


def test_a_damaged_dataset_is_found_before_training(worker: Worker, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(worker.data, copy)
    shard = next(copy.glob("text/train-*"))
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=shard.name):
        worker.run(data=str(copy))
    assert [kind for kind, _ in worker.reporter.failures] == ["user-error"]
    assert worker.reporter.starts == []


# ------------------------------------------------------------------- how it ends
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Fenced("newer"), "fenced"),
        (MemoryError("host"), "out-of-memory"),
        (torch.OutOfMemoryError("device"), "out-of-memory"),
        (NotFinite("nan"), "not-finite"),
        (CheckpointError("damaged"), "user-error"),
        (ValueError("v"), "user-error"),
        (TypeError("t"), "user-error"),
        (KeyError("k"), "user-error"),
        (AssertionError("a"), "user-error"),
        (ImportError("i"), "user-error"),
        (FileNotFoundError(errno.ENOENT, "none"), "user-error"),
        (RolledBack("step 5"), None),
        (RuntimeError("connection closed by peer"), None),
        (OSError(errno.ENOSPC, "full"), None),
        (PermissionError(errno.EACCES, "no"), None),
        (ConnectionResetError("gone"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_which_errors_are_beyond_repair(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str | None
) -> None:
    """All others are raised without a word: the workers are started again."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker.train, "_train", fail)
    if isinstance(error, Fenced):
        worker.run()  # quietly: whoever has begun must not be disturbed
    else:
        with pytest.raises(type(error)):
            worker.run()
    assert [one for one, _ in worker.reporter.failures] == ([kind] if kind else [])
    if kind:
        assert str(error) in worker.reporter.failures[0][1]


def test_an_error_after_the_group_was_closed_blames_nobody(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray closes it in living workers when another one has died: their next collective is a ValueError."""

    def fail(*_: object) -> None:
        raise ValueError("Default process group has not been initialized")

    monkeypatch.setattr(worker.train, "_train", fail)
    monkeypatch.setattr(worker.train.dist, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match="Default process group"):
        worker.run()
    assert worker.reporter.failures == []


def test_a_worker_that_is_started_again_after_that_does_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.train, "_train", lambda _: pytest.fail("it trained"))
    worker.reporter.over = True
    worker.run()


def test_a_fault_that_passes_is_no_failure(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first start ends with RolledBack, which Ray answers with a second one."""

    def spoilt(recipe: Recipe) -> PlainEngine:
        engine = PlainEngine(recipe)
        engine.disturb = lambda window: float("nan") if worker.reporter.last == 2 else 1.0
        return engine

    monkeypatch.setattr(zero, "ZeroEngine", spoilt)
    with pytest.raises(RolledBack):
        worker.run()
    assert worker.reporter.failures == []
    assert not worker.reporter.has_failed()
    monkeypatch.setattr(zero, "ZeroEngine", PlainEngine)
    worker.reporter = Recorder()
    worker.run()
    assert worker.reporter.last == 4
    assert worker.weights.exists()


def test_initial_weights_are_read_only_where_there_is_nothing_to_go_on_from(train: ModuleType, tmp_path: Path) -> None:
    store = claimed(tmp_path / "run")
    assert train._begins_anew(store)
    save(store, 5)
    assert not train._begins_anew(store)
    (tmp_path / "run" / "checkpoints" / "step-5" / "manifest.json").unlink()  # unfinished: the loop begins anew
    assert train._begins_anew(store)
