"""Where a run's final weights are looked for, by every command and job alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.cli import command
from support.recipes import TINY, tiny_recipe
from support.runs import resolved, tiny_job

from model.recipe import Checkpointing
from model.tokenizer import MIN_VOCAB, Tokenizer
from model.transformer import CausalLM
from model.weights import write_weights
from orchestrator.controller.record import Record
from orchestrator.errors import UsageError
from orchestrator.launch.weights import find_weights

TOKENIZER = Tokenizer.train(["some text"], MIN_VOCAB + 3)


def write(folder: Path) -> str:
    made = CausalLM(TINY.replace(vocab_size=MIN_VOCAB + 3))
    made.initialise(1)
    write_weights(str(folder), made.config, made.state_dict().items(), TOKENIZER.to_json(), write=True)
    return str(folder)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that keeps its checkpoints and weights elsewhere since its second attempt."""
    record, storage = Record.create(tmp_path / "runs", tiny_job()), tmp_path / "bucket"
    for attempt, root in ((1, tmp_path / "nowhere"), (2, storage)):
        recipe = tiny_recipe(checkpoint=Checkpointing(uri=str(root), interval_seconds=60, keep=2))
        text = resolved(attempt=attempt, storage=f"{root}/", recipe=recipe).model_dump_json()
        record.folder.resolved(attempt).write_text(text)
    return record.folder.root


def test_in_a_runs_storage(run: Path, tmp_path: Path) -> None:
    assert find_weights(str(run)) is None
    weights = write(tmp_path / "bucket" / "weights")
    assert find_weights(str(run)) == find_weights(f"{run}/") == weights
    assert find_weights(weights) == find_weights(str(tmp_path / "bucket")) == weights
    assert find_weights(f"file://{tmp_path}/bucket") == f"file://{weights}"


def test_in_a_folder_that_was_moved_with_its_storage(run: Path, tmp_path: Path) -> None:
    own = write(run / "weights")
    assert find_weights(str(run)) == own
    moved = run.rename(tmp_path / "moved")
    assert find_weights(str(moved)) == str(moved / "weights")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_record_that_cannot_be_read(run: Path, text: str) -> None:
    (run / "resolved-2.json").write_text(text)
    with pytest.raises(UsageError, match=r"resolved-2.json does not say where"):
        find_weights(str(run))


def test_a_record_of_another_version_still_tells(run: Path, tmp_path: Path) -> None:
    (run / "resolved-2.json").write_text(json.dumps({"new": 1, "storage_uri": str(tmp_path / "bucket")}))
    weights = write(tmp_path / "bucket" / "weights")
    assert find_weights(str(run)) == weights


def test_commands_agree(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The storage is not the run's folder: generate looked in the folder only, and found nothing."""
    weights = write(tmp_path / "bucket" / "weights")
    code, _, err = command("export", monkeypatch, capsys)(run, tmp_path / "out")
    assert code == 0, err
    assert weights in err
    code, out, err = command("generate", monkeypatch, capsys)(run, "-p", "a", "--tokens", 2, "-o", "json")
    assert code == 0, err
    assert weights in out
    shutil.rmtree(weights)
    code, _, err = command("generate", monkeypatch, capsys)(tmp_path / "bucket", "-p", "a")
    assert code == 3, err
