"""Runs in real gloo processes started by the engine's tests: trains a few steps and writes what happened."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.balance import collect_loads, update_biases
from model.recipe import Recipe
from model.schedule import bias_speed, learning_rate, multi_token_weight


def windows(recipe: Recipe, step: int) -> Tensor:
    """The global batch of a step, the same for every layout."""
    c = recipe.model
    length = recipe.sequence_length + 1 + c.num_nextn_predict_layers
    generator = torch.Generator().manual_seed(1000 + step)
    # squared: a skewed distribution of tokens, so that routing and balance have something to do
    noise = torch.rand(recipe.batch_sequences, length, generator=generator) ** 2
    return (noise * c.vocab_size).long()


def worker(rank: int, world: int, folder: str, recipe_json: str, options: dict[str, Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous-{options['name']}", rank=rank, world_size=world
    )
    from deepspeed.utils import safe_get_full_grad

    from model.engine.zero import ZeroEngine

    recipe = Recipe.model_validate_json(recipe_json)
    engine = ZeroEngine(recipe)
    start = 0
    if options.get("load"):
        start = engine.load(Path(folder), options["load"])["step"]
    out: dict[str, Any] = {"losses": [], "norms": [], "grads": {}, "loads": []}
    for step in range(start, options["steps"]):
        batch = windows(recipe, step).chunk(world)[rank].chunk(recipe.layout.accumulation)
        total = torch.zeros(())
        for window in batch:
            losses = engine.micro_step(
                window,
                ahead_weight=multi_token_weight(step, recipe.multi_token),
                alpha=recipe.balance.aux_loss_alpha,
            )
            total += losses.total.detach() / len(batch)
        if step == 0 and recipe.precision == "fp32":
            for name, parameter in engine.model.named_parameters():
                out["grads"][name] = safe_get_full_grad(parameter).clone()
        torch.distributed.all_reduce(total)
        out["losses"].append(total.item() / world)
        out["norms"].append(engine.step(learning_rate(step, recipe.schedule)))
        loads = collect_loads(engine.routings())
        update_biases(engine.routing_biases(), loads, bias_speed(step, recipe.balance))
        out["loads"].append(loads)
        if options.get("save_at") == step + 1:
            engine.save(Path(folder), options["save"], {"step": step + 1})
    out["weights"] = dict(engine.full_weights())
    out["router_calls"] = [r.calls for r in engine.routings()]
    out["expert_calls"] = engine.expert_calls()
    torch.save(out, f"{folder}/{options['name']}-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
