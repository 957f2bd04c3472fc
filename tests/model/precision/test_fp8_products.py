"""The products in 8 bits against sums over blocks in float64, with their gradients."""

from itertools import pairwise

import pytest
import torch
from support.recipes import TINY
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.experts import Experts
from model.precision import HIGH, Linear, use
from model.precision.blocks import E4M3
from model.precision.fp8 import Fp8Products
from model.precision.reference import Reference
from model.transformer import CausalLM

FP8 = Fp8Products(Reference())
ENDS = torch.tensor([8, 8, 150, 304], dtype=torch.int32)
"""One part of a block, none, one and a bit, one and a bit."""


def in_8_bits(block: Tensor) -> Tensor:
    """A block as FP8 hardware sees it, float64."""
    largest = block.abs().max().item()
    scale = 1.0
    if largest > 0:
        while largest / scale > 448:
            scale *= 2
        while largest / (scale / 2) <= 448:
            scale /= 2
    return (block / scale).to(E4M3).double() * scale


def by_blocks(x: Tensor, rows: int, columns: int) -> Tensor:
    """Each `rows` x `columns` block of a matrix in 8 bits."""
    strips = [
        torch.cat([in_8_bits(part) for part in strip.split(columns, 1)], 1) for strip in x.double().split(rows, 0)
    ]
    return torch.cat(strips)


def expected(x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> output, gradients of rows and weight, for one matrix."""
    matrix = by_blocks(w, 128, 128)
    y = by_blocks(x, 1, 128) @ matrix.T
    dx = by_blocks(dy, 1, 128) @ matrix
    dw = by_blocks(dy, 128, 1).T @ by_blocks(x, 128, 1)
    return y, dx, dw


def sample(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp2(torch.randint(-8, 8, (*shape[:-1], 1), generator=generator).float())
    return (torch.randn(shape, generator=generator) * size).to(dtype)


def near(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    """Within the rounding of a sum in FP32 and of the result; quantising itself moves results by 4 %."""
    far = (ours.double() - theirs).norm() / theirs.norm()
    assert far < {torch.float32: 1e-6, torch.bfloat16: 3e-3}[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(5, 8, 16), (128, 128, 128), (200, 136, 264)])
def test_one_matrix(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    x = sample(rows, inputs, seed=1, dtype=dtype).requires_grad_()
    w = sample(outputs, inputs, seed=2, dtype=dtype).requires_grad_()
    dy = sample(rows, outputs, seed=3, dtype=dtype)
    y = FP8.linear(x, w)
    y.backward(dy)  # type: ignore[no-untyped-call]
    for ours, theirs in zip((y, x.grad, w.grad), expected(x.detach(), w.detach(), dy), strict=True):
        assert ours is not None
        assert ours.dtype == dtype
        near(ours.detach(), theirs, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts(dtype: torch.dtype) -> None:
    x = sample(304, 136, seed=1, dtype=dtype).requires_grad_()
    w = sample(4, 72, 136, seed=2, dtype=dtype).requires_grad_()
    dy = sample(304, 72, seed=3, dtype=dtype)
    y = FP8.grouped(x, w, ENDS)
    y.backward(dy)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert w.grad is not None
    for expert, (start, end) in enumerate(pairwise([0, *ENDS.tolist()])):
        part = slice(start, end)
        theirs = expected(x.detach()[part], w.detach()[expert], dy[part]) if end > start else None
        if theirs is None:
            assert (w.grad[expert] == 0).all()
            continue
        for ours, right in zip((y[part], x.grad[part], w.grad[expert]), theirs, strict=True):
            near(ours.detach(), right, dtype)


def test_rows_in_any_shape_and_not_contiguous() -> None:
    x = sample(2, 40, 136, seed=1, dtype=torch.float32)
    w = sample(24, 136, seed=2, dtype=torch.float32)
    flat = FP8.linear(x.reshape(80, 136), w)
    assert torch.equal(FP8.linear(x, w), flat.view(2, 40, 24))
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(FP8.linear(turned, w), flat.view(2, 40, 24))
    assert torch.equal(FP8.linear(x, w.T.contiguous().T), flat.view(2, 40, 24))


def test_gradients_of_what_needs_none_are_not_computed() -> None:
    x, w = torch.randn(8, 16), torch.randn(16, 16)
    for of_x, of_w in ((True, False), (False, True)):
        rows, weight = x.clone().requires_grad_(of_x), w.clone().requires_grad_(of_w)
        FP8.linear(rows, weight).sum().backward()  # type: ignore[no-untyped-call]
        assert (rows.grad is not None) == of_x
        assert (weight.grad is not None) == of_w
    with torch.no_grad():
        assert not FP8.linear(x.requires_grad_(), w.requires_grad_()).requires_grad


def test_what_is_saved_is_8_bits_and_the_parameter_itself() -> None:
    """Not a copy nor a view of it: ZeRO-3 takes the values out of the parameter between forward and backward."""
    layer = Linear(256, 128)
    use(layer, FP8)
    saved: list[Tensor] = []
    x = torch.randn(384, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x * 1)
    assert any(t is layer.weight for t in saved)
    rows = [t for t in saved if t.numel() == x.numel()]
    assert [t.dtype for t in rows if t.dtype != torch.float32] == [E4M3]
    values = layer.weight.detach().clone()
    layer.weight.data = torch.empty(0)
    layer.weight.data = values
    y.sum().backward()
    assert layer.weight.grad is not None


def test_a_model_follows_the_policy_where_it_should() -> None:
    """Linear layers and experts do; embedding, head, router, norms and `eh_proj` do not."""
    model = CausalLM(TINY)
    model.initialise(0)
    called: list[str] = []

    class Spy(Reference):
        def forward(
            self, x_NI: Tensor, w_EOI: Tensor, ends_E: Tensor, *, keep: bool
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            called.append(str(tuple(w_EOI.shape[1:])))
            return super().forward(x_NI, w_EOI, ends_E, keep=keep)

    use(model, Fp8Products(Spy()))
    tokens = torch.randint(0, TINY.vocab_size, (2, 16))
    model(tokens, 1)
    attention, dense, experts = 5, 3, 3
    layers, moe = 4, 3
    assert len(called) == layers * attention + (layers - moe) * dense + moe * (experts + dense)


def test_the_loss_of_a_model_is_near_and_recomputation_changes_nothing() -> None:
    model = CausalLM(TINY)
    model.initialise(0)
    tokens = torch.randint(0, TINY.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))

    def gradients(recompute: bool) -> tuple[float, dict[str, Tensor]]:
        for block in model.blocks().values():
            block.recompute = recompute
        model.zero_grad()
        logits = model(tokens[:, :-1]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    high, exact = gradients(recompute=False)
    use(model, FP8)
    low, ours = gradients(recompute=False)
    again, recomputed = gradients(recompute=True)
    assert low == again
    assert low != high
    assert low == pytest.approx(high, rel=2e-3)
    for name, gradient in ours.items():
        assert torch.equal(gradient, recomputed[name]), name
    whole = torch.cat([g.flatten() for g in ours.values()]), torch.cat([g.flatten() for g in exact.values()])
    assert 0.005 < (whole[0] - whole[1]).norm() / whole[1].norm() < 0.2


def test_experts_whose_weight_is_a_part_of_a_parameter() -> None:
    """Gate and up are halves of one tensor in the plain model."""
    experts = Experts(TINY)
    torch.nn.init.normal_(experts.gate_up_proj)
    torch.nn.init.normal_(experts.down_proj)
    use(experts, FP8)
    counts = torch.full((TINY.n_routed_experts,), 8)
    x = torch.randn(8 * TINY.n_routed_experts, TINY.hidden_size, requires_grad=True)
    plain = experts(x, counts)
    kept = checkpoint(experts, x, counts, use_reentrant=False)
    assert isinstance(kept, Tensor)
    assert torch.equal(plain, kept)
    plain.sum().backward()
    assert experts.gate_up_proj.grad is not None
    assert (experts.gate_up_proj.grad.abs().sum((1, 2)) > 0).all()


def test_high_products_are_what_they_were() -> None:
    x, w = torch.randn(16, 8), torch.randn(1, 8, 8)
    assert torch.allclose(HIGH.grouped(x, w, torch.tensor([16], dtype=torch.int32)), x @ w[0].T, atol=1e-5)


def test_no_rows_give_no_rows() -> None:
    layer = Linear(8, 5)
    use(layer, Fp8Products(Reference()))
    assert layer(torch.zeros(2, 0, 8)).shape == (2, 0, 5)
