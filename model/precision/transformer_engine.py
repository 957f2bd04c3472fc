"""The 8-bit products by Transformer Engine 2.20: its quantisers and matrix products, without its modules.

Its modules own their weights, which AutoEP and ZeRO must own; so only `Float8BlockQuantizer`, `general_gemm` and
`general_grouped_gemm` are called, from our autograd function. Scales are powers of two, as in `blocks.py`. Read with
2.20; importing it may raise anything but ImportError too (its meta package without kernels: RuntimeError).
Shapes as in `fp8.py`; P rows of `blocks.aligned`.
"""

from __future__ import annotations

from typing import Any

import torch
import transformer_engine_torch as tex
from torch import Tensor
from transformer_engine.pytorch.cpp_extensions.gemm import general_gemm, general_grouped_gemm
from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockQuantizer
from transformer_engine.pytorch.tensor.storage.float8_blockwise_tensor_storage import Float8BlockwiseQTensorStorage

from model.precision.blocks import aligned, aligned_parts, whole_blocks

E4M3 = tex.DType.kFloat8E4M3


class TransformerEngine:
    """`Arithmetic` on Hopper and newer."""

    name = "Transformer Engine"

    def forward(self, x_NI: Tensor, w_EOI: Tensor, ends_E: Tensor, *, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Arithmetic`."""
        rows, place_N = aligned(x_NI, ends_E)
        parts = aligned_parts(len(x_NI), ends_E)
        quantised = _parts(rows, parts, columnwise=keep)
        y = _by_matrix(_matrices(w_EOI), quantised, parts, rows, "TN")
        kept = [t for q in quantised for t in (q._columnwise_data, q._columnwise_scale_inv)] if keep else []
        return y[place_N, : w_EOI.shape[1]], tuple(kept)

    def backward(
        self, dy_NO: Tensor, w_EOI: Tensor, kept: tuple[Tensor, ...], ends_E: Tensor, *, inputs: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """See `Arithmetic`."""
        rows, place_N = aligned(dy_NO, ends_E)
        parts, dx, dw = aligned_parts(len(dy_NO), ends_E), None, None
        quantised = _parts(rows, parts, columnwise=bool(kept))
        if inputs:
            dx = _by_matrix(_matrices(w_EOI), quantised, parts, rows, "NN")[place_N, : w_EOI.shape[2]]
        if kept:
            x = [_columns(data, scale, dy_NO.dtype) for data, scale in zip(kept[::2], kept[1::2], strict=True)]
            shape = whole_blocks(w_EOI).shape
            whole = torch.zeros(shape, dtype=dy_NO.dtype, device=dy_NO.device)  # an expert without rows adds nothing
            full = [e for e, (first, end) in enumerate(parts) if end > first]
            for right, left, e in zip(x, quantised, full, strict=True):
                whole[e] = general_gemm(right, left, out_dtype=dy_NO.dtype, layout="NT", grad=True)[0]
            dw = whole[:, : w_EOI.shape[1], : w_EOI.shape[2]].to(w_EOI.dtype)
        return dx, dw


def _quantiser(*, square: bool, columnwise: bool) -> Any:  # noqa: ANN401 - untyped, as all of it
    found = Float8BlockQuantizer(
        E4M3, rowwise=True, columnwise=columnwise, force_pow_2_scales=True, block_scaling_dim=2 if square else 1
    )
    found.internal = True  # plain holders of data and scales, no tensors
    return found


def _parts(rows: Tensor, parts: list[tuple[int, int]], *, columnwise: bool) -> list[Any]:
    """Of each expert that has rows."""
    quantise = _quantiser(square=False, columnwise=columnwise)
    return [quantise(rows[first:end]) for first, end in parts if end > first]


def _matrices(w_EOI: Tensor) -> list[Any]:
    quantise = _quantiser(square=True, columnwise=True)
    return [quantise(matrix) for matrix in whole_blocks(w_EOI)]


def _by_matrix(
    matrices: list[Any], quantised: list[Any], parts: list[tuple[int, int]], rows: Tensor, layout: str
) -> Tensor:
    """Each expert's rows times its matrix; TN: over its inputs, NN: over its outputs."""
    full = [(m, end - first) for m, (first, end) in zip(matrices, parts, strict=True) if end > first]
    sizes, used = [size for _, size in full], sum(size for _, size in full)
    width = full[0][0].size()[0 if layout == "TN" else 1]
    out = rows.new_zeros(rows.shape[0], width)
    if len(full) == 1:
        out[:used] = general_gemm(full[0][0], quantised[0], out_dtype=rows.dtype, layout=layout, grad=layout == "NN")[0]
    else:
        general_grouped_gemm(
            [m for m, _ in full],
            quantised,
            [out[:used]],
            [None] * len(full),
            rows.dtype,
            layout=layout,
            m_splits=sizes,
            grad=layout == "NN",
            single_output=True,
            use_split_accumulator=True,  # what block scales need; the single product asks for it by itself
        )
    return out


def _columns(data: Tensor, scale: Tensor, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """What was kept of an expert's rows, as the product over rows takes it."""
    return Float8BlockwiseQTensorStorage(
        rowwise_data=None,
        rowwise_scale_inv=None,
        columnwise_data=data,
        columnwise_scale_inv=scale,
        fp8_dtype=E4M3,
        quantizer=_quantiser(square=False, columnwise=True),
        is_2D_scaled=False,
        fake_dtype=dtype,
    )
