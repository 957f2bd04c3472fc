"""Routing against the formulas of DeepSeek-V2 and V3, written out as loops over numbers."""

import math

import pytest
import torch
from support.recipes import TINY
from torch import Tensor

from model.config import ModelConfig
from model.router import Router, Routing, affinities, choose, gate_weights, recomputation, sequence_balance_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # transformers' imports


def routing_config(**changes: object) -> ModelConfig:
    base = {"n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "hidden_size": 24}
    return TINY.replace(**(base | changes))


def draw(config: ModelConfig, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, router weights and a bias that matters."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, config.hidden_size, generator=generator)
    weight = torch.randn(config.n_routed_experts, config.hidden_size, generator=generator) * 0.3
    bias = torch.randn(config.n_routed_experts, generator=generator) * 0.2
    return x, weight, bias


def slow_scores(x: list[float], weight: list[list[float]], scoring: str) -> list[float]:
    logits = [sum(a * b for a, b in zip(x, row, strict=True)) for row in weight]
    if scoring == "sigmoid":
        return [1 / (1 + math.exp(-z)) for z in logits]
    powers = [math.exp(z) for z in logits]
    return [p / sum(powers) for p in powers]


def slow_choice(scores: list[float], bias: list[float], config: ModelConfig) -> list[int]:
    """Experts of one token, best first."""
    c, size = config, config.n_routed_experts // config.n_group
    v3 = c.topk_method == "noaux_tc"
    ranked_by = [s + b for s, b in zip(scores, bias, strict=True)] if v3 else scores
    allowed = set(range(c.n_routed_experts))
    if c.topk_method != "greedy":
        worth = []
        for group in range(c.n_group):
            members = sorted(ranked_by[group * size : (group + 1) * size], reverse=True)
            worth.append(sum(members[:2]) if v3 else members[0])
        groups = sorted(range(c.n_group), key=lambda g: -worth[g])[: c.topk_group]
        allowed = {g * size + j for g in groups for j in range(size)}
    return sorted(allowed, key=lambda e: -ranked_by[e])[: c.num_experts_per_tok]


def slow_weights(scores: list[float], chosen: list[int], config: ModelConfig) -> list[float]:
    weights = [scores[e] for e in chosen]
    total = sum(weights) if config.norm_topk_prob else 1.0
    return [w / total * config.routed_scaling_factor for w in weights]


V3 = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 2.5}
V2 = {"scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 16.0}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(V3, id="v3"),
        pytest.param(V3 | {"n_group": 1, "topk_group": 1}, id="v3-one-group"),
        pytest.param(V3 | {"n_group": 8, "topk_group": 3, "num_experts_per_tok": 6}, id="v3-all-of-the-groups"),
        pytest.param(V3 | {"norm_topk_prob": False}, id="v3-not-renormalised"),
        pytest.param(V3 | {"scoring_func": "softmax"}, id="noaux-softmax"),
        pytest.param(V2 | {"topk_method": "greedy"}, id="v2-greedy"),
        pytest.param(V2 | {"topk_method": "group_limited_greedy"}, id="v2-groups"),
        pytest.param(V2 | {"topk_method": "group_limited_greedy", "norm_topk_prob": True}, id="v2-renormalised"),
    ],
)
def test_router_equals_the_formulas(changes: dict[str, object]) -> None:
    config = routing_config(**changes)
    x, weight, bias = draw(config, 60, seed=3)
    router = Router(config)
    with torch.no_grad():
        router.weight.copy_(weight)
        router.e_score_correction_bias.copy_(bias)
        weights, chosen, counts = router(x)
    tally = [0] * config.n_routed_experts
    for t in range(len(x)):
        scores = slow_scores(x[t].tolist(), weight.tolist(), config.scoring_func)
        expected = slow_choice(scores, bias.tolist(), config)
        assert chosen[t].tolist() == expected, t
        assert weights[t].tolist() == pytest.approx(slow_weights(scores, expected, config), rel=1e-4), t
        for e in expected:
            tally[e] += 1
    assert counts.tolist() == tally
    assert counts.dtype == torch.int32


def test_groups_bind_and_the_bias_decides_the_choice_but_not_the_weight() -> None:
    config = routing_config(**V3)
    x, weight, bias = draw(config, 200, seed=4)
    scores = affinities(x, weight, "sigmoid")
    free = choose(scores, bias, config.replace(n_group=1, topk_group=1))
    limited = choose(scores, bias, config)
    unbiased = choose(scores, torch.zeros_like(bias), config)
    assert (limited.sort().values != free.sort().values).any(1).float().mean() > 0.2
    assert (limited.sort().values != unbiased.sort().values).any(1).float().mean() > 0.2
    assert all(len({e // 4 for e in row}) <= config.topk_group for row in limited.tolist())
    # the same choice has the same weights, whatever bias led to it
    total = sum(scores[7, e].item() for e in limited[7])
    for k, e in enumerate(limited[7].tolist()):
        assert gate_weights(scores, limited, config)[7, k].item() == pytest.approx(2.5 * scores[7, e].item() / total)
    assert torch.allclose(gate_weights(scores, limited, config).sum(-1), torch.tensor(2.5))


def test_an_expert_of_a_lesser_group_loses_against_a_worse_one_of_a_chosen_group() -> None:
    config = routing_config(**V3, n_routed_experts=6, n_group=3, topk_group=1, num_experts_per_tok=2, hidden_size=8)
    scores = torch.tensor([[0.90, 0.01, 0.50, 0.50, 0.60, 0.30]])
    bias = torch.zeros(6)
    assert sorted(choose(scores, bias, config)[0].tolist()) == [2, 3]  # 1.0 together beats 0.91 and 0.90
    v2 = config.replace(topk_method="group_limited_greedy")
    assert sorted(choose(scores, bias, v2)[0].tolist()) == [0, 1]  # V2 looks at the best one only


@pytest.mark.parametrize("method", ["greedy", "group_limited_greedy"])
def test_v2_equals_transformers(method: str) -> None:
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    config = routing_config(**V2, topk_method=method)
    theirs = DeepseekV2TopkRouter(
        DeepseekV2Config(
            hidden_size=config.hidden_size,
            num_attention_heads=2,
            n_routed_experts=config.n_routed_experts,
            num_experts_per_tok=config.num_experts_per_tok,
            n_group=config.n_group,
            topk_group=config.topk_group,
            topk_method=method,
            routed_scaling_factor=config.routed_scaling_factor,
        )
    )
    x, weight, _ = draw(config, 100, seed=5)
    ours = Router(config)
    with torch.no_grad():
        ours.weight.copy_(weight)
        theirs.weight.copy_(weight)
        weights, chosen, _ = ours(x)
        _, their_weights, their_chosen = theirs(x)
    mine = torch.zeros(100, config.n_routed_experts).scatter_(1, chosen, weights)
    reference = torch.zeros(100, config.n_routed_experts).scatter_(1, their_chosen, their_weights)
    torch.testing.assert_close(mine, reference)


def test_the_gate_is_fp32_under_bf16() -> None:
    config = routing_config(**V3, hidden_size=256)
    x, weight, _ = draw(config, 500, seed=6)
    x, weight = x.bfloat16(), weight.bfloat16() * 0.2
    no_bias = torch.zeros(config.n_routed_experts)
    exact = (x.double() @ weight.double().T).sigmoid()
    expected = choose(exact, no_bias, config).sort().values
    low = choose((x @ weight.T).sigmoid().float(), no_bias, config).sort().values
    assert (low != expected).any(1).sum() > 10, "these inputs could not tell the precisions apart"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = affinities(x, weight, "sigmoid")
        with torch.no_grad():
            weights, chosen, _ = Routing(config).run(x, weight, no_bias)
    assert scores.dtype == weights.dtype == torch.float32
    assert (scores.double() - exact).abs().max() < 1e-6
    assert torch.equal(chosen.sort().values, expected)


# ---------------------------------------------------------------- auxiliary loss
def slow_balance_loss(scores: Tensor, experts_of: list[list[int]], length: int, k: int) -> Tensor:
    """Equations 17-20, one sequence, expert and token after the other."""
    experts = scores.shape[1]
    total = torch.zeros((), dtype=scores.dtype)
    sequences = scores.shape[0] // length
    for s in range(sequences):
        tokens = range(s * length, (s + 1) * length)
        for i in range(experts):
            visits = sum(1 for t in tokens if i in experts_of[t])
            f = experts / (k * length) * visits
            share = torch.zeros((), dtype=scores.dtype)
            for t in tokens:
                share = share + scores[t, i] / sum(scores[t, j] for j in range(experts))
            total = total + f * share / length
    return total / sequences


@pytest.mark.parametrize(("sequences", "length"), [(1, 7), (3, 5), (4, 1)])
def test_balance_loss_and_gradient_equal_the_equations(sequences: int, length: int) -> None:
    config = routing_config(**V3, n_routed_experts=8, num_experts_per_tok=2)
    x, weight, bias = draw(config, sequences * length, seed=7)
    weight.requires_grad_()
    routing = Routing(config)
    routing.sequence_length = length
    _, chosen, _ = routing.run(x, weight, bias)
    loss = routing.take_balance_loss(x)

    double = weight.detach().double().requires_grad_()
    scores = (x.double() @ double.T).sigmoid()
    # equation 18 asks for the K highest affinities: neither bias nor groups
    best = [sorted(range(8), key=lambda e, t=t: -scores[t, e].item())[:2] for t in range(len(x))]
    expected = slow_balance_loss(scores, best, length, 2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, weight)
    (reference,) = torch.autograd.grad(expected, double)
    assert reference.abs().max() > 0
    torch.testing.assert_close(gradient.double(), reference, rtol=1e-4, atol=1e-7)
    assert any(sorted(a) != sorted(b) for a, b in zip(best, chosen.tolist(), strict=True)), "bias had no effect"


def test_v2_balance_loss_counts_the_tokens_that_an_expert_gets() -> None:
    """arXiv 2405.04434, equation 24: the choice after the limit to groups."""
    config = routing_config(**V2, topk_method="group_limited_greedy")
    x, weight, bias = draw(config, 12, seed=8)
    routing = Routing(config)
    routing.sequence_length = 6
    _, chosen, _ = routing.run(x, weight.requires_grad_(), bias)
    scores = affinities(x, weight, "softmax").detach().double()
    expected = slow_balance_loss(scores, chosen.tolist(), 6, config.num_experts_per_tok)
    assert routing.take_balance_loss(x).item() == pytest.approx(expected.item(), rel=1e-5)


def test_balance_is_counted_within_each_sequence() -> None:
    """Two sequences that each use one expert only: balanced together, unbalanced one by one."""
    one, other = [0.98, 0.02], [0.02, 0.98]
    scores = torch.tensor([one] * 4 + [other] * 4)
    chosen = torch.tensor([[0]] * 4 + [[1]] * 4)
    assert sequence_balance_loss(scores, chosen, 4).item() == pytest.approx(2 * 0.98)
    assert sequence_balance_loss(scores, chosen, 8).item() == pytest.approx(1.0)


# ---------------------------------------------------------------- state
def test_loads_add_up_and_recomputation_and_evaluation_leave_them_alone() -> None:
    config = routing_config(**V3)
    x, weight, bias = draw(config, 10, seed=9)
    routing = Routing(config)
    routing.sequence_length = 10
    _, _, counts = routing.run(x, weight, bias)
    routing.run(x, weight, bias)
    assert routing.load is not None
    assert routing.load.tolist() == (2 * counts).tolist()
    assert routing.load.dtype == torch.int64
    with recomputation():
        again = routing.run(x, weight, bias)[2]
    with torch.no_grad():
        routing.run(x, weight, bias)
    assert again.tolist() == counts.tolist()
    assert routing.load.tolist() == (2 * counts).tolist()
    assert routing.calls == 2


def test_the_auxiliary_loss_is_taken_once() -> None:
    config = routing_config(**V3)
    x, weight, bias = draw(config, 10, seed=9)
    routing = Routing(config)
    routing.sequence_length = 10
    routing.run(x, weight, bias)
    assert routing.take_balance_loss(x).item() > 0
    assert routing.take_balance_loss(x).item() == 0
    with torch.no_grad():
        routing.run(x, weight, bias)
    assert routing.take_balance_loss(x).item() == 0
