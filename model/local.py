"""The routed experts on a CPU, all on this process: sort, multiply and combine in one differentiable piece.

What autograd would keep (copies of tokens, outputs of experts) is gathered again or not needed at all: the gradient of
a routing weight is the product of an expert's inner activation with the inner gradient, so that the experts' outputs
need not be kept. In BF16 each expert's product is of BF16 (torch's grouped product of BF16 takes ten times as long as
one of FP32 there); what is summed over experts is FP32.
Shapes: T tokens, K experts per token, N rows sorted by expert (T*K and those that fill up), D hidden, F inner size,
E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.precision import HIGH, Products

FILL = {torch.float32: 1, torch.bfloat16: 64}
"""An expert's rows are filled up to a multiple of this, by the first token with weight 0: a product of BF16 in a new
shape costs a millisecond and 0.6 MiB for good (its kernel is built and kept), and each step has new numbers of rows."""


class Choice(NamedTuple):
    """Where tokens go, from the router."""

    weights_TK: Tensor
    chosen_TK: Tensor
    counts_E: Tensor


def applies(x: Tensor, products: Products) -> bool:
    """Whether `routed` may compute these tokens with these products."""
    return x.device.type == "cpu" and x.dtype in FILL and products is HIGH


def routed(x_TD: Tensor, choice: Choice, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Sum over a token's experts of weight times SwiGLU, [T, D]."""
    return _Routed.apply(x_TD, *choice, gate_EFD, up_EFD, down_EDF)  # type: ignore[no-any-return,no-untyped-call]


def _rows(chosen_TK: Tensor, counts_E: Tensor, fill: int) -> tuple[Tensor, Tensor, list[int]]:
    """-> token of each row [N], row of each token's choices [T, K], end of each expert's rows."""
    experts = chosen_TK.flatten()
    order = experts.argsort(stable=True)
    filled = (counts_E + fill - 1) // fill * fill
    shift = (filled.cumsum(0) - filled) - (counts_E.cumsum(0) - counts_E)
    rows = torch.arange(order.numel()) + shift[experts[order]]
    ends: list[int] = filled.cumsum(0).tolist()
    tokens = order.new_zeros(ends[-1]).index_copy_(0, rows, order // chosen_TK.shape[1])
    return tokens, torch.empty_like(order).scatter_(0, order, rows).view_as(chosen_TK), ends


def _parts(ends: list[int]) -> Iterator[tuple[int, slice]]:
    """Each expert with its rows."""
    begin = 0
    for expert, end in enumerate(ends):
        yield expert, slice(begin, end)
        begin = end


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Into `out`, whose dtype may be wider than theirs."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """To a sum whose dtype may be wider than theirs."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


class _Routed(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x: Tensor,
        weights: Tensor,
        chosen: Tensor,
        counts: Tensor,
        gate_w: Tensor,
        up_w: Tensor,
        down_w: Tensor,
    ) -> Tensor:
        tokens, place, ends = _rows(chosen, counts, FILL[x.dtype])
        gate, up = (x.new_empty(tokens.numel(), gate_w.shape[1]) for _ in range(2))
        out = x.new_empty(tokens.numel(), x.shape[1], dtype=torch.float32)
        for e, part in _parts(ends):
            rows = x.index_select(0, tokens[part])
            torch.mm(rows, gate_w[e].t(), out=gate[part])
            torch.mm(rows, up_w[e].t(), out=up[part])
            _product(F.silu(gate[part]).mul_(up[part]), down_w[e].t(), out[part])
        ctx.ends = ends
        ctx.save_for_backward(x, weights, place, tokens, gate, up, gate_w, up_w, down_w)
        return F.embedding_bag(place, out, mode="sum", per_sample_weights=weights).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weights, place, tokens, gate, up, gate_w, up_w, down_w = ctx.saved_tensors
        weight = weights.new_zeros(tokens.numel(), 1).index_copy_(0, place.flatten(), weights.reshape(-1, 1))
        d_weight, d_rows = weight.new_empty(tokens.numel()), weight.new_empty(tokens.numel(), x.shape[1])
        d_gate_w, d_up_w, d_down_w = (torch.empty(w.shape, dtype=w.dtype) for w in (gate_w, up_w, down_w))
        for e, part in _parts(ctx.ends):
            rows, g, w = x.index_select(0, tokens[part]), grad.index_select(0, tokens[part]), weight[part]
            a, b = gate[part], up[part]
            silu = F.silu(a)
            inner, d_inner = silu * b, torch.mm(g, down_w[e])
            torch.sum(inner * d_inner, dim=1, dtype=torch.float32, out=d_weight[part])
            torch.mm(g.t(), inner.mul_(w), out=d_down_w[e])
            d_inner.mul_(w)
            d_up, d_gate = silu.mul_(d_inner), torch.ops.aten.silu_backward(d_inner.mul_(b), a)
            torch.mm(d_gate.t(), rows, out=d_gate_w[e])
            torch.mm(d_up.t(), rows, out=d_up_w[e])
            _product(d_gate, gate_w[e], d_rows[part])
            _add_product(d_rows[part], d_up, up_w[e])
        d_x = F.embedding_bag(place, d_rows, mode="sum").to(x.dtype)
        return d_x, d_weight[place], None, None, d_gate_w, d_up_w, d_down_w
