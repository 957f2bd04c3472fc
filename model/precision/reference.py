"""The 8-bit products by quantising and going back: the numbers of FP8 hardware on any device, without its speed.

Operands have at most four significant bits each and a power-of-two scale, so they are exact in BF16 and FP32; products
are summed in FP32. What remains different between backends is the order, and on Hopper the width, of that sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.precision.blocks import (
    E4M3,
    dequantise_rows,
    dequantise_tokens,
    dequantise_weight,
    quantise_rows,
    quantise_tokens,
    quantise_weight,
)


class Reference:
    """`Arithmetic` that every other backend is compared with."""

    name = "reference"
    fp8 = E4M3

    def forward(self, x_NI: Tensor, w_EOI: Tensor, ends_E: Tensor, *, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Arithmetic`."""
        y = grouped(self.rows(x_NI), self.weight(w_EOI, x_NI.dtype).transpose(1, 2), ends_E)
        return y, self.keep(x_NI, ends_E) if keep else ()

    def backward(
        self, dy_NO: Tensor, w_EOI: Tensor, kept: tuple[Tensor, ...], ends_E: Tensor, *, inputs: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """See `Arithmetic`."""
        dx = grouped(self.rows(dy_NO), self.weight(w_EOI, dy_NO.dtype), ends_E) if inputs else None
        if not kept:
            return dx, None
        dy, x = self.kept(self.keep(dy_NO, ends_E), ends_E, dy_NO.dtype), self.kept(kept, ends_E, dy_NO.dtype)
        return dx, by_group(dy, x, ends_E).to(w_EOI.dtype)

    def rows(self, x: Tensor) -> Tensor:
        """As the product over the last dimension sees them."""
        return dequantise_rows(*quantise_rows(x, self.fp8), x.dtype)

    def weight(self, w: Tensor, dtype: torch.dtype) -> Tensor:
        """As both products see it."""
        return dequantise_weight(*quantise_weight(w, self.fp8), dtype)

    def keep(self, x: Tensor, ends_E: Tensor) -> tuple[Tensor, ...]:
        """In 8 bits, for the product over tokens."""
        return quantise_tokens(x, ends_E, self.fp8)

    def kept(self, kept: tuple[Tensor, ...], ends_E: Tensor, dtype: torch.dtype) -> Tensor:
        """As the product over tokens sees them."""
        q, scale = kept
        return dequantise_tokens(q, scale, ends_E, dtype)


def grouped(rows_NK: Tensor, matrices_EKM: Tensor, ends_E: Tensor) -> Tensor:
    """Each group of rows times its matrix, [N, M]."""
    if len(matrices_EKM) == 1:
        return rows_NK @ matrices_EKM[0]
    return F.grouped_mm(rows_NK, matrices_EKM, offs=ends_E)


def by_group(left_NO: Tensor, right_NI: Tensor, ends_E: Tensor) -> Tensor:
    """Sum over each group's rows of their outer products, [E, O, I]."""
    if ends_E.numel() == 1:
        return (left_NO.T @ right_NI).unsqueeze(0)
    return F.grouped_mm(left_NO.T, right_NI, offs=ends_E)
