"""The training loop with an engine of its own kind: the plain model by torch alone, in one process or a few.

Saving happens in another thread; `Inline` does it at once instead, `tracked` lets a test wait for that thread.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from model.anomaly import Incident
from model.balance import collect_loads, update_biases
from model.checkpoint import Identity, Store, Topology
from model.data import TrainingBatches, TrainingWindows, heldout_windows, sample_checksum
from model.dataset import DatasetManifest
from model.engine.base import Engine, topology_of
from model.engine.universal import require_loadable
from model.loop import Loop, RolledBack, recipe_digest
from model.loss import Losses, training_losses
from model.optim import build_optimizer, parameter_groups
from model.recipe import Checkpointing, Layout, Recipe
from model.reporting import Stop
from model.router import Routing
from model.schedule import bias_speed, learning_rate, multi_token_weight
from model.transformer import CausalLM
from support.forked import in_processes
from support.recipes import TINY, tiny_recipe
from support.tokens import write_tokens

PATIENCE = 240.0
"""Seconds after which a test that waits for another thread or process has failed."""
Data = tuple[Path, DatasetManifest]
SMALL = TINY.replace(num_hidden_layers=1, first_k_dense_replace=0, n_routed_experts=4, n_group=1, topk_group=1)
"""The least that has all that a loop looks at: two layers with experts, one of which predicts further ahead."""


# ------------------------------------------------------------------- threads and processes
class Inline:
    """In place of the saver's ThreadPoolExecutor: does at once what it is given."""

    def __init__(self, **_: object) -> None: ...

    def submit(self, work: Callable[..., Any], /, *args: object) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args))
        except Exception as error:  # noqa: BLE001 - as the real one
            future.set_exception(error)
        return future

    def shutdown(self, **_: object) -> None: ...


def tracked() -> tuple[type[ThreadPoolExecutor], Callable[[], None]]:
    """The real thing, and a function that waits until it has done all that it was given."""
    given: list[Future[Any]] = []

    class Tracked(ThreadPoolExecutor):
        def submit(self, work: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:  # noqa: ANN401
            given.append(super().submit(work, *args, **more))
            return given[-1]

    def settle() -> None:
        assert not wait(given, timeout=PATIENCE).not_done

    return Tracked, settle


@contextmanager
def one_thread() -> Iterator[None]:
    """The model is so small that several threads only get in each other's way, several times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_ranks(work: Callable[..., Any], world: int, folder: Path, *args: object) -> list[Any]:
    """`work(folder, *args)` in each of `world` gloo processes, which wait for each other; -> what each returned."""
    in_processes(_rank, world, world, str(folder), work, args)
    return [torch.load(folder / f"returned-{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, work: Callable[..., Any], args: tuple[object, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world, timeout=timedelta(seconds=PATIENCE)
    )
    torch.save(work(Path(folder), *args), f"{folder}/returned-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# ------------------------------------------------------------------- engine
class PlainEngine:
    """`Engine` by torch alone; every process has the whole model. Its attributes let a test interfere."""

    device = torch.device("cpu")
    arithmetic = "fp32: by torch alone"

    def __init__(self, recipe: Recipe) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.recipe, self.model = recipe, CausalLM(recipe.model)
        self.model.initialise(recipe.seed)
        groups = parameter_groups(self.model, recipe.optimizer.weight_decay)
        self.optimizer = build_optimizer(groups, recipe.optimizer, recipe.schedule.learning_rate)
        self.disturb: Callable[[Tensor], float] = lambda window: 1.0
        """What the losses of a micro-batch are multiplied with."""
        self.snapshots: list[int] = []
        """Steps that were copied."""
        self.on_snapshot: Callable[[], None] = lambda: None
        self.on_write: Callable[[int, Path], None] = lambda step, folder: None
        """Called when the file lies in the folder, in the saver's thread."""
        self.updates = 0

    def micro_step(self, window_BL: Tensor, *, ahead_weight: float, alpha: float, passes: int) -> Losses:
        output = self.model(window_BL[:, :-1], self.recipe.model.num_nextn_predict_layers)
        losses = training_losses(output, window_BL, ahead_weight=ahead_weight, alpha=alpha)
        factor = self.disturb(window_BL)
        losses = losses if factor == 1.0 else Losses(*(part * factor for part in losses))
        (losses.total / passes).backward()  # type: ignore[no-untyped-call]
        return losses

    def step(self, learning_rate: float) -> float:
        if self.world_size > 1:
            for parameter in self.model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad.div_(self.world_size)  # type: ignore[union-attr]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
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

    def topology(self) -> Topology:
        return topology_of(self.recipe)

    def require_loadable(self, saved: Topology) -> None:
        require_loadable(saved, self.topology())

    def snapshot(self, state: dict[str, Any]) -> Callable[[Path], None]:
        live = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "state": state}
        file, step = io.BytesIO(), state["step"]
        torch.save(live, file)  # the copy
        self.snapshots.append(step)
        self.on_snapshot()

        def write(folder: Path) -> None:
            (folder / f"rank-{self.rank}.pt").write_bytes(file.getbuffer())
            self.on_write(step, folder)

        return write

    def load(self, folder: Path, tag: str, saved: Topology, scratch: Path) -> dict[str, Any]:
        require_loadable(saved, self.topology())
        content = torch.load(folder / tag / f"rank-{self.rank}.pt")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        state: dict[str, Any] = content["state"]
        return state

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.state_dict().items()


def weights(loop: Loop) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loop.engine.full_weights()}


def assert_same_weights(loop: Loop, other: Loop | PlainEngine) -> None:
    """To the last bit."""
    theirs = dict((other.engine if isinstance(other, Loop) else other).full_weights())
    ours = weights(loop)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# ------------------------------------------------------------------- reporter
@dataclass
class Recorder:
    """`Reporter` that keeps what it is told; `stop_at`: the step after which it orders to stop."""

    stop_at: int | None = None
    after: Callable[[int], None] = lambda step: None
    """Called after each step: what the world does in between."""
    starts: list[tuple[int, int, int, str | None]] = field(default_factory=list)
    arithmetic: str = ""
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    committed: list[tuple[int, str, int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """That training stood still for each checkpoint."""
    warnings: list[str] = field(default_factory=list)
    anomalies: list[tuple[Incident, str]] = field(default_factory=list)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    stacks: Path | None = None
    """Folder for `stack_file`."""
    last: int = 0
    over: bool = False
    """The answer of `has_failed`."""

    def started(self, *, step: int, tokens: int, world_size: int, resumed_from: str | None, arithmetic: str) -> None:
        self.starts.append((step, tokens, world_size, resumed_from))
        self.arithmetic = arithmetic
        self.last = step

    def progress(self, *, step: int, tokens: int, metrics: dict[str, float], samples: int) -> None:
        known = self.steps.get(step, {})
        assert not known.keys() & metrics.keys(), "a step told twice"
        self.steps[step], self.samples[step], self.last = known | metrics, samples, step
        self.tokens.append(tokens)
        self.after(step)

    def checkpoint_committed(self, *, step: int, uri: str, size_bytes: int, seconds: float) -> None:
        assert seconds >= 0
        self.committed.append((step, uri, size_bytes))
        self.seconds.append(seconds)

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def anomaly(self, incident: Incident, message: str) -> None:
        self.anomalies.append((incident, message))

    def artifact(self, name: str, data: bytes) -> None:
        self.artifacts[name] = data

    def stop_requested(self) -> Stop | None:
        return Stop(deadline=1e12) if self.stop_at is not None and self.last >= self.stop_at else None

    def failed(self, kind: str, message: str) -> None:
        self.failures.append((kind, message))

    def has_failed(self) -> bool:
        return self.over

    def stack_file(self, rank: int) -> Path | None:
        return self.stacks and self.stacks / f"stack-{rank}.txt"

    @property
    def saved(self) -> list[int]:
        """Steps of the checkpoints that were announced."""
        return [step for step, _, _ in self.committed]

    @property
    def actions(self) -> list[tuple[int, int, str, str]]:
        """(step, data step, kind, action) of each anomaly."""
        return [(i.step, i.data_step, i.kind, i.action) for i, _ in self.anomalies]


# ------------------------------------------------------------------- data and attempts
def write_data(folder: Path) -> Data:
    """Skewed tokens with some order in them, so that there is something to learn and to balance."""
    vocabulary = 64
    draw = np.random.default_rng(0)
    tokens = (draw.random(3000) ** 2 * vocabulary).astype(np.int64)
    tokens[1::2] = (tokens[::2] * 5 + 1) % vocabulary
    return folder, write_tokens(folder, {"numbers": (tokens[:2500].tolist(), tokens[2500:].tolist())})


_WRITTEN_OUT: dict[tuple[object, ...], tuple[PlainEngine, list[float]]] = {}


@dataclass
class Bench:
    """Starts attempts of one job."""

    data: Data
    storage: Path

    def recipe(self, **changes: object) -> Recipe:
        """Without checkpoints but the last, unless changed."""
        kept = Checkpointing(uri=str(self.storage), interval_seconds=3600, keep=2)
        layout = Layout(world_size=1, expert_parallel=1, micro_batch=4, accumulation=2)
        return tiny_recipe(**({"model": SMALL, "checkpoint": kept, "layout": layout, "eval_tokens": 128} | changes))

    def often(self, keep: int = 9, **changes: object) -> Recipe:
        """A checkpoint as soon as the one before is finished: `Inline`, that is at steps 1, 3, 5, 7, and at last 8."""
        kept = Checkpointing(uri=str(self.storage), interval_seconds=1e-9, keep=keep)
        return self.recipe(**({"checkpoint": kept} | changes))

    def heldout(self, recipe: Recipe) -> dict[str, NDArray[np.int64]]:
        extra = 1 + recipe.model.num_nextn_predict_layers
        return heldout_windows(*self.data, recipe.sequence_length, extra, recipe.eval_tokens)

    def batches(self, recipe: Recipe) -> TrainingBatches:
        return TrainingBatches(
            windows=TrainingWindows(*self.data, recipe.sequence_length, 1 + recipe.model.num_nextn_predict_layers),
            seed=recipe.seed,
            world_size=recipe.layout.world_size,
            micro_batch=recipe.layout.micro_batch,
            schedule=recipe.batches,
        )

    def loop(
        self,
        reporter: Recorder,
        recipe: Recipe | None = None,
        attempt: int = 1,
        incarnation: str = "a",
        digest: str = "d",
    ) -> Loop:
        recipe = recipe or self.recipe()
        engine: Engine = PlainEngine(recipe)
        return Loop(
            engine=engine,
            recipe=recipe,
            batches=self.batches(recipe),
            heldout=self.heldout(recipe),
            token_bytes=np.ones(64, dtype=np.int64),
            data_digest=digest,
            store=self.store(attempt, incarnation),
            reporter=reporter,
        )

    def store(self, attempt: int = 1, incarnation: str = "a") -> Store:
        return Store(str(self.storage), Identity(job="j", attempt=attempt, incarnation=incarnation), b"key")

    # --------------------------------------------------------------- what there is
    def published(self) -> list[int]:
        """Steps with a manifest."""
        found = self.storage.glob("checkpoints/step-*/manifest.json")
        return sorted(int(p.parent.name.removeprefix("step-")) for p in found)

    def names(self) -> list[str]:
        """Everything beside the claims: steps, and what must not be left over."""
        names = {path.name for path in (self.storage / "checkpoints").iterdir()}
        return sorted(names - {"fence", "incidents.json"})

    def manifest(self, step: int) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.storage / f"checkpoints/step-{step}/manifest.json").read_text())
        return content

    def saved(self, step: int) -> dict[str, Any]:
        """Content of a checkpoint's file of rank 0."""
        (path,) = (self.storage / f"checkpoints/step-{step}").glob("*/rank-0.pt")
        content: dict[str, Any] = torch.load(path)
        return content

    def damage(self, step: int) -> None:
        """Cut off the end of a file."""
        (path,) = (self.storage / f"checkpoints/step-{step}").glob("*/rank-0.pt")
        path.write_bytes(path.read_bytes()[:-100])

    # --------------------------------------------------------------- what is to be expected
    def written_out(self, recipe: Recipe, data_steps: list[int]) -> tuple[PlainEngine, list[float]]:
        """The mathematics of a run without the loop, on the given steps of the data; -> engine, losses.

        Computed once for all who ask the same: to look at, not to train any further.
        """
        asked = (str(self.data[0]), recipe_digest(recipe), repr(recipe.layout), tuple(data_steps))
        if asked not in _WRITTEN_OUT:
            _WRITTEN_OUT[asked] = self._write_out(recipe, data_steps)
        return _WRITTEN_OUT[asked]

    def _write_out(self, recipe: Recipe, data_steps: list[int]) -> tuple[PlainEngine, list[float]]:
        engine, batches, losses = PlainEngine(recipe), self.batches(recipe), []
        for step, data_step in enumerate(data_steps):
            mean, passes = 0.0, batches.passes(data_step)
            for k in range(passes):
                window = torch.from_numpy(batches.batch_for(data_step, 0, k))
                weight = multi_token_weight(step, recipe.multi_token)
                alpha = recipe.balance.aux_loss_alpha
                losses_of = engine.micro_step(window, ahead_weight=weight, alpha=alpha, passes=passes)
                mean += losses_of.next_token.item() / passes
            engine.step(learning_rate(step, recipe.schedule))
            loads = collect_loads(engine.routings())
            update_biases(engine.routing_biases(), loads, bias_speed(step, recipe.balance))
            losses.append(mean)
        return engine, losses

    def samples(self, recipe: Recipe, data_step: int) -> int:
        """Checksum of the whole batch of a data step, in one piece."""
        batches = self.batches(recipe)
        numbers = batches.numbers(data_step)
        return sample_checksum(numbers, batches.windows.read(numbers))

    def of_data_step(self, recipe: Recipe, data_step: int) -> Callable[[Tensor], bool]:
        """Whether a micro-batch belongs to it."""
        batches = self.batches(recipe)
        rows = {
            row.tobytes()
            for rank in range(recipe.layout.world_size)
            for k in range(batches.passes(data_step))
            for row in batches.batch_for(data_step, rank, k)
        }
        return lambda window: all(row.tobytes() in rows for row in window.numpy())


# ------------------------------------------------------------------- starting again
Disturb = Callable[[Recorder, Tensor], float]
"""What the losses of a micro-batch are multiplied with, in a run that reports to this recorder."""


@dataclass
class Start:
    """One start of the processes."""

    loop: Loop
    reporter: Recorder
    error: Exception | None = None


def run_to_the_end(
    bench: Bench, recipe: Recipe, disturb: Disturb, limit: int = 20, stop_at: int | None = None
) -> list[Start]:
    """Starts again whenever the loop was rolled back, as whoever starts the processes does."""
    starts: list[Start] = []
    while len(starts) < limit:
        reporter = Recorder(stop_at=stop_at)
        start = Start(bench.loop(reporter, recipe), reporter)
        start.loop.engine.disturb = lambda window, to=reporter: disturb(to, window)  # type: ignore[attr-defined]
        starts.append(start)
        try:
            start.loop.run()
        except Exception as error:  # noqa: BLE001 - for the test to look at
            start.error = error
        if not isinstance(start.error, RolledBack):
            return starts
    raise AssertionError(f"rolled back {limit} times")
