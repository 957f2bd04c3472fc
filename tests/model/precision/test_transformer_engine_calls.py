"""Our calls of Transformer Engine against a stand-in that keeps to its source's rules (2.20): which form of an operand
each layout takes, how 8-bit numbers and scales lie in memory, what may be missing. The real one needs a GPU."""

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.precision.backends import Sizes, distance
from model.precision.blocks import E4M3, dequantise_rows, dequantise_weight, quantise_rows, quantise_weight
from model.precision.fp8 import Arithmetic, Fp8Products

CPU = torch.device("cpu")


class Storage:
    """Float8BlockwiseQTensorStorage: columnwise data lie transposed, scales of 1x128 blocks too, filled up to fours."""

    def __init__(
        self,
        *,
        rowwise_data: Tensor | None,
        rowwise_scale_inv: Tensor | None,
        columnwise_data: Tensor | None,
        columnwise_scale_inv: Tensor | None,
        fp8_dtype: str,
        quantizer: "Quantizer",
        is_2D_scaled: bool,
        fake_dtype: torch.dtype | None = None,
    ) -> None:
        assert fp8_dtype == "E4M3"
        self._rowwise_data, self._rowwise_scale_inv = rowwise_data, rowwise_scale_inv
        self._columnwise_data, self._columnwise_scale_inv = columnwise_data, columnwise_scale_inv
        self.square = is_2D_scaled

    def size(self) -> torch.Size:
        if self._rowwise_data is not None:
            return self._rowwise_data.shape
        assert self._columnwise_data is not None
        return torch.Size(reversed(self._columnwise_data.shape))

    def values(self, *, rowwise: bool) -> Tensor:
        """The matrix, from the form that a layout asks for; that form must be there."""
        data = self._rowwise_data if rowwise else self._columnwise_data
        scale = self._rowwise_scale_inv if rowwise else self._columnwise_scale_inv
        assert data is not None, "this form was not quantised, or was dropped"
        assert scale is not None
        rows, columns = data.shape
        if self.square:
            back = dequantise_weight(data.view(E4M3), scale[:, : columns // 128], torch.float32)
        else:
            back = dequantise_rows(data.view(E4M3), scale[:, :rows].T, torch.float32)
        return back if rowwise else back.T


class Quantizer:
    internal = False

    def __init__(
        self, fp8_dtype: str, *, rowwise: bool, columnwise: bool, force_pow_2_scales: bool, block_scaling_dim: int
    ) -> None:
        assert force_pow_2_scales
        self.kind, self.rowwise, self.columnwise = fp8_dtype, rowwise, columnwise
        self.square = block_scaling_dim == 2

    def __call__(self, x: Tensor) -> Storage:
        assert x.ndim == 2
        assert x.is_contiguous()
        assert all(size and size % 128 == 0 for size in x.shape)
        rows = self._form(x) if self.rowwise else (None, None)
        columns = self._form(x.T) if self.columnwise else (None, None)
        return Storage(
            rowwise_data=rows[0],
            rowwise_scale_inv=rows[1],
            columnwise_data=columns[0],
            columnwise_scale_inv=columns[1],
            fp8_dtype=self.kind,
            quantizer=self,
            is_2D_scaled=self.square,
        )

    def _form(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, scale = quantise_weight(x) if self.square else quantise_rows(x)
        scale = scale if self.square else scale.T
        return q.view(torch.uint8), F.pad(scale, (0, -scale.shape[1] % 4))


def general_gemm(
    A: Storage,
    B: Storage,
    out_dtype: torch.dtype | None = None,
    layout: str = "TN",
    grad: bool = False,
) -> tuple[Tensor | None, ...]:
    """In cuBLAS's order of columns first: out = op(B) op(A)."""
    assert out_dtype is not None
    a, b = A.values(rowwise=layout[0] == "T"), B.values(rowwise=layout[1] == "N")
    product = (b.T if layout[1] == "T" else b) @ (a.T if layout[0] == "T" else a)
    return product.to(out_dtype), None, None, None


def general_grouped_gemm(
    A: list[Storage],
    B: list[Storage],
    out: list[Tensor],
    quantization_params: list[None],
    out_dtype: torch.dtype,
    layout: str = "TN",
    m_splits: list[int] | None = None,
    grad: bool = False,
    single_output: bool = False,
    use_split_accumulator: bool = False,
) -> tuple[Any, ...]:
    assert single_output
    assert use_split_accumulator, "block scales need it"
    assert m_splits is not None
    assert len(A) == len(B) == len(quantization_params) == len(m_splits)
    assert sum(m_splits) == out[0].shape[0]
    for a, b, part in zip(A, B, out[0].split(m_splits), strict=True):
        part.copy_(general_gemm(a, b, out_dtype, layout, grad)[0])  # type: ignore[arg-type]
    return out, [], []


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Arithmetic]:
    root = "transformer_engine.pytorch"
    contents: dict[str, dict[str, Any]] = {
        "transformer_engine_torch": {"DType": types.SimpleNamespace(kFloat8E4M3="E4M3")},
        "transformer_engine": {},
        root: {},
        f"{root}.cpp_extensions": {},
        f"{root}.cpp_extensions.gemm": {"general_gemm": general_gemm, "general_grouped_gemm": general_grouped_gemm},
        f"{root}.tensor": {},
        f"{root}.tensor.float8_blockwise_tensor": {"Float8BlockQuantizer": Quantizer},
        f"{root}.tensor.storage": {},
        f"{root}.tensor.storage.float8_blockwise_tensor_storage": {"Float8BlockwiseQTensorStorage": Storage},
    }
    for name, members in contents.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "model.precision.transformer_engine", raising=False)
    from model.precision.transformer_engine import TransformerEngine

    yield TransformerEngine()
    del sys.modules["model.precision.transformer_engine"]  # it holds the stand-in


@pytest.mark.parametrize("sizes", [Sizes(128, 128), Sizes(200, 320), Sizes(640, 8)])
def test_the_three_products(engine: Arithmetic, sizes: Sizes) -> None:
    assert distance(engine, sizes, CPU, torch.float32) < 1e-6
    assert distance(engine, sizes, CPU, torch.bfloat16) < 3e-3


def test_an_expert_without_rows_has_no_gradient(engine: Arithmetic) -> None:
    ends = torch.tensor([0, 16, 16, 40], dtype=torch.int32)
    x, w = torch.randn(40, 32, requires_grad=True), torch.randn(4, 48, 32, requires_grad=True)
    Fp8Products(engine).grouped(x, w, ends).sum().backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None
    assert [bool(g.any()) for g in w.grad] == [False, True, False, True]
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_rows_are_quantised_for_the_products_that_come(engine: Arithmetic) -> None:
    x, w = torch.randn(16, 32), torch.randn(48, 32)
    products = Fp8Products(engine)
    assert products.linear(x, w).shape == (16, 48)
    products.linear(x.requires_grad_(), w).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
