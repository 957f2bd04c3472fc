"""What a precision's name means. Imports no torch.

| policy | tensors        | products of linear layers and experts          |
|--------|----------------|------------------------------------------------|
| fp32   | FP32           | FP32                                           |
| bf16   | BF16           | BF16                                           |
| fp8    | BF16 (CPU: FP32) | 8 bits: E4M3 in blocks, see `blocks.py`      |

Master weights are FP32 always; moments are FP32 or BF16, see `model.optim`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.recipe import PrecisionName


@dataclass(frozen=True)
class Policy:
    """One row of the table."""

    name: PrecisionName
    tensors: Literal["fp32", "bf16"]
    """Weights as layers see them, activations and gradients."""
    eight_bits: bool
    """Whether the products that follow the policy are taken in 8 bits."""


def policy_of(name: PrecisionName, device: str) -> Policy:
    """On CPUs the 8-bit policy keeps FP32 around its products: many of them take BF16 products an order of magnitude
    slower, and on a development machine the effect of 8 bits can be seen by itself."""
    if name == "fp8":
        return Policy(name, "bf16" if device == "cuda" else "fp32", eight_bits=True)
    return Policy(name, name, eight_bits=False)
