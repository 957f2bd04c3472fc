"""AdamW's parameter groups and one step by hand."""

import math

import pytest
import torch
from support.recipes import TINY
from torch import nn

from model.optim import build_optimizer, parameter_groups
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
