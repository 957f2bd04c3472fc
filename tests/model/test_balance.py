"""The bias update: its rule, and what it does to a real little training run on skewed data."""

import pytest
import torch
from support.recipes import TINY
from torch import Tensor

from model.balance import balance_metrics, collect_loads, update_biases
from model.loss import training_losses
from model.optim import build_optimizer, parameter_groups
from model.recipe import Optimizer
from model.router import Routing
from model.transformer import CausalLM


def test_each_bias_moves_by_gamma_against_its_load() -> None:
    loads = torch.tensor([[10, 0, 5, 5], [1, 1, 1, 5]])
    biases = [torch.tensor([0.5, -0.5, 0.25, 0.0]), torch.zeros(4)]
    update_biases(biases, loads, 0.001)
    torch.testing.assert_close(biases[0], torch.tensor([0.499, -0.499, 0.25, 0.0]))  # mean 5: two stay
    torch.testing.assert_close(biases[1], torch.tensor([0.001, 0.001, 0.001, -0.001]))  # mean 2


def test_gamma_zero_changes_nothing() -> None:
    bias = torch.tensor([0.5, -0.5])
    update_biases([bias], torch.tensor([[9, 1]]), 0.0)
    assert bias.tolist() == [0.5, -0.5]


def test_large_counts_are_compared_exactly() -> None:
    """One token more than the mean of 2**40: FP32 could not see it."""
    n = 2**40
    bias = torch.zeros(3)
    update_biases([bias], torch.tensor([[n + 1, n - 1, n]]), 0.01)
    torch.testing.assert_close(bias, torch.tensor([-0.01, 0.01, 0.0]))


def test_as_many_biases_as_layers() -> None:
    with pytest.raises(ValueError, match="zip"):
        update_biases([torch.zeros(2)], torch.tensor([[1, 1], [1, 1]]), 0.1)


def test_collecting_starts_counting_anew() -> None:
    routings = [Routing(TINY), Routing(TINY)]
    for i, routing in enumerate(routings):
        routing.load = torch.arange(8) + i
    loads = collect_loads(routings)
    assert loads.tolist() == [list(range(8)), list(range(1, 9))]
    assert [r.load for r in routings] == [None, None]
    with pytest.raises(AssertionError, match="no forward pass"):
        collect_loads(routings)


def test_metrics_by_hand() -> None:
    metrics = balance_metrics(torch.tensor([[4, 0, 4, 0], [2, 2, 2, 2]]))
    assert metrics["moe/cv"] == pytest.approx((1.0 + 0.0) / 2)  # standard deviation 2, mean 2
    assert metrics["moe/max_violation"] == pytest.approx((1.0 + 0.0) / 2)
    assert metrics["moe/dead_share"] == pytest.approx(2 / 8)


STEPS, LAST = 200, 20
VIOLATION_BOUND = 1.0
"""The busiest expert gets at most twice the mean; 3.0 would be all tokens to the same two of eight experts."""


def train_on_zipf(gamma: float) -> tuple[float, list[float]]:
    """Mean maximal violation of the last steps, and the losses. No auxiliary loss: only the biases balance."""
    config = TINY.replace(
        vocab_size=512,
        num_hidden_layers=2,
        num_nextn_predict_layers=0,
        n_group=1,
        topk_group=1,
        initializer_range=0.2,  # affinities far enough apart for the choice to be the router's, not the bias's
    )
    model = CausalLM(config)
    model.initialise(0)
    settings = Optimizer(grad_clip=1.0)
    optimizer = build_optimizer(parameter_groups(model, settings.weight_decay), settings, 1e-3)
    routings = [b.routing for b in model.blocks().values() if b.routing]
    biases = [b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")]
    zipf = 1.0 / torch.arange(1, config.vocab_size + 1, dtype=torch.float64) ** 0.8
    generator = torch.Generator().manual_seed(1)
    violations, losses = [], []
    for _ in range(STEPS):
        window = torch.multinomial(zipf, 8 * 33, replacement=True, generator=generator).view(8, 33)
        part = training_losses(model(window[:, :-1]), window, ahead_weight=0, alpha=0)
        optimizer.zero_grad()
        part.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loads: Tensor = collect_loads(routings)
        update_biases(biases, loads, gamma)
        violations.append(balance_metrics(loads)["moe/max_violation"])
        losses.append(part.total.item())
    return sum(violations[-LAST:]) / LAST, losses


def test_the_bias_update_balances_a_run_on_skewed_data() -> None:
    balanced, losses = train_on_zipf(gamma=0.003)
    unbalanced, other = train_on_zipf(gamma=0.0)
    assert losses[-1] < 0.85 * losses[0]  # both really train
    assert other[-1] < 0.85 * other[0]
    assert balanced < VIOLATION_BOUND, balanced
    with pytest.raises(AssertionError):
        assert unbalanced < VIOLATION_BOUND
