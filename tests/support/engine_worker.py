"""Runs in real gloo processes started by the engine's tests: trains a few steps and writes what happened.

One set of processes works through many cases: making their process group takes its time, too.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from model.balance import collect_loads, update_biases
from model.checkpoint import CheckpointError, Topology
from model.optim import build_optimizer, without_compiler
from model.recipe import Optimizer, Recipe
from model.schedule import bias_speed, learning_rate, multi_token_weight
from support.forked import in_processes

STEPS = 4
PATIENCE = timedelta(seconds=240)


@dataclass(frozen=True)
class Case:
    """One engine to build, and what to do with it."""

    name: str
    recipe: Recipe
    steps: int = STEPS
    sgd: bool = False
    save: str | None = None
    """Write a checkpoint of this name after half of the steps."""
    load: str | None = None
    """Go on from the checkpoint of this name."""
    without: tuple[str, ...] = ()
    """Methods of the engine to leave out, to see that they are needed."""
    gradients: bool = True
    state: bool = False
    """Keep the state after the last step."""
    divide_all: bool = False
    """Under ZeRO-3 divide the smallest weights, too; DeepSpeed leaves those of up to 100,000 numbers whole."""
    claim: Topology | None = None
    """Topology that the loaded checkpoint is said to have; by default its own."""


@dataclass
class Outcome:
    """What one process saw of a case."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    loads: list[Tensor] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    saved: dict[str, Tensor] = field(default_factory=dict)
    """Whole weights as they were saved, on the first process."""
    state: dict[str, Any] = field(default_factory=dict)
    """Everything that a checkpoint after the last step would hold."""
    router_calls: list[int] = field(default_factory=list)
    expert_calls: list[int] = field(default_factory=list)
    random: float = 0.0
    error: str = ""


def sgd(groups: list[dict[str, Any]], settings: Optimizer, learning_rate: float) -> torch.optim.Optimizer:
    """Unlike Adam it shows a wrong scale of a gradient."""
    return without_compiler(torch.optim.SGD(groups, lr=learning_rate))


def windows(recipe: Recipe, step: int) -> Tensor:
    """The global batch of a step, the same for every layout."""
    c = recipe.model
    length = recipe.sequence_length + 1 + c.num_nextn_predict_layers
    generator = torch.Generator().manual_seed(1000 + step)
    # squared: a skewed distribution of tokens, so that routing and balance have something to do
    noise = torch.rand(recipe.batches.at(step), length, generator=generator) ** 2
    return (noise * c.vocab_size).long()


def run(folder: Path, world: int, cases: list[Case]) -> dict[str, list[Outcome]]:
    """Work through `cases` in `world` processes; -> by case, one outcome per rank."""
    in_processes(_worker, world, world, str(folder), cases)
    ranks = [torch.load(folder / f"outcomes-{world}-{rank}.pt", weights_only=False) for rank in range(world)]
    return {case.name: [outcomes[case.name] for outcomes in ranks] for case in cases}


def _worker(rank: int, world: int, folder: str, cases: list[Case]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    meeting = Path(folder) / f"meeting-{world}"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=PATIENCE
    )
    outcomes = {case.name: _outcome(Path(folder), case) for case in cases}
    torch.save(outcomes, f"{folder}/outcomes-{world}-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if rank == 0:
        meeting.unlink(missing_ok=True)


def _outcome(folder: Path, case: Case) -> Outcome:
    from model.engine import zero

    whole = zero.deepspeed_config
    if case.divide_all:
        zero.deepspeed_config = partial(_dividing_all, whole)
    try:
        engine = zero.ZeroEngine(case.recipe, sgd if case.sgd else build_optimizer)
    finally:
        zero.deepspeed_config = whole
    out = Outcome()
    try:
        _train(engine, folder, case, out)
    except CheckpointError as error:
        out.error = str(error)
    engine.close()
    gc.collect()
    _forget_expert_groups()
    return out


def _dividing_all(whole: Callable[[Recipe], dict[str, Any]], recipe: Recipe) -> dict[str, Any]:
    config = whole(recipe)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return config


def _forget_expert_groups() -> None:
    """DeepSpeed keeps the expert groups of all sizes that a process ever had, and takes the largest for its own."""
    from deepspeed.utils import groups

    for name in (
        "_EXPERT_PARALLEL_GROUP",
        "_EXPERT_DATA_PARALLEL_GROUP",
        "_EXPERT_PARALLEL_GROUP_RANKS",
        "_EXPERT_DATA_PARALLEL_GROUP_RANKS",
    ):
        getattr(groups, name).clear()


def _train(engine: Any, folder: Path, case: Case, out: Outcome) -> None:  # noqa: ANN401 - imported late
    recipe, start = case.recipe, 0
    if case.load is not None:
        start = _load(engine, folder, case)
    for step in range(start, case.steps):
        out.losses.append(_micro_steps(engine, recipe, step))
        if step == 0 and case.gradients:
            out.gradients = _gradients(engine)
        out.norms.append(engine.step(learning_rate(step, recipe.schedule)))
        loads = collect_loads(engine.routings())
        update_biases(engine.routing_biases(), loads, bias_speed(step, recipe.balance))
        out.loads.append(loads)
        if case.save is not None and step + 1 == case.steps // 2:
            target = folder / "saved" / case.save
            target.mkdir(parents=True, exist_ok=True)
            engine.snapshot({"step": step + 1})(target)
            out.saved = {name: tensor.clone() for name, tensor in engine.full_weights() if engine.rank == 0}
            torch.distributed.barrier()
    out.weights = dict(engine.full_weights())
    if case.state:
        out.state = _state(engine)
    out.random = torch.rand(1).item()
    out.router_calls = [r.calls for r in engine.routings()]
    out.expert_calls = engine.expert_calls()


def _load(engine: Any, folder: Path, case: Case) -> int:  # noqa: ANN401
    assert case.load is not None
    for remedy in case.without:
        assert hasattr(engine, remedy)
        setattr(engine, remedy, lambda *_: None)
    saved = case.claim or engine.topology()
    state = engine.load(folder / "saved", case.load, saved, folder / "scratch" / case.name)
    return int(state["step"])


def _micro_steps(engine: Any, recipe: Recipe, step: int) -> float:  # noqa: ANN401
    """Forward and backward of the whole step; -> the mean loss over all processes."""
    batch = windows(recipe, step).chunk(engine.world_size)[engine.rank].split(recipe.layout.micro_batch)
    weight, total = multi_token_weight(step, recipe.multi_token), torch.zeros(())
    for window in batch:
        alpha = recipe.balance.aux_loss_alpha
        losses = engine.micro_step(window, ahead_weight=weight, alpha=alpha, passes=len(batch))
        total += losses.total.detach() / len(batch)
    torch.distributed.all_reduce(total)
    return float(total) / engine.world_size


def _state(engine: Any) -> dict[str, Any]:  # noqa: ANN401
    """Tensors and numbers of a checkpoint, flat."""
    flat: dict[str, Any] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}/{key}", item)
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                walk(f"{name}/{number}", item)
        elif isinstance(value, Tensor | int | float):
            flat[name] = value

    with TemporaryDirectory() as folder:
        engine.snapshot({"step": 0})(Path(folder))
        for file in sorted(Path(folder).iterdir()):
            walk(file.name, torch.load(file, weights_only=False))
    return flat


def _gradients(engine: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """Under the names in the model; of experts those that this process holds."""
    from deepspeed.utils import safe_get_full_grad

    return {name: safe_get_full_grad(p).clone() for name, p in engine.model.named_parameters()}
