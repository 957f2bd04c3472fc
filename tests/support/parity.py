"""The cases in which DeepSpeed must equal one plain process, and how far it is from it.

Used by the tests, and by `benchmarks/trust.py`, which prints the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from model.balance import collect_loads, update_biases
from model.checkpoint import Topology
from model.engine.base import topology_of
from model.loss import training_losses
from model.optim import build_optimizer, parameter_groups
from model.precision import use
from model.precision.backends import Sizes, choose
from model.precision.policy import policy_of
from model.ramp import BatchStage
from model.recipe import Layout, Recipe, Schedule
from model.schedule import bias_speed, learning_rate, multi_token_weight
from model.transformer import CausalLM, documents_of
from support.engine_worker import STEPS, Case, Outcome, sgd, windows
from support.recipes import TINY, tiny_recipe

MODEL = TINY.replace(num_hidden_layers=2)
"""A dense layer, one with experts, and the prediction module, whose layer has experts too."""
BATCH = 8
"""Sequences of an optimizer step, in every case."""
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
Variant = Literal["plain", "accumulate-recompute", "accumulate-selective"]
VARIANTS: tuple[Variant, ...] = ("plain", "accumulate-recompute")
STEEP = Schedule(learning_rate=0.5, final_learning_rate=0.1, warmup_steps=0, decay_start_step=4, decay_end_step=8)
"""For SGD, whose steps are proportional to gradients."""


def layout(world: int, stage: Literal[0, 1, 2, 3], expert: int, variant: Variant = "plain") -> Layout:
    """One way to share out a step's batch."""
    accumulation = 1 if variant == "plain" else 2
    policies = {"plain": "none", "accumulate-recompute": "full", "accumulate-selective": "selective"}
    return Layout(
        world_size=world,
        expert_parallel=expert,
        zero_stage=stage,
        micro_batch=BATCH // world // accumulation,
        accumulation=accumulation,
        recompute=policies[variant],  # type: ignore[arg-type]
    )


def recipe(of: Layout, *, steep: bool = False) -> Recipe:
    """The tiny recipe in this layout."""
    return tiny_recipe(model=MODEL, layout=of, **({"schedule": STEEP} if steep else {}))


def expert_sizes(world: int) -> list[int]:
    """Processes that may share one set of experts."""
    return [size for size in (1, 2, 4) if world % size == 0]


def matrix(world: int) -> list[Case]:
    """Every ZeRO stage with every expert size, by SGD and AdamW; accumulation and recomputation by SGD, which shows a
    wrong scale of a gradient."""
    cases = []
    for stage in STAGES:
        for expert in expert_sizes(world):
            for variant in VARIANTS:
                of = recipe(layout(world, stage, expert, variant), steep=True)
                cases.append(Case(f"sgd-{variant}-z{stage}-ep{expert}", of, sgd=True))
            adam = recipe(layout(world, stage, expert))
            cases.append(Case(f"adamw-plain-z{stage}-ep{expert}", adam))
    return cases


def sample(world: int) -> list[Case]:
    """What the tests run: of two processes each stage with each expert size, and each variant with each stage; of four
    each stage and each expert size once, by AdamW and, with accumulation and recomputation, by SGD. `make trust` runs
    the whole matrix. Of two, selective recomputation under ZeRO-3 with every weight divided, too."""
    kept = {2: {(0, 1), (1, 2), (2, 1), (3, 2)}, 4: {(0, 4), (1, 2), (2, 1), (3, 4)}}[world]

    def keep(case: Case) -> bool:
        if case.name.startswith("sgd-plain"):
            return world == 2
        return (case.recipe.layout.zero_stage, case.recipe.layout.expert_parallel) in kept

    of = recipe(layout(world, 3, 2, "accumulate-selective"), steep=True)
    selective = Case("sgd-accumulate-selective-z3-ep2", of, sgd=True, divide_all=True)
    return [case for case in matrix(world) if keep(case)] + [selective] * (world == 2)


def growing(of: Layout) -> Recipe:
    """Batches that grow, of sequences in which documents are isolated."""
    stages = (BatchStage(first_step=0, sequences=BATCH // 2), BatchStage(first_step=2, sequences=BATCH))
    ours = recipe(of, steep=True)
    return ours.model_copy(update={"batch_stages": stages, "isolate_documents": True, "end_of_text": 3})


def topology(of: Layout) -> Topology:
    """As an engine of this layout gives it."""
    return topology_of(recipe(of))


def one_process(of: Recipe, *, by_sgd: bool = False, steps: int = STEPS) -> Outcome:
    """The plain model on the whole batch, by torch alone."""
    model = CausalLM(of.model)
    model.initialise(of.seed)
    policy = policy_of(of.precision, of.device)
    use(model, choose(policy, torch.device(of.device), Sizes(inputs=8, outputs=8)).products)
    build = sgd if by_sgd else build_optimizer
    optimizer = build(parameter_groups(model, of.optimizer.weight_decay), of.optimizer, 1.0)
    routings = [b.routing for b in model.blocks().values() if b.routing]
    biases = [b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")]
    out = Outcome()
    for step in range(steps):
        window = windows(of, step)
        weight = multi_token_weight(step, of.multi_token)
        tokens = window[:, :-1]
        documents = documents_of(tokens, of.end_of_text) if of.isolate_documents else None
        output = model(tokens, of.model.num_nextn_predict_layers, documents)
        losses = training_losses(output, window, ahead_weight=weight, alpha=of.balance.aux_loss_alpha)
        optimizer.zero_grad()
        losses.total.backward()
        if step == 0:
            out.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), of.optimizer.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, of.schedule)
        optimizer.step()
        out.losses.append(losses.total.item())
        out.norms.append(norm.item())
        loads = collect_loads(routings)
        update_biases(biases, loads, bias_speed(step, of.balance))
        out.loads.append(loads)
    out.weights = model.state_dict()
    return out


def gradients_in_memory_names(ranks: list[Outcome], expert: int) -> dict[str, Tensor]:
    """The first expert group's shards put together, and renamed as in the plain model."""
    out: dict[str, Tensor] = {}
    for name, gradient in ranks[0].gradients.items():
        prefix, _, leaf = name.rpartition(".")
        if leaf == "w1":
            whole = {
                part: torch.cat([r.gradients[f"{prefix}.{part}"] for r in ranks[:expert]])
                for part in ("w1", "w2", "w3")
            }
            out[f"{prefix}.gate_up_proj"] = torch.cat((whole["w1"], whole["w3"]), dim=1)
            out[f"{prefix}.down_proj"] = whole["w2"]
        elif leaf not in ("w2", "w3"):
            out[name.replace(".router.gate.", ".gate.")] = gradient
    return out


@dataclass(frozen=True)
class Distance:
    """Largest absolute differences to one process."""

    loss: float
    gradient: float
    norm: float
    weight: float
    loads_equal: bool


def distance(case: Case, ranks: list[Outcome], plain: Outcome) -> Distance:
    """How far a case is from one process."""
    gradients = gradients_in_memory_names(ranks, case.recipe.layout.expert_parallel)
    assert gradients.keys() == plain.gradients.keys()
    assert ranks[0].weights.keys() == plain.weights.keys()
    return Distance(
        loss=_largest(zip(ranks[0].losses, plain.losses, strict=True)),
        gradient=most(gradients, plain.gradients),
        norm=_largest(zip(ranks[0].norms, plain.norms, strict=True)),
        weight=most(ranks[0].weights, plain.weights),
        loads_equal=all(torch.equal(a, b) for a, b in zip(ranks[0].loads, plain.loads, strict=True)),
    )


def _largest(pairs: Any) -> float:  # noqa: ANN401 - a zip of floats
    return max(abs(a - b) for a, b in pairs)


def most(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest absolute difference over all tensors."""
    return max((a[name] - b[name]).abs().max().item() for name in b)


def named(name: str) -> Callable[[str], str]:
    """For messages of torch.testing."""
    return lambda message: f"{name}: {message}"
