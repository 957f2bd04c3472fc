"""DeepSpeed with shared experts gives the same mathematics as one plain process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from support.engine_worker import windows, worker
from support.recipes import tiny_recipe

from model.balance import collect_loads, update_biases
from model.loss import training_losses
from model.optim import build_optimizer, parameter_groups
from model.recipe import Layout, Recipe
from model.schedule import bias_speed, learning_rate, multi_token_weight
from model.transformer import CausalLM

pytestmark = pytest.mark.processes
STEPS = 6


def distributed(folder: Path, recipe: Recipe, world: int = 2, **options: object) -> list[dict[str, Any]]:
    told: dict[str, Any] = {"name": "run", "steps": STEPS} | options
    mp.spawn(worker, (world, str(folder), recipe.model_dump_json(), told), nprocs=world)
    return [torch.load(folder / f"{told['name']}-{rank}.pt") for rank in range(world)]


def named(name: str) -> Callable[[str], str]:
    return lambda message: f"{name}: {message}"


def one_process(recipe: Recipe) -> dict[str, Any]:
    """The plain model on the whole batch, by torch alone."""
    model = CausalLM(recipe.model)
    model.initialise(recipe.seed)
    optimizer = build_optimizer(parameter_groups(model, recipe.optimizer.weight_decay), recipe.optimizer, 1.0)
    routings = [b.routing for b in model.blocks().values() if b.routing]
    biases = [b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")]
    out: dict[str, Any] = {"losses": [], "norms": [], "grads": {}, "loads": []}
    for step in range(STEPS):
        window = windows(recipe, step)
        weight = multi_token_weight(step, recipe.multi_token)
        output = model(window[:, :-1], recipe.model.num_nextn_predict_layers)
        losses = training_losses(output, window, ahead_weight=weight, alpha=recipe.balance.aux_loss_alpha)
        optimizer.zero_grad()
        losses.total.backward()
        if step == 0:
            out["grads"] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe.schedule)
        optimizer.step()
        out["losses"].append(losses.total.item())
        out["norms"].append(norm.item())
        loads = collect_loads(routings)
        update_biases(biases, loads, bias_speed(step, recipe.balance))
        out["loads"].append(loads)
    out["weights"] = model.state_dict()
    return out


def gradients_in_memory_names(ranks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Gather AutoEP's expert shards and rename, to compare with the plain model."""
    out = {}
    for name, grad in ranks[0]["grads"].items():
        prefix, _, leaf = name.rpartition(".")
        whole = (
            {part: torch.cat([r["grads"][f"{prefix}.{part}"] for r in ranks]) for part in ("w1", "w2", "w3")}
            if leaf in ("w1", "w2", "w3")
            else {}
        )
        if leaf == "w1":
            out[f"{prefix}.gate_up_proj"] = torch.cat((whole["w1"], whole["w3"]), dim=1)
        elif leaf == "w2":
            out[f"{prefix}.down_proj"] = whole["w2"]
        elif leaf != "w3":
            out[name.replace(".router.gate.", ".gate.")] = grad
    return out


@pytest.mark.parametrize(
    ("accumulation", "recompute"), [(1, "none"), (2, "none"), (1, "full")], ids=["plain", "accumulate", "recompute"]
)
def test_two_processes_equal_one(tmp_path: Path, accumulation: int, recompute: str) -> None:
    layout = Layout(
        world_size=2, expert_parallel=2, micro_batch=4 // accumulation, accumulation=accumulation, recompute=recompute
    )  # type: ignore[arg-type]
    recipe = tiny_recipe(layout=layout)
    expected = one_process(recipe)
    ranks = distributed(tmp_path, recipe)

    torch.testing.assert_close(ranks[0]["losses"], expected["losses"], rtol=0, atol=2e-6)
    torch.testing.assert_close(ranks[0]["norms"], expected["norms"], rtol=1e-4, atol=1e-5)
    gradients = gradients_in_memory_names(ranks)
    assert gradients.keys() == expected["grads"].keys()
    for name, grad in gradients.items():
        torch.testing.assert_close(
            grad, expected["grads"][name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    for ours, plain in zip(ranks[0]["loads"], expected["loads"], strict=True):
        assert torch.equal(ours, plain)  # counted once, also where activations are recomputed
    assert max(expected["norms"]) > recipe.optimizer.grad_clip, "clipping was not exercised"
    weights = ranks[0]["weights"]
    assert weights.keys() == expected["weights"].keys()
    for name, value in weights.items():
        torch.testing.assert_close(
            value, expected["weights"][name], rtol=0, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_our_router_and_experts_run_inside_autoep(tmp_path: Path) -> None:
    recipe = tiny_recipe(layout=Layout(world_size=2, expert_parallel=2, micro_batch=2, accumulation=2))
    for rank in distributed(tmp_path, recipe):
        # three layers: one dense, two MoE, and the prediction module's MoE
        assert rank["router_calls"] == [2 * STEPS] * 3
        assert rank["expert_calls"] == [2 * STEPS] * 3


def test_resume_on_the_same_topology_is_exact(tmp_path: Path) -> None:
    recipe = tiny_recipe(layout=Layout(world_size=2, expert_parallel=2, micro_batch=4, accumulation=1))
    straight = distributed(tmp_path, recipe, name="straight", save_at=3, save="step-3")
    resumed = distributed(tmp_path, recipe, name="resumed", load="step-3")
    for a, b in zip(straight, resumed, strict=True):
        assert a["losses"][3:] == b["losses"]
        for name, value in a["weights"].items():
            assert torch.equal(value, b["weights"][name]), name
    biases = [v for n, v in resumed[0]["weights"].items() if n.endswith("e_score_correction_bias")]
    assert all(v.abs().max() > 0 for v in biases), "a zero bias could not show that it was restored"


def test_bf16_stays_close_to_fp32(tmp_path: Path) -> None:
    layout = Layout(world_size=2, expert_parallel=2, micro_batch=4, accumulation=1)
    expected = one_process(tiny_recipe(layout=layout))
    ranks = distributed(tmp_path, tiny_recipe(layout=layout, precision="bf16"))
    torch.testing.assert_close(ranks[0]["losses"], expected["losses"], rtol=1e-2, atol=0)
    assert ranks[0]["losses"] != expected["losses"]
