"""Attention in blocks against torch's kernels on the same projections."""

import pytest
import torch
from support.recipes import TINY
from torch import Tensor

from model import attend as module
from model.attend import Attend
from model.mla import LatentAttention
from model.rope import rotation
from model.transformer import document_mask

C = TINY


def compare(length: int, mask: Tensor | None = None) -> None:
    layer = LatentAttention(C)
    generator = torch.Generator().manual_seed(length)
    heads, nope, rope, value = C.num_attention_heads, C.qk_nope_head_dim, C.qk_rope_head_dim, C.v_head_dim
    sizes = (heads * (nope + rope), heads * (nope + value))
    queries, keys_values = (torch.randn(2, length, size, generator=generator, requires_grad=True) for size in sizes)
    joined = torch.randn(2, length, 3 + rope, generator=generator, requires_grad=True)
    inputs = (queries, keys_values, joined)
    cos, sin = rotation(C, length, torch.device("cpu"))
    pick = torch.randn(2, length, heads * value, generator=generator)
    found = [
        f(queries, keys_values, joined[..., 3:], cos, sin)  # a view, as in the layer
        for f in (
            lambda *a: Attend.apply(*a, mask, layer.heads),
            lambda *a: layer._attend(layer._placed(*a), mask),
            lambda *a: Attend.apply(*a, mask, layer.heads, True),
        )
    ]
    torch.testing.assert_close(*found[:2])
    mine, theirs, sparing = (torch.autograd.grad((out * pick).sum(), inputs) for out in found)
    assert torch.equal(found[0], found[2])
    assert all(map(torch.equal, mine, sparing)), "what is not kept is computed again as it was"
    for a, b in zip(mine, theirs, strict=True):
        assert b.abs().max() > 1e-2 or length == 1  # one key: queries and keys have no say
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [0, 512])
@pytest.mark.parametrize("length", [1, 7, 64, 65, 150])
def test_blocks_equal_whole_matrices(length: int, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With probabilities kept or computed again; lengths that the block divides and does not."""
    monkeypatch.setattr(module, "KEEP", keep)
    compare(length)


@pytest.mark.parametrize("keep", [0, 512])
def test_documents_are_kept_apart(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP", keep)
    numbers = torch.arange(100).repeat(2, 1)
    compare(100, document_mask(torch.stack((numbers[0] // 13, numbers[1] // 70))))


@pytest.mark.parametrize("keep", [0, 512])
def test_in_bf16_as_in_fp32_but_for_rounding(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several blocks, with documents; gradients are not summed in BF16."""
    monkeypatch.setattr(module, "KEEP", keep)
    length, of = 400, LatentAttention(C).heads
    generator = torch.Generator().manual_seed(1)
    sizes = of.heads * (of.nope + of.rope), of.heads * (of.nope + of.value), of.rope
    tensors = [torch.randn(3, length, size, generator=generator).bfloat16() for size in sizes]
    pick = torch.randn(3, length, of.heads * of.value, generator=generator).bfloat16()
    cos, sin = rotation(C, length, torch.device("cpu"))
    mask = document_mask(torch.stack([torch.arange(length) // size for size in (250, 130, 90)]))

    def run(dtype: torch.dtype) -> list[Tensor]:
        inputs = [t.to(dtype).requires_grad_() for t in tensors]
        out = Attend.apply(*inputs, cos, sin, mask, of)
        found = [out, *torch.autograd.grad((out.float() * pick.float()).sum(), inputs)]
        assert all(t.dtype == dtype for t in found)
        return found

    for low, high in zip(run(torch.bfloat16), run(torch.float32), strict=True):
        assert 0 < (low.float() - high).norm() < 0.0059 * high.norm()  # 0.0062 when sums are of BF16


def test_a_second_derivative_is_refused_not_wrong() -> None:
    """Probabilities that were kept are constants to autograd: it would leave out what comes through them."""
    of = LatentAttention(C).heads
    sizes = of.heads * (of.nope + of.rope), of.heads * (of.nope + of.value), of.rope
    inputs = [torch.randn(1, 5, size, requires_grad=True) for size in sizes]
    out = Attend.apply(*inputs, *rotation(C, 5, torch.device("cpu")), None, of)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
