"""The training loop with an engine of its own kind: the plain model in one process."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.recipes import tiny_recipe
from torch import Tensor

from model.balance import collect_loads, update_biases
from model.checkpoint import CheckpointError, Fenced, Identity, Store
from model.data import ShardWriter, TokenSplit, TrainingBatches, Windows
from model.dataset import Baselines, DatasetManifest, Split, SplitName, Splits, TokenizerFile, content_digest
from model.engine.base import Engine
from model.loop import Loop, recipe_digest
from model.loss import Losses, training_losses
from model.metrics import NotFinite
from model.optim import build_optimizer, parameter_groups
from model.recipe import Checkpointing, Layout, Recipe
from model.reporting import Stop
from model.router import Routing
from model.schedule import bias_speed, learning_rate, multi_token_weight
from model.transformer import CausalLM

pytestmark = pytest.mark.usefixtures("process_group")


class PlainEngine:
    """`Engine` by torch alone, for one process."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.model = recipe, CausalLM(recipe.model)
        self.model.initialise(recipe.seed)
        groups = parameter_groups(self.model, recipe.optimizer.weight_decay)
        self.optimizer = build_optimizer(groups, recipe.optimizer, recipe.schedule.learning_rate)

    def micro_step(self, window_BL: Tensor, *, ahead_weight: float, alpha: float) -> Losses:
        output = self.model(window_BL[:, :-1], self.recipe.model.num_nextn_predict_layers)
        losses = training_losses(output, window_BL, ahead_weight=ahead_weight, alpha=alpha)
        (losses.total / self.recipe.layout.accumulation).backward()  # type: ignore[no-untyped-call]
        return losses

    def step(self, learning_rate: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.item()

    @torch.no_grad()
    def evaluate(self, window_BL: Tensor, depth: int) -> tuple[Tensor, ...]:
        logits: tuple[Tensor, ...] = self.model(window_BL[:, :-1], depth).logits
        return logits

    def routings(self) -> list[Routing]:
        return [b.routing for b in self.model.blocks().values() if b.routing]

    def routing_biases(self) -> list[Tensor]:
        return [b for n, b in self.model.named_buffers() if n.endswith("e_score_correction_bias")]

    def layer_names(self) -> list[str]:
        return [n for n, b in self.model.blocks().items() if b.routing]

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        (folder / tag).mkdir()
        content = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "state": state}
        torch.save(content, folder / tag / "rank-0.pt")

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        content = torch.load(folder / tag / "rank-0.pt")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        state: dict[str, Any] = content["state"]
        return state

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.state_dict().items()


@dataclass
class Recorder:
    """`Reporter` that keeps what it is told; `stop_at`: the step after which it orders to stop."""

    stop_at: int | None = None
    after: Callable[[int], None] = lambda step: None
    """Called after each step: what the world does in between."""
    starts: list[tuple[int, int, int, str | None]] = field(default_factory=list)
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    committed: list[tuple[int, str, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    last: int = 0

    def started(self, *, step: int, tokens: int, world_size: int, resumed_from: str | None) -> None:
        self.starts.append((step, tokens, world_size, resumed_from))
        self.last = step

    def progress(self, *, step: int, tokens: int, metrics: dict[str, float]) -> None:
        assert step not in self.steps
        self.steps[step], self.last = metrics, step
        self.tokens.append(tokens)
        self.after(step)

    def checkpoint_committed(self, *, step: int, uri: str, size_bytes: int, seconds: float) -> None:
        assert seconds >= 0
        self.committed.append((step, uri, size_bytes))

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def artifact(self, name: str, data: bytes) -> None: ...

    def stop_requested(self) -> Stop | None:
        return Stop(deadline=1e12) if self.stop_at is not None and self.last >= self.stop_at else None

    def failed(self, kind: str, message: str) -> None: ...

    def has_failed(self) -> bool:
        return False


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetManifest]:
    """Skewed tokens with some order in them, so that there is something to learn and to balance."""
    folder, sha, vocabulary = tmp_path_factory.mktemp("data"), "ab" * 32, 64
    draw = np.random.default_rng(0)
    tokens = (draw.random(3000) ** 2 * vocabulary).astype(np.int64)
    tokens[1::2] = (tokens[::2] * 5 + 1) % vocabulary
    sides: dict[str, Split] = {}
    names: tuple[SplitName, SplitName] = ("train", "heldout")
    for name in names:
        part = tokens[:2500] if name == "train" else tokens[2500:]
        writer = ShardWriter(folder, name, "uint16", 1000)
        writer.write(part)
        sides[name] = Split(documents=1, tokens=len(part), bytes=len(part), shards=writer.close())
    splits = Splits(train=sides["train"], heldout=sides["heldout"])
    manifest = DatasetManifest(
        digest=content_digest(sha, splits.train.shards + splits.heldout.shards),
        inputs_digest=sha,
        tokenizer=TokenizerFile(sha256=sha, vocab_size=257, end_of_text=0),
        dtype="uint16",
        splits=splits,
        source="numbers",
        baselines=Baselines(order0_bits_per_byte=1, xz_bits_per_byte=1, xz_bytes=1),
    )
    return folder, manifest


@dataclass
class Bench:
    """Starts attempts of one job."""

    data: tuple[Path, DatasetManifest]
    storage: Path

    def recipe(self, **changes: object) -> Recipe:
        kept = Checkpointing(uri=str(self.storage), interval_seconds=3600, keep=2)
        layout = Layout(world_size=1, expert_parallel=1, micro_batch=4, accumulation=2)
        return tiny_recipe(**({"checkpoint": kept, "layout": layout} | changes))

    def windows(self, recipe: Recipe, split: SplitName) -> Windows:
        extra = 1 + recipe.model.num_nextn_predict_layers
        return Windows(TokenSplit(*self.data, split), recipe.sequence_length, extra)

    def loop(
        self,
        reporter: Recorder,
        recipe: Recipe | None = None,
        attempt: int = 1,
        incarnation: str = "a",
        digest: str = "d",
    ) -> Loop:
        recipe = recipe or self.recipe()
        layout, engine = recipe.layout, PlainEngine(recipe)
        checked: Engine = engine  # the protocol, by mypy
        batches = TrainingBatches(
            windows=self.windows(recipe, "train"),
            seed=recipe.seed,
            world_size=1,
            micro_batch=layout.micro_batch,
            accumulation=layout.accumulation,
        )
        return Loop(
            engine=checked,
            recipe=recipe,
            batches=batches,
            heldout=self.windows(recipe, "heldout").heldout_windows(recipe.eval_tokens),
            token_bytes=np.ones(64, dtype=np.int64),
            data_digest=digest,
            store=self.store(attempt, incarnation),
            reporter=reporter,
        )

    def store(self, attempt: int = 1, incarnation: str = "a") -> Store:
        return Store(str(self.storage), Identity(job="j", attempt=attempt, incarnation=incarnation), b"key")

    def published(self) -> list[int]:
        found = self.storage.glob("checkpoints/step-*/manifest.json")
        return sorted(int(p.parent.name.removeprefix("step-")) for p in found)


@pytest.fixture
def bench(data: tuple[Path, DatasetManifest], tmp_path: Path) -> Bench:
    return Bench(data, tmp_path / "job")


def weights(loop: Loop) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loop.engine.full_weights()}


# ------------------------------------------------------------------- a whole run
def test_a_run_from_start_to_end(bench: Bench) -> None:
    reporter = Recorder()
    loop = bench.loop(reporter)
    assert loop.run() == 8
    assert reporter.starts == [(0, 0, 1, None)]
    assert list(reporter.steps) == list(range(1, 9))
    assert reporter.tokens == [step * 8 * 16 for step in range(1, 9)]
    always = {"train/loss", "train/mtp_loss", "train/mtp_accuracy", "train/aux_loss", "train/grad_norm"}
    always |= {"train/learning_rate", "train/tokens_per_second", "train/gflops_per_second", "train/step_seconds"}
    always |= {"moe/cv", "moe/max_violation", "moe/dead_share", "memory/peak_bytes"}
    scores = {"eval/loss", "eval/bits_per_byte", "eval/mtp_accuracy"}
    for step, metrics in reporter.steps.items():
        assert metrics.keys() == always | (scores if step in (4, 8) else set()), step
        assert metrics["train/learning_rate"] == learning_rate(step - 1, loop.recipe.schedule)
    assert reporter.steps[8]["eval/loss"] < reporter.steps[4]["eval/loss"]
    assert bench.published() == [8]
    (step, uri, size), files = reporter.committed[0], bench.storage / "checkpoints/step-8/1-a"
    assert (step, uri) == (8, f"{bench.storage}/checkpoints/step-8")
    assert size == sum(p.stat().st_size for p in files.iterdir())
    assert loop.load_ME is not None  # every token visits two experts in each of three layers
    assert loop.load_ME.sum(1).tolist() == [8 * 128 * 2] * 3
    assert reporter.warnings == []


def test_the_last_step_is_evaluated_wherever_it_falls(bench: Bench) -> None:
    reporter = Recorder()
    bench.loop(reporter, bench.recipe(eval_every_steps=5)).run()
    assert [step for step, m in reporter.steps.items() if "eval/loss" in m] == [5, 8]


def test_training_equals_the_steps_written_out(bench: Bench) -> None:
    reporter = Recorder()
    loop = bench.loop(reporter)
    loop.run()
    recipe = loop.recipe
    engine = PlainEngine(recipe)
    assert recipe.multi_token.switch_step < recipe.steps > recipe.balance.bias_stop_step  # both are crossed
    for step in range(recipe.steps):
        losses = []
        for k in (0, 1):
            window = torch.from_numpy(loop.batches.batch_for(step, 0, k))
            weight = multi_token_weight(step, recipe.multi_token)
            losses.append(engine.micro_step(window, ahead_weight=weight, alpha=0.01))
        engine.step(learning_rate(step, recipe.schedule))
        loads = collect_loads(engine.routings())
        update_biases(engine.routing_biases(), loads, bias_speed(step, recipe.balance))
        mean = sum(part.next_token.item() for part in losses) / 2
        assert reporter.steps[step + 1]["train/loss"] == pytest.approx(mean, rel=1e-6)
    for name, tensor in weights(loop).items():
        assert torch.equal(tensor, engine.model.state_dict()[name]), name


def test_a_dense_model_reports_no_balance(bench: Bench) -> None:
    reporter = Recorder()
    dense = bench.recipe().model.replace(first_k_dense_replace=3, num_nextn_predict_layers=0)
    bench.loop(reporter, bench.recipe(model=dense)).run()
    assert not [name for name in reporter.steps[8] if name.startswith("moe/")]
    assert "eval/mtp_accuracy" not in reporter.steps[8]


# ------------------------------------------------------------------- stopping and going on
def test_an_order_to_stop_saves_and_ends(bench: Bench) -> None:
    reporter = Recorder(stop_at=3)
    assert bench.loop(reporter).run() == 3
    assert list(reporter.steps) == [1, 2, 3]
    assert [c[0] for c in reporter.committed] == bench.published() == [3]


def test_an_order_to_stop_before_the_first_step_saves_nothing(bench: Bench) -> None:
    reporter = Recorder(stop_at=0)
    assert bench.loop(reporter).run() == 0
    assert reporter.steps == {}
    assert bench.published() == []


@pytest.mark.parametrize("stops", [[3], [1, 2, 7], [5, 5]])
def test_going_on_is_bitwise_the_same_run(bench: Bench, stops: list[int], tmp_path: Path) -> None:
    straight = Bench(bench.data, tmp_path / "straight").loop(Recorder())
    straight.run()
    expected = straight.reporter
    done = 0
    for attempt, stop in enumerate([*stops, None], start=1):
        reporter = Recorder(stop_at=stop)
        loop = bench.loop(reporter, attempt=attempt)
        assert loop.run() == (stop or 8)
        where = f"{bench.storage}/checkpoints/step-{done}" if done else None
        assert reporter.starts == [(done, done * 128, 1, where)]
        assert list(reporter.steps) == list(range(done + 1, (stop or 8) + 1))
        for step, metrics in reporter.steps.items():
            assert metrics["train/loss"] == expected.steps[step]["train/loss"]  # type: ignore[attr-defined]
        if stop == done:
            assert reporter.committed == []  # nothing new to save
        done = stop or 8
    for name, tensor in weights(straight).items():
        assert torch.equal(tensor, weights(loop)[name]), name
        if name.endswith("e_score_correction_bias"):
            assert tensor.abs().max() > 0, "a zero bias could not show that it was restored"


def test_a_finished_run_does_nothing_more(bench: Bench) -> None:
    bench.loop(Recorder()).run()
    reporter = Recorder()
    assert bench.loop(reporter, attempt=2).run() == 8
    assert reporter.steps == {}
    assert reporter.committed == []
    assert reporter.starts[0][0] == 8


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(bench: Bench, tmp_path: Path) -> None:
    straight = Bench(bench.data, tmp_path / "straight").loop(Recorder())
    straight.run()
    bench.loop(Recorder(stop_at=2)).run()
    bench.loop(Recorder(stop_at=5), attempt=2).run()
    path = bench.storage / "checkpoints/step-5/2-a/rank-0.pt"
    path.write_bytes(path.read_bytes()[:-100])
    reporter = Recorder()
    once = bench.recipe(checkpoint=Checkpointing(uri="x", interval_seconds=1e-9, keep=1))
    loop = bench.loop(reporter, once, attempt=3)
    loop.run()
    assert reporter.starts[0][0] == 2
    assert len(reporter.warnings) == 1
    assert "step-5: rank-0.pt has" in reporter.warnings[0]
    assert bench.published() == [8]  # step 5 was written again, and pruned in its turn
    for name, tensor in weights(straight).items():
        assert torch.equal(tensor, weights(loop)[name]), name


def test_saving_by_the_clock_keeps_as_many_as_asked_for(bench: Bench) -> None:
    reporter = Recorder()
    often = bench.recipe(checkpoint=Checkpointing(uri="x", interval_seconds=1e-9, keep=3))
    bench.loop(reporter, often).run()
    assert [c[0] for c in reporter.committed] == list(range(1, 9))
    assert bench.published() == [6, 7, 8]
    assert sorted(p.name for p in (bench.storage / "checkpoints").iterdir()) == [
        "fence.json",
        "step-6",
        "step-7",
        "step-8",
    ]


def test_the_interval_counts_from_the_last_save(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves one second per step and stands still in between."""
    now = [100.0]
    monkeypatch.setattr("model.loop.time.monotonic", lambda: now[0])
    monkeypatch.setattr("model.loop.speed", lambda recipe, seconds: {})  # no time passes within a step

    def tick(step: int) -> None:
        now[0] += 1.0

    reporter = Recorder(after=tick)
    bench.loop(reporter, bench.recipe(checkpoint=Checkpointing(uri="x", interval_seconds=3, keep=9))).run()
    assert [c[0] for c in reporter.committed] == [3, 6, 8]


def test_the_manifest_says_what_was_saved(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=3)).run()
    manifest = json.loads((bench.storage / "checkpoints/step-3/manifest.json").read_text())
    assert (manifest["step"], manifest["tokens"], manifest["data_digest"]) == (3, 3 * 128, "d")
    assert manifest["identity"] == {"job": "j", "attempt": 1, "incarnation": "a"}
    assert manifest["topology"] == {"world_size": 1, "expert_parallel": 1, "zero_stage": 1, "precision": "fp32"}


# ------------------------------------------------------------------- refusals
def test_another_topology_is_refused_with_both(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=3)).run()
    loop = bench.loop(Recorder(), attempt=2)
    loop.recipe = bench.recipe(layout=Layout(world_size=2, expert_parallel=2, micro_batch=2, accumulation=2))
    with pytest.raises(CheckpointError, match=r"world_size=1 .*world_size=2 .*same parallelism"):
        loop.run()
    loop.recipe = bench.recipe(precision="bf16")
    with pytest.raises(CheckpointError, match=r"precision='fp32'.*precision='bf16'"):
        loop.run()
    assert bench.published() == [3]


def test_other_data_and_another_recipe_are_refused(bench: Bench) -> None:
    bench.loop(Recorder(stop_at=3)).run()
    with pytest.raises(CheckpointError, match="other data or another recipe"):
        bench.loop(Recorder(), attempt=2, digest="e").run()
    with pytest.raises(CheckpointError, match="other data or another recipe"):
        bench.loop(Recorder(), bench.recipe(seed=2), attempt=2).run()
    assert bench.published() == [3]


def test_what_the_digest_of_a_recipe_covers(bench: Bench) -> None:
    recipe = bench.recipe()
    elsewhere = {
        "checkpoint": Checkpointing(uri="moved", interval_seconds=1, keep=9),
        "data": "moved",
        "eval_every_steps": 1,
        "sample_tokens": 5,
    }
    assert recipe_digest(bench.recipe(**elsewhere)) == recipe_digest(recipe)
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
    }
    for name, value in different.items():
        assert recipe_digest(recipe.model_copy(update={name: value})) != recipe_digest(recipe), name


# ------------------------------------------------------------------- broken numbers
def test_a_loss_that_is_no_number_ends_the_run_and_is_not_saved(bench: Bench) -> None:
    def poison(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                loop.engine.model.lm_head.weight[0, 0] = float("nan")  # type: ignore[attr-defined]

    reporter = Recorder(after=poison)
    loop = bench.loop(reporter)
    with pytest.raises(NotFinite, match="the loss is nan at step 4"):
        loop.run()
    assert list(reporter.steps) == [1, 2, 3]
    assert bench.published() == []


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_gradient_that_is_no_number_ends_the_run_and_the_last_good_state_stays(bench: Bench, value: float) -> None:
    """The loss is still finite in that step."""
    often = bench.recipe(checkpoint=Checkpointing(uri="x", interval_seconds=1e-9, keep=9))

    def poison(step: int) -> None:
        if step == 3:
            loop.engine.model.lm_head.weight.register_hook(lambda g: g * value)  # type: ignore[attr-defined]

    reporter = Recorder(after=poison)
    loop = bench.loop(reporter, often)
    with pytest.raises(NotFinite, match=r"the gradient norm is (nan|inf) at step 4"):
        loop.run()
    assert list(reporter.steps) == [1, 2, 3]
    assert bench.published() == [1, 2, 3]
    going_on = Recorder()
    assert bench.loop(going_on, often, attempt=2).run() == 8
    assert going_on.starts[0][0] == 3


# ------------------------------------------------------------------- fencing
def test_a_newer_attempt_ends_the_older_at_its_next_save(bench: Bench) -> None:
    def overtake(step: int) -> None:
        if step == 3:
            bench.store(attempt=2).claim()

    often = bench.recipe(checkpoint=Checkpointing(uri="x", interval_seconds=1e-9, keep=9))
    reporter = Recorder(after=overtake)
    with pytest.raises(Fenced, match="'attempt': 2"):
        bench.loop(reporter, often).run()
    assert list(reporter.steps) == [1, 2, 3]
    assert bench.published() == [1, 2]
    assert [c[0] for c in reporter.committed] == [1, 2]


def test_an_older_attempt_does_not_even_begin(bench: Bench) -> None:
    bench.store(attempt=2).claim()
    reporter = Recorder()
    with pytest.raises(Fenced, match="attempt 2 has begun, this is attempt 1"):
        bench.loop(reporter).run()
    assert reporter.starts == []
