"""AdamW's parameter groups and one step by hand."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from support.recipes import TINY
from torch import Tensor, nn

from model.optim import MOMENTS, Bf16MomentsAdamW, build_optimizer, parameter_groups
from model.recipe import Optimizer
from model.transformer import CausalLM


def test_everything_once_and_only_matrices_decay() -> None:
    model = CausalLM(TINY)
    groups = parameter_groups(model, 0.1)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_norm = "norm" in name
        assert decay[id(parameter)] == (0.0 if is_norm else 0.1), name
    assert not any(id(buffer) in decay for buffer in model.buffers())  # no gradient trains a selection bias
    assert [group["name"] for group in groups] == ["matrices", "vectors"]


def test_biases_do_not_decay_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].weight.requires_grad_(False)
    matrices, vectors = parameter_groups(model, 0.5)
    assert [p.shape for p in matrices["params"]] == [(4, 3)]
    assert [p.shape for p in vectors["params"]] == [(4,), (2,)]
    assert vectors["weight_decay"] == 0.0


def test_two_steps_by_hand() -> None:
    """Loshchilov and Hutter's AdamW with the paper's settings, decay decoupled from the gradient."""
    parameter = nn.Parameter(torch.tensor([[2.0]]))
    settings = Optimizer()
    assert (settings.beta1, settings.beta2, settings.weight_decay) == (0.9, 0.95, 0.1)
    groups = [{"params": [parameter], "weight_decay": settings.weight_decay}]
    optimizer = build_optimizer(groups, settings, 0.01)
    x, m, v = 2.0, 0.0, 0.0
    for t, gradient in enumerate((0.5, -3.0), start=1):
        parameter.grad = torch.tensor([[gradient]])
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient
        v = 0.95 * v + 0.05 * gradient**2
        x -= 0.01 * 0.1 * x
        x -= 0.01 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.95**t)) + 1e-8)
        assert parameter.item() == pytest.approx(x, rel=1e-6)


def _trained(build: Callable[..., torch.optim.Optimizer], steps: int) -> tuple[Tensor, torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(64, 8, generator=generator))
    optimizer = build([{"params": [parameter], "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(steps):
        parameter.grad = torch.randn(64, 8, generator=generator) * 1e-3
        optimizer.step()
    return parameter.detach(), optimizer


def test_moments_in_bf16_give_nearly_the_same_updates() -> None:
    theirs, _ = _trained(torch.optim.AdamW, 40)
    ours, optimizer = _trained(Bf16MomentsAdamW, 40)
    start, _ = _trained(torch.optim.AdamW, 0)
    far = (ours - theirs).norm() / (theirs - start).norm()
    assert 0 < far < 0.01
    (state,) = optimizer.state.values()
    assert {str(state[name].dtype) for name in MOMENTS} == {"torch.bfloat16"}
    assert state["step"].item() == 40


def test_moments_that_bf16_holds_exactly_give_the_same_update() -> None:
    """The first moments after one gradient of 1 are 0.1 and 0.05; only what is stored is rounded, so one step of each
    is equal."""
    theirs, _ = _trained(torch.optim.AdamW, 1)
    ours, _ = _trained(Bf16MomentsAdamW, 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_each_optimizer_goes_on_from_the_state_of_the_other() -> None:
    _, low = _trained(Bf16MomentsAdamW, 3)
    _, high = _trained(torch.optim.AdamW, 3)
    for source, target, kind in ((low, high, torch.float32), (high, low, torch.bfloat16), (low, low, torch.bfloat16)):
        saved = copy.deepcopy(source.state_dict())
        target.load_state_dict(copy.deepcopy(saved))  # torch keeps the very tensor of the step
        (state,) = target.state.values()
        for name in MOMENTS:
            assert state[name].dtype == kind
            torch.testing.assert_close(state[name].float(), saved["state"][0][name].float(), rtol=2**-8, atol=0)
        (parameter,) = target.param_groups[0]["params"]
        parameter.grad = torch.ones_like(parameter)
        target.step()
        assert state["step"].item() == saved["state"][0]["step"].item() + 1


def test_the_setting_decides_where_moments_are_stored() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))]}]
    assert type(build_optimizer(groups, Optimizer(moments_precision="bf16"), 0.1)) is Bf16MomentsAdamW
    usual = build_optimizer(groups, Optimizer(), 0.1)
    assert type(usual) is torch.optim.AdamW
    assert usual.defaults["fused"]
    elsewhere = [{"params": [nn.Parameter(torch.zeros(2, device="meta"))]}]
    assert not build_optimizer(elsewhere, Optimizer(), 0.1).defaults["fused"]
