"""`fathom export`: from a run to a folder that transformers opens, and from there to the next run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import Cli, command
from support.recipes import SHALLOW, tiny_recipe
from support.runs import resolved, tiny_job
from torch import Tensor
from transformers import AutoModelForCausalLM

from model import export
from model.checkpoint import Identity, Store
from model.config import ModelConfig
from model.recipe import Checkpointing
from model.tokenizer import MIN_VOCAB, Tokenizer
from model.transformer import CausalLM
from model.weights import read_model, write_weights
from orchestrator.controller.record import Record
from orchestrator.launch.resolve import JobRef
from orchestrator.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
TOKENIZER = Tokenizer.train(["some text"], MIN_VOCAB + 3)
MODEL = SHALLOW.model_copy(update={"vocab_size": MIN_VOCAB + 3, "max_position_embeddings": 64})


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return command("export", monkeypatch, capsys)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """A run that has started."""
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("FATHOM_SIGNING_KEY_FILE", raising=False)
    made = Record.create(tmp_path / "runs", tiny_job())
    root = str(made.folder.root)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokenizer.json").write_text(TOKENIZER.to_json())
    checkpoint = Checkpointing(uri=root, interval_seconds=60, keep=2)
    recipe = tiny_recipe(model=MODEL, data=str(tmp_path / "data"), checkpoint=checkpoint)
    job = JobRef(namespace="default", name="tiny", uid=made.uid)
    made.folder.resolved(1).write_text(resolved(storage=root, job=job, recipe=recipe).model_dump_json())
    return made


def finish(record: Record, config: ModelConfig = MODEL) -> CausalLM:
    made = CausalLM(config)
    made.initialise(4)
    with torch.no_grad():
        for name, tensor in made.named_buffers():
            if name.endswith("bias"):
                tensor.copy_(torch.linspace(-0.01, 0.02, len(tensor)))
    uri = f"{record.folder.root}/weights"
    write_weights(uri, config, made.state_dict().items(), TOKENIZER.to_json(), write=True)
    return made.eval()


def tokens() -> Tensor:
    return torch.randint(0, MIN_VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def test_a_run_opens_in_transformers(cli: Cli, record: Record, tmp_path: Path) -> None:
    made = finish(record)
    code, out, err = cli(record.folder.root, tmp_path / "out", "--shard-size", "20KB")
    assert (code, out.strip()) == (0, str(tmp_path / "out")), err
    assert "bytes of fp32 weights from" in err
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 5
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens()).logits, made(tokens()).logits[0], rtol=0, atol=2e-6)


def test_an_export_is_exported_again_in_other_types(cli: Cli, record: Record, tmp_path: Path) -> None:
    finish(record)
    assert cli(record.folder.root, tmp_path / "fp8", "--dtype", "fp8")[0] == 0
    assert cli(tmp_path / "fp8", tmp_path / "again")[0] == 0  # as it is, 8 bits and scales
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "fp8" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    code, _, err = cli(tmp_path / "fp8", tmp_path / "bf16", "--dtype", "bf16")
    assert code == 0, err
    rounded, _ = read_model(str(tmp_path / "fp8"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16")
    assert theirs.dtype == torch.bfloat16
    own = rounded.state_dict()["model.layers.0.mlp.up_proj.weight"].bfloat16()
    assert torch.equal(theirs.state_dict()["model.layers.0.mlp.up_proj.weight"], own)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--shard-size", "4XB"], 2, "write e.g. 500MB"),
        (["--shard-size", "0"], 2, "write e.g. 500MB"),
    ],
)
def test_wrong_usage(cli: Cli, record: Record, tmp_path: Path, options: list[str], code: int, words: str) -> None:
    finish(record)
    found, _, err = cli(record.folder.root, tmp_path / "out", *options)
    assert found == code, err
    assert words in err
    assert not (tmp_path / "out").exists()


def test_nothing_to_export(cli: Cli, record: Record, tmp_path: Path) -> None:
    Settings.load().signing_key()  # made when a run starts
    code, _, err = cli(record.folder.root, tmp_path / "out")
    assert code == 3, err
    assert "neither final weights nor a checkpoint" in err
    code, _, err = cli(record.folder.root, tmp_path / "out", "--step", 7)
    assert code == 3
    assert "there is no checkpoint of step 7" in err
    (record.folder.root / "weights").mkdir()
    (record.folder.root / "weights" / "config.json").write_text("{}")  # the index comes last
    assert "neither final weights nor a checkpoint" in cli(record.folder.root, tmp_path / "out")[2]
    assert cli(record.folder.root / "weights", tmp_path / "out")[0] == 3
    assert cli(tmp_path / "nowhere", tmp_path / "out")[0] == 3
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays_without_force(cli: Cli, record: Record, tmp_path: Path) -> None:
    finish(record)
    assert cli(record.folder.root, tmp_path / "out")[0] == 0
    code, _, err = cli(record.folder.root, tmp_path / "out")
    assert code == 4
    assert "--force" in err
    assert cli(record.folder.root, tmp_path / "out", "--force")[0] == 0


def test_damaged_weights_are_refused_and_nothing_is_left(cli: Cli, record: Record, tmp_path: Path) -> None:
    finish(record)
    file = record.folder.root / "weights" / "model-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    code, _, err = cli(record.folder.root, tmp_path / "out")
    assert code == 2
    assert "cut off" in err
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "data"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("there", [False, True])
def test_a_signal_leaves_what_was_there(
    cli: Cli, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, there: bool
) -> None:
    finish(record)
    out = tmp_path / "out"
    if there:
        assert cli(record.folder.root, out)[0] == 0
    before = {path.name: path.read_bytes() for path in out.glob("*")}
    # a shell's background jobs ignore one of them, what nohup starts another
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before_us = {one: signal.signal(one, handler) for one, handler in usual.items()}
    write, calls = export._write_tensor, iter(range(10**6))

    def killed(*arguments: Any) -> None:  # noqa: ANN401
        write(*arguments)
        if next(calls) == 20:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(export, "_write_tensor", killed)
    try:
        code, _, err = cli(record.folder.root, out, "--force")
        assert {one: signal.getsignal(one) for one in usual} == usual
    finally:
        for one, handler in before_us.items():
            signal.signal(one, handler)
    assert code == 130
    assert "nothing of the export is left" in err
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "data", *(["out"] if there else [])}
    assert {path.name: path.read_bytes() for path in out.glob("*")} == before


def test_a_checkpoint_that_was_changed_is_not_unpickled(cli: Cli, record: Record, tmp_path: Path) -> None:
    from support.checkpoints import save

    store = Store(
        str(record.folder.root), Identity(job=record.uid, attempt=1, incarnation="i1"), Settings.load().signing_key()
    )
    store.claim()
    save(store, 5)
    [file] = (record.folder.root / "checkpoints" / "step-5").glob("*/rank-0.pt")
    file.write_bytes(b"x" * file.stat().st_size)
    code, _, err = cli(record.folder.root, tmp_path / "out", "--step", 5)
    assert code == 2
    assert "has changed since it was written" in err
    assert not (tmp_path / "out").exists()


def test_the_next_run_starts_where_this_one_ended(cli: Cli, record: Record, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: ANN401
    """Export, read again by the engine, train on: the first step's losses are those of the old weights."""
    from model.engine.zero import ZeroEngine
    from model.headers import read_headers
    from model.loss import training_losses
    from model.tasks.engines import process_group

    made = finish(record)
    out = tmp_path / "out"
    assert cli(record.folder.root, out)[0] == 0
    monkeypatch.setenv("LOCAL_RANK", "0")
    recipe = tiny_recipe(model=MODEL, init_from=str(out), init_fingerprint=read_headers(str(out)).fingerprint)
    window = torch.randint(0, MIN_VOCAB, (4, 18), generator=torch.Generator().manual_seed(2))
    with process_group():
        with pytest.raises(ValueError, match="have changed since the job began"):
            ZeroEngine(recipe.model_copy(update={"init_fingerprint": "0" * 64}))
        engine = ZeroEngine(recipe)
        weights = dict(engine.full_weights())
        losses = engine.micro_step(window, ahead_weight=0.3, alpha=0.01, passes=1)
        engine.step(1e-2)
        after = dict(engine.full_weights())
        engine.close()
    assert weights.keys() == made.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in made.state_dict().items())
    plain = training_losses(made.train()(window[:, :-1], 1), window, ahead_weight=0.3, alpha=0.01)
    assert losses.total.item() == pytest.approx(plain.total.item(), rel=1e-6)
    assert not torch.equal(after["lm_head.weight"], weights["lm_head.weight"])
    assert json.loads((out / "config.json").read_text())["num_nextn_predict_layers"] == 1


KILLED = """
import os, signal, sys
from model import export
from orchestrator.cli.main import main
write, calls = export._write_tensor, iter(range(10**6))
def killed(*arguments):
    write(*arguments)
    if next(calls) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
export._write_tensor = killed
main()
"""


def test_what_a_killed_export_left_goes_and_a_living_one_stays(cli: Cli, record: Record, tmp_path: Path) -> None:
    finish(record)
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, "export", str(record.folder.root), str(out)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = tmp_path.glob(".out.*.tmp")
    assert list(left.iterdir())
    living, held = export._draft(out)
    foreign = tmp_path / ".out.01234567.tmp"
    foreign.mkdir()
    (foreign / "diary.txt").touch()
    other, link = tmp_path / ".other.01234567.tmp", tmp_path / ".out.89abcdef.tmp"
    other.mkdir()
    link.symlink_to(other)
    try:
        assert cli(record.folder.root, out)[0] == 0
        assert sorted(tmp_path.glob(".o*")) == sorted([living, foreign, other, link])
    finally:
        os.close(held)
    assert cli(record.folder.root, out, "--force")[0] == 0
    assert not living.exists(), "its writer is gone"


KILLED_AT = """
import os, shutil, signal, sys
from pathlib import Path
from orchestrator.cli.main import main
rename, rmtree = Path.rename, shutil.rmtree
def renamed(path, target):
    if target == Path(sys.argv[3]) and MOMENT == "between":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
def removed(path, **options):
    if path.suffix == ".old":
        os.kill(os.getpid(), signal.SIGKILL)
    return rmtree(path, **options)
Path.rename, shutil.rmtree = renamed, removed
main()
"""


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """With the time of writing: an export of the same weights has the same bytes."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def kill_replacing(record: Record, out: Path, moment: str) -> None:
    text = KILLED_AT.replace("MOMENT", repr(moment))
    command = [sys.executable, "-c", text, "export", str(record.folder.root), str(out), "--force"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_what_a_killed_export_had_moved_away_comes_back(
    cli: Cli, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(record)
    out = tmp_path / "out"
    assert cli(record.folder.root, out)[0] == 0
    before = contents(out)
    kill_replacing(record, out, "between")
    (old,) = tmp_path.glob(".out.*.old")
    assert (out.exists(), contents(old)) == (False, before), "the only copy"
    draft = old.with_suffix(".tmp")
    held = os.open(draft, os.O_RDONLY)
    assert export._locked(held)
    assert contents(old) == before
    export._put_back(out)
    assert not out.exists(), "a living writer is about to put its own there"
    os.close(held)
    code, _, err = cli(record.folder.root, out)
    assert (code, contents(out)) == (4, before), "it is there again, and replaced with --force only"
    assert "--force" in err
    monkeypatch.setattr(export, "_write_tensor", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli(record.folder.root, out, "--force")
    monkeypatch.undo()
    assert contents(out) == before


def test_what_a_killed_export_had_replaced_goes_with_the_next(cli: Cli, record: Record, tmp_path: Path) -> None:
    finish(record)
    out = tmp_path / "out"
    assert cli(record.folder.root, out)[0] == 0
    before = contents(out)
    kill_replacing(record, out, "after")
    (old,) = tmp_path.glob(".out.*.old")
    assert contents(old) == before != contents(out)
    foreign = tmp_path / ".out.01234567.old"
    foreign.mkdir()
    (foreign / "diary.txt").touch()
    assert cli(record.folder.root, out)[0] == 4
    assert old.exists(), "nothing was written, nothing is removed"
    assert cli(record.folder.root, out, "--force")[0] == 0
    assert list(tmp_path.glob(".out.*")) == [foreign]
