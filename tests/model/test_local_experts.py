"""Experts of one process in one piece against a loop over tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.local import Choice, applies, routed
from model.precision import HIGH
from model.precision.fp8 import Fp8Products
from model.precision.reference import Reference

T, D, INNER, E, K = 13, 6, 5, 7, 2


def plain(x: Tensor, weights: Tensor, chosen: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    rows = []
    for t in range(T):
        y = torch.zeros(D)
        for j in range(K):
            e = int(chosen[t, j])
            y = y + weights[t, j] * (down[e] @ (F.silu(gate[e] @ x[t]) * (up[e] @ x[t])))
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("allowed", [list(range(E)), [1, 3, 4], [0, 6]])
def test_values_and_gradients(allowed: list[int]) -> None:
    """Also where experts get no token: the first, the last, one between."""
    generator = torch.Generator().manual_seed(len(allowed))
    chosen = torch.stack(
        [torch.tensor(allowed)[torch.randperm(len(allowed), generator=generator)[:K]] for _ in range(T)]
    )
    x = torch.randn(D, T, generator=generator).t().requires_grad_()  # not contiguous
    weights = torch.rand(T, K, generator=generator, requires_grad=True)
    joined = torch.randn(E, 2 * INNER, D, generator=generator, requires_grad=True)
    down = torch.randn(E, D, INNER, generator=generator, requires_grad=True)
    gate, up = joined.chunk(2, dim=1)
    counts = torch.bincount(chosen.flatten(), minlength=E).int()
    ours = routed(x, Choice(weights, chosen, counts), gate, up, down)
    theirs = plain(x, weights, chosen, gate, up, down)
    torch.testing.assert_close(ours, theirs)
    pick, inputs = torch.randn(T, D, generator=generator), (x, weights, joined, down)
    mine = torch.autograd.grad((ours * pick).sum(), inputs, retain_graph=True)
    reference = torch.autograd.grad((theirs * pick).sum(), inputs)
    for a, b in zip(mine, reference, strict=True):
        assert b.abs().max() > 0.1
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for e in set(range(E)) - set(allowed):
        assert not mine[2][e].any()
        assert not mine[3][e].any()


def test_in_bf16_as_in_fp32_but_for_rounding() -> None:
    """Sums over many experts are not of BF16: the error does not grow with K."""
    experts, k, tokens, hidden, inner = 40, 32, 64, 48, 24
    generator = torch.Generator().manual_seed(0)
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:k] for _ in range(tokens)])
    counts = torch.bincount(chosen.flatten(), minlength=experts).int()
    shapes = (tokens, hidden), (experts, inner, hidden), (experts, inner, hidden), (experts, hidden, inner)
    tensors = [(torch.randn(shape, generator=generator) * shape[-1] ** -0.5).bfloat16() for shape in shapes]
    weights, pick = torch.rand(tokens, k, generator=generator), torch.randn(tokens, hidden, generator=generator)

    def run(dtype: torch.dtype) -> list[Tensor]:
        x, gate, up, down = (t.to(dtype).requires_grad_() for t in tensors)
        gates = weights.clone().requires_grad_()
        out = routed(x, Choice(gates, chosen, counts), gate, up, down)
        found = torch.autograd.grad((out.float() * pick.bfloat16().float()).sum(), (x, gates, gate, up, down))
        assert [t.dtype for t in (out, *found)] == [dtype, dtype, torch.float32, dtype, dtype, dtype]
        return [out, *found]

    for low, high in zip(run(torch.bfloat16), run(torch.float32), strict=True):
        assert 0 < (low.float() - high).norm() < 0.006 * high.norm()


def test_only_for_high_products_of_fp32_or_bf16_on_a_cpu() -> None:
    x, low = torch.zeros(2, 3), Fp8Products(Reference())
    assert applies(x, HIGH)
    assert not applies(x, low)
    assert applies(x.bfloat16(), HIGH)
    assert not applies(x.bfloat16(), low)
    assert not applies(x.double(), HIGH)
    assert not applies(x.to("meta"), HIGH)


def test_a_second_derivative_is_refused() -> None:
    x, weights = torch.randn(T, D, requires_grad=True), torch.rand(T, 1)
    chosen, matrices = torch.zeros(T, 1, dtype=torch.long), [torch.randn(1, *size) for size in ((INNER, D),) * 2]
    out = routed(x, Choice(weights, chosen, torch.tensor([T])), *matrices, torch.randn(1, D, INNER))
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
