"""Linear and grouped products in 8 bits, with their three products (output, input's and weight's gradient).

What a backend must do is `Arithmetic`; `reference.py`, `scaled_mm.py` and `transformer_engine.py` do it.
Shapes: N rows sorted by expert, E experts, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Arithmetic(Protocol):
    """The products of one backend. Rows up to `ends_E[e]` (int32, increasing, the last one N) and from the end before
    belong to matrix e. Results have the dtype of the rows, weight gradients that of the weight."""

    name: str

    def forward(self, x_NI: Tensor, w_EOI: Tensor, ends_E: Tensor, *, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """-> [N, O], and with `keep` what `backward` needs of the rows, in 8 bits."""

    def backward(
        self, dy_NO: Tensor, w_EOI: Tensor, kept: tuple[Tensor, ...], ends_E: Tensor, *, inputs: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """-> gradients of the rows (if wanted: `inputs`) and of the weight (if something was kept)."""


class Fp8Products:
    """`Products` by the arithmetic of a backend."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic

    def linear(self, x: Tensor, weight_OI: Tensor) -> Tensor:
        """See `Products`."""
        rows = x.numel() // x.shape[-1]
        end = torch.full((1,), rows, dtype=torch.int32, device=x.device)
        out = _product(x.reshape(rows, x.shape[-1]), weight_OI, end, self.arithmetic)
        return out.view(*x.shape[:-1], weight_OI.shape[0])

    def grouped(self, rows_NI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
        """See `Products`."""
        return _product(rows_NI, weight_EOI, ends_E, self.arithmetic)


def _product(rows: Tensor, weight: Tensor, ends: Tensor, arithmetic: Arithmetic) -> Tensor:
    keep = torch.is_grad_enabled() and weight.requires_grad
    out: Tensor = _Product.apply(rows, weight, ends, arithmetic, keep)  # type: ignore[no-untyped-call]
    return out


class _Product(torch.autograd.Function):
    """Saves the rows as 8 bits, and the weight as the parameter itself, not as a view or a cast of it: ZeRO-3 frees
    its values after the forward pass and gathers them again into the same object."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor, arithmetic: Arithmetic, keep: bool) -> Tensor:  # noqa: ANN401
        y, kept = arithmetic.forward(x, _stacked(weight), ends, keep=keep)
        ctx.arithmetic = arithmetic
        ctx.save_for_backward(weight, ends, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        weight, ends, *kept = ctx.saved_tensors
        inputs = ctx.needs_input_grad[0]
        dx, dw = ctx.arithmetic.backward(dy, _stacked(weight), tuple(kept), ends, inputs=inputs)
        return dx, None if dw is None else dw.view_as(weight), None, None, None


def _stacked(weight: Tensor) -> Tensor:
    """[O, I] is one expert."""
    return weight if weight.ndim == 3 else weight.unsqueeze(0)
