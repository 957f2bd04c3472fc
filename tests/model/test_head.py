"""Cross-entropy in chunks against torch's on whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import head as module
from model.head import Asked, Head


def asked_of(head: Head, h: Tensor, wanted: Tensor) -> Asked:
    found = head(h, wanted)
    assert isinstance(found, Asked)
    return found


def made(dtype: torch.dtype = torch.float32) -> tuple[Head, Tensor, Tensor]:
    """A head of 40 words and 3 x 7 tokens, which lie apart in memory."""
    generator = torch.Generator().manual_seed(0)
    head = Head(24, 40)
    with torch.no_grad():
        head.weight.copy_(torch.randn(40, 24, generator=generator))
    h = torch.randn(7, 3, 24, generator=generator).to(dtype).transpose(0, 1)
    return head.to(dtype), h, torch.randint(0, 40, (3, 8), generator=generator)[:, 1:]


@pytest.mark.parametrize("rows", [1, 4, 7, 20, 21, 500])
def test_chunks_equal_whole_logits(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, whatever the chunk; the loss is scaled, as accumulation does."""
    monkeypatch.setattr(module, "MIN_ROWS", 1)
    monkeypatch.setattr(module, "CHUNK", {"cpu": 40 * rows, "cuda": 0})
    head, h, wanted = made()
    h.requires_grad_()
    found = asked_of(head, h, wanted)
    logits = F.linear(h, head.weight)
    each = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    torch.testing.assert_close(found.each, each)
    torch.testing.assert_close(found.loss, each.mean())
    assert torch.equal(found.right, logits.argmax(-1) == wanted)
    inputs = (h, head.weight)
    mine = torch.autograd.grad(found.loss * 3 / 7, inputs)
    theirs = torch.autograd.grad(each.mean() * 3 / 7, inputs)
    for a, b in zip(mine, theirs, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b)


def test_softmax_of_bf16_is_fp32() -> None:
    head, h, wanted = made(torch.bfloat16)
    h.requires_grad_()
    found = asked_of(head, h, wanted)
    each = F.cross_entropy(F.linear(h, head.weight).float().transpose(1, 2), wanted, reduction="none")
    torch.testing.assert_close(found.each, each)
    for a, b in zip(
        torch.autograd.grad(found.loss, (h, head.weight)),
        torch.autograd.grad(each.mean(), (h, head.weight)),
        strict=True,
    ):
        assert a.dtype == torch.bfloat16
        assert (a - b).abs().max() <= 0.01 * b.abs().max()


def test_right_is_the_highest_logit() -> None:
    head, h, _ = made()
    best = F.linear(h, head.weight).argmax(-1)
    assert asked_of(head, h, best).right.all()
    assert not asked_of(head, h, (best + 1) % 40).right.any()


def test_logits_far_from_zero_do_not_overflow() -> None:
    head, h, wanted = made()
    found = asked_of(head, h * 1000, wanted)
    expected = F.cross_entropy(F.linear(h * 1000, head.weight).transpose(1, 2), wanted)
    torch.testing.assert_close(found.loss, expected)


def test_without_gradients_none_are_made() -> None:
    head, h, wanted = made()
    with torch.no_grad():
        found = asked_of(head, h, wanted)
    assert not found.loss.requires_grad
    torch.testing.assert_close(found.loss, asked_of(head, h, wanted).loss.detach())


def test_a_second_backward_says_why_it_cannot() -> None:
    head, h, wanted = made()
    loss = asked_of(head, h, wanted).loss
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="one time only"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_the_gradient_of_many_chunks_is_added_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_ROWS", 1)
    monkeypatch.setattr(module, "CHUNK", {"cpu": 40, "cuda": 0})
    generator = torch.Generator().manual_seed(0)
    head = Head(8, 40).to(torch.bfloat16)
    h = torch.randn(1, 2000, 8, generator=generator).to(torch.bfloat16)
    wanted = torch.randint(0, 3, (1, 2000), generator=generator)
    (mine,) = torch.autograd.grad(asked_of(head, h, wanted).loss, head.weight)
    exact = head.weight.detach().double().requires_grad_()
    F.cross_entropy(F.linear(h.double(), exact)[0], wanted[0]).backward()
    assert exact.grad is not None
    error = (mine.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 0.01, error


def test_a_second_derivative_is_refused_not_wrong() -> None:
    head, h, wanted = made()
    h.requires_grad_()
    (grad,) = torch.autograd.grad(asked_of(head, h, wanted).loss.square(), h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()  # type: ignore[no-untyped-call]
