"""The seam between layers and arithmetic. Shapes: I inputs, O outputs, N rows sorted by expert, E experts."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class Products(Protocol):
    """The matrix products of a policy, each with its backward."""

    def linear(self, x: Tensor, weight_OI: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""

    def grouped(self, rows_NI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
        """Rows up to `ends_E[e]` (int32, increasing, the last one N) and from the end before, times expert e's matrix:
        -> [N, O]."""


class HighProducts:
    """In the precision of the tensors themselves."""

    def linear(self, x: Tensor, weight_OI: Tensor) -> Tensor:
        """See `Products`."""
        return F.linear(x, weight_OI)

    def grouped(self, rows_NI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
        """See `Products`."""
        return F.grouped_mm(rows_NI, weight_EOI.to(rows_NI.dtype).transpose(-2, -1), offs=ends_E)


HIGH: Products = HighProducts()


class Linear(nn.Linear):
    """A matrix without bias whose products follow the policy."""

    products: Products = HIGH

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return self.products.linear(x, self.weight)


def use(module: nn.Module, products: Products) -> int:
    """Let every part of `module` that follows the policy take these products. -> how many parts there are."""
    parts = [part for part in module.modules() if hasattr(type(part), "products")]
    for part in parts:
        part.products = products  # type: ignore[assignment]  # nn.Module declares tensors and modules only
    return len(parts)
