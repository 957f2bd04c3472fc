"""`fathom evaluate`: what it measures, what it leaves in the run's folder, and what it refuses."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from support.checkpoints import save
from support.forked import in_processes
from support.mlflow_tables import copied
from support.recipes import SHALLOW, tiny_recipe
from support.runs import resolved, tiny_job

from model.checkpoint import Identity, Manifest, Store
from model.corpus.mixture import Mixture, Source
from model.corpus.prepare import Options, prepare
from model.recipe import Checkpointing, Layout, Recipe
from model.tasks.engines import PlainEngine, single, topology_of
from model.tasks.evaluation import evaluate_tasks
from model.tasks.task import load_tasks
from model.tokenizer import MIN_VOCAB, Tokenizer
from model.transformer import CausalLM
from model.weights import write_weights
from orchestrator.cli.evaluate import evaluate_command
from orchestrator.controller.record import Record
from orchestrator.errors import Interrupted, NotFound, UsageError
from orchestrator.launch.events import Evaluated, read
from orchestrator.launch.resolve import JobRef
from orchestrator.settings import Settings

LENGTH, STEP = 32, 3
MODEL = SHALLOW.model_copy(update={"vocab_size": MIN_VOCAB + 3, "max_position_embeddings": 64})
ROWS = [
    {"query": "seven stones", "choices": ["lie", "fly away", "sing"], "gold": 0},
    {"query": "the sea", "choices": ["is deep", "is dry"], "gold": "A"},
    {"query": "a river", "choices": ["ends", "never ends"], "gold": 1},
]
Cli = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "source").mkdir()
    for number in range(30):
        (folder / "source" / f"{number}.txt").write_text(
            f"{number} stones lie in the river, {number * 7} in the sea\n" * 4
        )
    mixture = Mixture(sources=(Source(name="stones", uri=str(folder / "source")),))
    prepare(mixture, folder / "out", Options(vocab_size=MIN_VOCAB, heldout_share=0.2, workers=1))
    return folder / "out"


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_tables: Path) -> Record:
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path / "runs"))
    copied(mlflow_tables, tmp_path / "runs" / "mlflow.db")
    monkeypatch.delenv("FATHOM_SIGNING_KEY_FILE", raising=False)
    return Record.create(tmp_path / "runs", tiny_job())


def started(record: Record, data: Path, **changes: Any) -> Recipe:  # noqa: ANN401 - field values
    """As the launcher leaves the run's folder."""
    root = str(record.folder.root)
    recipe = tiny_recipe(
        model=MODEL,
        data=str(data),
        sequence_length=LENGTH,
        checkpoint=Checkpointing(uri=root, interval_seconds=60, keep=2),
        **changes,
    )
    job = JobRef(namespace="default", name="tiny", uid=record.uid)
    one = resolved(storage=root, job=job, recipe=recipe)
    record.folder.resolved(1).write_text(one.model_dump_json())
    return recipe


def finished(record: Record, data: Path, **changes: Any) -> tuple[Recipe, CausalLM]:  # noqa: ANN401
    """With final weights."""
    recipe, model = started(record, data, **changes), CausalLM(MODEL)
    model.initialise(4)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    tensors = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if "bias" in n)]
    tokenizer = Tokenizer.load(data).to_json()
    write_weights(f"{record.folder.root}/weights", MODEL, tensors, tokenizer, write=True)
    return recipe, model


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "stones.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command: stdout, stderr."""
    app = typer.Typer()
    app.command()(evaluate_command)

    def call(*arguments: object) -> tuple[str, str]:
        app(list(map(str, arguments)), standalone_mode=False)
        return capsys.readouterr()

    return call


def events(record: Record) -> list[Evaluated]:
    found, _ = read(record.folder.events)
    assert all(isinstance(event, Evaluated) for event in found)
    return found  # type: ignore[return-value]


# ------------------------------------------------------------------- final weights
def test_final_weights_for_programs(cli: Cli, record: Record, data: Path, tasks: Path) -> None:
    recipe, model = finished(record, data)
    out, err = cli(record.folder.root, "--task", tasks, "--batch", 2, "-o", "json")
    found = json.loads(out)
    assert (found["step"], found["tokens"]) == (recipe.steps, recipe.total_tokens)
    metrics = found["metrics"]
    expected = evaluate_tasks(PlainEngine(model, recipe), load_tasks([str(tasks)]), Tokenizer.load(data), LENGTH, 3)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["eval/stones/examples"] == 3
    assert metrics["eval/bits_per_byte"] == pytest.approx(metrics["eval/loss"] / math.log(2), rel=0.05)  # bytes, nearly
    assert 0 <= metrics["eval/mtp_accuracy"] <= 1
    [event] = events(record)
    assert (event.step, event.tokens, event.attempt, event.incarnation) == (recipe.steps, recipe.total_tokens, 1, "i1")
    assert event.metrics == pytest.approx(metrics)
    table = json.loads(Path(found["artifact"]).read_text())
    assert Path(found["artifact"]) == record.folder.artifacts / f"evaluation-step-{recipe.steps}.json"
    assert [(row["gold"], row["context"]) for row in table["examples"]["stones"]] == [
        (0, "seven stones"), (0, "the sea"), (1, "a river"),
    ]  # fmt: skip
    assert f"{record.folder.root}/weights" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(
    cli: Cli, record: Record, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It comes when a checkpoint has been copied to scratch."""
    started(record, data)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = SimpleNamespace(manifest=SimpleNamespace(step=STEP, topology=topology_of(single(tiny_recipe()))))
    store = SimpleNamespace(fetch=lambda *_: signal.raise_signal(number))
    monkeypatch.setattr("orchestrator.cli.evaluated.verified_checkpoint", lambda *_: (store, found))
    monkeypatch.setattr("model.engine.zero.ZeroEngine", lambda *_: SimpleNamespace(close=lambda: None))
    before, usual = set(tmp_path.iterdir()), signal.getsignal(number)
    with pytest.raises(Interrupted, match="nothing was evaluated"):
        cli(record.folder.root)
    assert set(tmp_path.iterdir()) == before
    assert signal.getsignal(number) == usual
    assert not record.folder.artifacts.exists()
    assert Interrupted.exit_code == 130


def test_for_people(cli: Cli, record: Record, data: Path, tasks: Path) -> None:
    finished(record, data)
    out, _ = cli(record.folder.root, "--task", tasks)
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["METRIC", "VALUE", "STDERR"]
    assert {"loss", "bits_per_byte", "stones/acc", "stones/acc_norm", "stones/examples"} <= {line[0] for line in lines}
    assert len(next(line for line in lines if line[0] == "stones/acc")) == 3


def test_what_is_not_finite_is_null_for_programs(
    cli: Cli, record: Record, data: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(record, data)
    endless = {"eval/stones/perplexity": math.inf, "eval/stones/acc": math.nan}
    monkeypatch.setattr("model.tasks.results.task_metrics", lambda task, scores: endless)
    found = json.loads(cli(record.folder.root, "--task", tasks, "-o", "json")[0], parse_constant=pytest.fail)
    assert (found["metrics"]["eval/stones/perplexity"], found["metrics"]["eval/stones/acc"]) == (None, None)
    json.loads(Path(found["artifact"]).read_text(), parse_constant=pytest.fail)
    [event] = events(record)
    assert "eval/loss" in event.metrics
    assert not endless.keys() & event.metrics.keys()


def test_the_runs_own_tasks_are_the_default(cli: Cli, record: Record, data: Path, tasks: Path) -> None:
    finished(record, data, eval_tasks=(str(tasks),))
    out, _ = cli(record.folder.root, "-o", "json")
    assert "eval/stones/acc" in json.loads(out)["metrics"]


def test_without_tasks_it_is_the_held_out_text(cli: Cli, record: Record, data: Path) -> None:
    finished(record, data)
    out, _ = cli(record.folder.root, "-o", "json")
    assert {name.split("/")[1] for name in json.loads(out)["metrics"]} == {"loss", "bits_per_byte", "mtp_accuracy"}


def test_a_bad_task_costs_no_loading_and_leaves_nothing(cli: Cli, record: Record, data: Path, tmp_path: Path) -> None:
    started(record, data)  # nothing to load: it must not come to that
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "x"}\n')
    with pytest.raises(UsageError, match=r"bad\.jsonl:1: has fields query, wanted"):
        cli(record.folder.root, "--task", bad)
    with pytest.raises(NotFound, match="no task file"):
        cli(record.folder.root, "--task", tmp_path / "none.jsonl")
    assert not events(record)
    assert not record.folder.artifacts.exists()


def test_what_is_not_there(cli: Cli, record: Record, data: Path) -> None:
    with pytest.raises(NotFound, match="none of its attempts"):
        cli(record.folder.root)
    started(record, data)
    Settings.load().signing_key()
    with pytest.raises(NotFound, match="neither final weights nor a checkpoint"):
        cli(record.folder.root)
    with pytest.raises(NotFound, match=r"no checkpoint of step 7 .*there are: none"):
        cli(record.folder.root, "--step", 7)


# ------------------------------------------------------------------- checkpoints
def write_checkpoint(rank: int, recipe: Recipe, meeting: str, store: Store, tasks: str) -> None:
    """One of two processes: a checkpoint after one step, what the engine scores, and the state as whole weights."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    from model.engine.zero import ZeroEngine

    engine = ZeroEngine(recipe)
    window = torch.randint(0, MODEL.vocab_size, (recipe.layout.micro_batch, LENGTH + 2))
    engine.micro_step(window, ahead_weight=0.1, alpha=0.0, passes=1)
    engine.step(0.02)
    for bias in engine.routing_biases():
        bias += 0.01 * torch.arange(len(bias))
    store.join(store.epoch) if rank == 0 else store.join(1)
    folder = store.staging()
    engine.snapshot({"step": STEP})(folder)
    files = store.upload(STEP, folder)
    everybodys: list[Any] = [None, None]
    torch.distributed.all_gather_object(everybodys, files)
    if rank == 0:
        manifest = Manifest(
            identity=store.identity, epoch=store.epoch, step=STEP, tokens=999, data_digest="d", recipe_digest="r",
            topology=engine.topology(), code_version="0", created=1.5, files=tuple(everybodys[0] + everybodys[1]),
        )  # fmt: skip
        store.publish(manifest)
    tokenizer = Tokenizer.load(recipe.data)
    metrics = evaluate_tasks(engine, load_tasks([tasks]), tokenizer, LENGTH, 2)  # as in training
    torch.save(metrics, f"{meeting}-metrics-{rank}")
    write_weights(f"{meeting}-weights", MODEL, engine.full_weights(), tokenizer.to_json(), write=rank == 0)
    torch.distributed.barrier()
    engine.close()
    torch.distributed.destroy_process_group()


def with_checkpoint(record: Record, data: Path, stage: int, folder: Path, tasks: Path) -> tuple[Recipe, Path]:
    """-> the recipe, and whole weights that are the same state."""
    layout = Layout(world_size=2, expert_parallel=2, zero_stage=stage, micro_batch=2, accumulation=1)
    recipe = started(record, data, layout=layout)
    identity = Identity(job=record.uid, attempt=1, incarnation="i1")
    store = Store(str(record.folder.root), identity, Settings.load().signing_key())
    store.claim()
    in_processes(write_checkpoint, 2, recipe, str(folder / "meeting"), store, str(tasks))
    return recipe, folder / "meeting-weights"


def in_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """DeepSpeed changes a process for good."""
    code = "import typer; from orchestrator.cli.evaluate import evaluate_command as c; typer.run(c)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def written(*source: object) -> str:
    code = "import typer; from orchestrator.cli.generate import generate_command as c; typer.run(c)"
    ask = ("--prompt", "7 stones", "--temperature", "0", "--tokens", "24")
    command = [sys.executable, "-c", code, *map(str, source), *ask]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 1
    return done.stdout


@pytest.mark.processes
def test_a_checkpoint_says_what_the_same_weights_say(
    cli: Cli, record: Record, data: Path, tasks: Path, tmp_path: Path
) -> None:
    """Of ZeRO stage 3, where no process has a whole tensor."""
    _, weights = with_checkpoint(record, data, 3, tmp_path, tasks)
    done = in_process(record.folder.root, "--task", tasks, "-o", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # nothing else was printed there
    assert (found["step"], found["tokens"]) == (STEP, 999)
    for rank in range(2):  # the ranks that shared the experts said so too
        shared = torch.load(tmp_path / f"meeting-metrics-{rank}")
        assert {name: found["metrics"][name] for name in shared} == pytest.approx(shared, rel=1e-5)
    assert written(record.folder.root, "--step", STEP) == written(weights)
    shutil.copytree(weights, record.folder.root / "weights")
    whole = json.loads(cli(record.folder.root, "--task", tasks, "-o", "json")[0])
    assert found["metrics"] == pytest.approx(whole["metrics"], rel=1e-5)
    here, there = (logprobs(Path(one["artifact"])) for one in (found, whole))
    assert here == pytest.approx(there, rel=1e-5)
    assert [event.step for event in events(record)] == [STEP, 8]
    finished(record, data)  # other weights: the comparison sees a difference
    fresh = json.loads(cli(record.folder.root, "--task", tasks, "-o", "json")[0])
    assert logprobs(Path(fresh["artifact"])) != pytest.approx(here, rel=1e-2)


def logprobs(artifact: Path) -> list[float]:
    rows = json.loads(artifact.read_text())["examples"]["stones"]
    return [value for row in rows for value in row["logprobs"]]


def test_a_damaged_checkpoint_is_not_unpickled(cli: Cli, record: Record, data: Path) -> None:
    started(record, data)
    identity = Identity(job=record.uid, attempt=1, incarnation="i1")
    store = Store(str(record.folder.root), identity, Settings.load().signing_key())
    store.claim()
    save(store, 5)
    [file] = record.folder.root.glob("checkpoints/step-5/*/rank-0.pt")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(UsageError, match=r"rank-0\.pt"):
        cli(record.folder.root, "--step", 5)
    with pytest.raises(NotFound, match="neither final weights"):
        cli(record.folder.root)


@pytest.mark.processes
def test_zero_0_is_refused_with_the_reason(record: Record, data: Path, tasks: Path, tmp_path: Path) -> None:
    with_checkpoint(record, data, 0, tmp_path, tasks)
    done = in_process(record.folder.root, "--step", STEP)
    assert done.returncode != 0
    assert "cannot be loaded by one process: checkpoints of ZeRO stage 0" in done.stderr
