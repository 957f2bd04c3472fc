"""Dispatch to experts against a loop over tokens and their experts."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recipes import TINY
from torch import Tensor

from model.config import ModelConfig
from model.moe import MoE


def moe_layer(config: ModelConfig, seed: int) -> MoE:
    layer = MoE(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    layer.gate.routing.sequence_length = 1
    return layer


def slow_moe(layer: MoE, x_BSD: Tensor) -> Tensor:
    """One token after the other, one expert after the other, whole matrices only."""
    config, inner = layer.gate.routing.config, layer.experts.down_proj.shape[2]
    out = []
    for token in x_BSD.reshape(-1, x_BSD.shape[-1]):
        scores = torch.sigmoid(layer.gate.weight @ token)
        biased = scores.detach() + layer.gate.e_score_correction_bias
        size = config.n_routed_experts // config.n_group
        worth = {
            g: sum(sorted(biased[g * size : (g + 1) * size].tolist())[-2:]) if size > 1 else 0.0
            for g in range(config.n_group)
        }
        groups = sorted(worth, key=lambda g: -worth[g])[: config.topk_group]
        allowed = [g * size + j for g in groups for j in range(size)]
        chosen = sorted(allowed, key=lambda e: -biased[e].item())[: config.num_experts_per_tok]
        total = sum(scores[e] for e in chosen)
        y = torch.zeros_like(token)
        for e in chosen:
            gate, up = layer.experts.gate_up_proj[e][:inner], layer.experts.gate_up_proj[e][inner:]
            expert = layer.experts.down_proj[e] @ (F.silu(gate @ token) * (up @ token))
            y = y + config.routed_scaling_factor * scores[e] / total * expert
        if layer.shared_experts is not None:
            s = layer.shared_experts
            y = y + s.down_proj.weight @ (F.silu(s.gate_proj.weight @ token) * (s.up_proj.weight @ token))
        out.append(y)
    return torch.stack(out).view_as(x_BSD)


def compare(layer: MoE, x: Tensor) -> None:
    """Outputs, and gradients of all weights and of the input."""
    x = x.clone().requires_grad_()
    inputs = [x, *layer.parameters()]
    pick = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    ours, reference = layer(x), slow_moe(layer, x)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    mine = torch.autograd.grad((ours * pick).sum(), inputs)
    theirs = torch.autograd.grad((reference * pick).sum(), inputs)
    for name, a, b in zip(["x", *(n for n, _ in layer.named_parameters())], mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    groups=st.sampled_from([1, 2, 4]),
    k=st.integers(1, 4),
    shared=st.integers(0, 2),
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_dispatch_equals_a_loop_over_tokens(
    groups: int, k: int, shared: int, batch: int, length: int, seed: int
) -> None:
    config = TINY.replace(
        n_group=groups, topk_group=max(1, groups // 2), num_experts_per_tok=k, n_shared_experts=shared, hidden_size=20
    )
    layer = moe_layer(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    layer.gate.e_score_correction_bias.copy_(torch.randn(8, generator=generator) * 0.1)
    compare(layer, torch.randn(batch, length, 20, generator=generator))


@pytest.mark.parametrize("favourite", [0, 3, 7])
def test_all_tokens_to_one_expert(favourite: int) -> None:
    """The others get no token; 37 rows are no multiple of the alignment, 40 are."""
    config = TINY.replace(n_group=1, topk_group=1, num_experts_per_tok=1, hidden_size=20)
    layer = moe_layer(config, 5)
    layer.gate.e_score_correction_bias[favourite] = 10.0
    for tokens in (37, 40):
        x = torch.randn(1, tokens, 20, generator=torch.Generator().manual_seed(tokens))
        layer.gate.routing.load = None
        compare(layer, x)
        load = layer.gate.routing.load
        assert load is not None
        assert load.tolist() == [tokens if e == favourite else 0 for e in range(8)]
        layer.zero_grad()
        layer(x).sum().backward()
        grad = layer.experts.down_proj.grad
        assert grad is not None
        assert grad[favourite].abs().max() > 0
        assert all(grad[e].abs().max() == 0 for e in range(8) if e != favourite)


def test_some_experts_without_tokens() -> None:
    config = TINY.replace(n_group=1, topk_group=1, num_experts_per_tok=2, hidden_size=20)
    layer = moe_layer(config, 6)
    layer.gate.e_score_correction_bias[torch.tensor([0, 4, 7])] = -10.0  # first, middle, last
    x = torch.randn(2, 11, 20, generator=torch.Generator().manual_seed(1))
    compare(layer, x)
    load = layer.gate.routing.load
    assert load is not None
    assert [e for e in range(8) if load[e] == 0] == [0, 4, 7]


def test_no_token_is_dropped_however_uneven_and_none_sees_another() -> None:
    layer = moe_layer(TINY.replace(n_group=1, topk_group=1), 7)
    layer.gate.e_score_correction_bias[2] = 1.0  # one expert in every token's choice
    x = torch.randn(1, 65, 32, generator=torch.Generator().manual_seed(2))
    whole = layer(x)[0]
    for t in range(65):
        torch.testing.assert_close(layer(x[:, t : t + 1])[0, 0], whole[t], rtol=1e-4, atol=1e-6)


def test_bf16_stays_bf16_and_close() -> None:
    layer = moe_layer(TINY.replace(n_group=1, topk_group=1), 8)
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(3)).bfloat16().float()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())
        expected = layer(x)
        low = layer.to(torch.bfloat16)(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).abs().max() < 0.02 * expected.abs().max()
