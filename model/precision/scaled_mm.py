"""The 8-bit products by torch's `scaled_mm` with block scales (cuBLASLt; torch 2.11 or newer, compute capability 9.0).

Quantised by `blocks.py`, in plain torch operations; one product for each expert, whose number of rows the host must
know. Layouts of scales as `scaled_mm` checks them: 1x128 with the rows next to each other, 128x128 transposed, with the
contraction filled up to a multiple of four blocks. Shapes as in `fp8.py`; P rows of `blocks.aligned`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

from model.precision.blocks import BLOCK, aligned, aligned_parts, quantise_rows, quantise_weight, whole_blocks


class ScaledMm:
    """`Arithmetic` on Hopper, without Transformer Engine."""

    name = "torch scaled_mm"

    def forward(self, x_NI: Tensor, w_EOI: Tensor, ends_E: Tensor, *, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Arithmetic`."""
        rows, place_N = aligned(x_NI, ends_E)
        y = _by_matrix(rows, *quantise_weight(whole_blocks(w_EOI)), aligned_parts(len(x_NI), ends_E))
        return y[place_N, : w_EOI.shape[1]], quantise_rows(rows.T) if keep else ()

    def backward(
        self, dy_NO: Tensor, w_EOI: Tensor, kept: tuple[Tensor, ...], ends_E: Tensor, *, inputs: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """See `Arithmetic`."""
        rows, place_N = aligned(dy_NO, ends_E)
        parts, dx, dw = aligned_parts(len(dy_NO), ends_E), None, None
        if inputs:
            q, scale = quantise_weight(whole_blocks(w_EOI))
            whole = _by_matrix(rows, q.transpose(1, 2).contiguous(), scale.transpose(1, 2), parts)
            dx = whole[place_N, : w_EOI.shape[2]]
        if kept:
            (left, scale_left), (right, scale_right) = quantise_rows(rows.T), kept
            of_experts = [
                _over_rows(left, scale_left, right, scale_right, first, end, dy_NO.dtype) for first, end in parts
            ]
            dw = torch.stack(of_experts)[:, : w_EOI.shape[1], : w_EOI.shape[2]].to(w_EOI.dtype)
        return dx, dw


def _by_matrix(rows_PK: Tensor, q_EMK: Tensor, scale_E: Tensor, parts: list[tuple[int, int]]) -> Tensor:
    """Each expert's rows times its matrix, [P, M]."""
    q, scale = quantise_rows(rows_PK)
    out = rows_PK.new_zeros(rows_PK.shape[0], q_EMK.shape[1])
    for (first, end), matrix, of_matrix in zip(parts, q_EMK, scale_E, strict=True):
        if end > first:
            out[first:end] = F.scaled_mm(
                q[first:end],
                matrix.t(),
                _rows_together(scale[first:end]),
                ScalingType.BlockWise1x128,
                F.pad(of_matrix, (0, -of_matrix.shape[1] % 4)).contiguous().t(),
                ScalingType.BlockWise128x128,
                output_dtype=rows_PK.dtype,
            )
    return out


def _over_rows(
    left_OP: Tensor, scale_O: Tensor, right_IP: Tensor, scale_I: Tensor, first: int, end: int, dtype: torch.dtype
) -> Tensor:
    """[O, I], the sum over one expert's rows."""
    if end == first:
        return scale_O.new_zeros(left_OP.shape[0], right_IP.shape[0], dtype=dtype)
    blocks = slice(first // BLOCK, end // BLOCK)
    return F.scaled_mm(
        left_OP[:, first:end].contiguous(),
        right_IP[:, first:end].contiguous().t(),
        _rows_together(scale_O[:, blocks]),
        ScalingType.BlockWise1x128,
        _rows_together(scale_I[:, blocks]),
        ScalingType.BlockWise1x128,
        output_dtype=dtype,
    )


def _rows_together(scale: Tensor) -> Tensor:
    """The same numbers [rows, blocks] with stride 1 over the rows."""
    return scale.t().contiguous().t()
