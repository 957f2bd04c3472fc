"""The routed experts on a CPU, all on this process: sort, multiply and combine in one differentiable piece.

What autograd would keep (copies of tokens, outputs of experts) is gathered again or not needed at all: the gradient of
a routing weight is the product of an expert's inner activation with the inner gradient, so that the experts' outputs
need not be kept. No row is padded: only CUDA's grouped products ask for that. In BF16 each expert's product is of BF16
(torch's grouped product of BF16 takes ten times as long as one of FP32 there); what is summed over experts is FP32.
Shapes: T tokens, K experts per token, N = T*K rows sorted by expert, D hidden, F inner size, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.precision import HIGH, Products

DTYPES = (torch.float32, torch.bfloat16)


class Choice(NamedTuple):
    """Where tokens go, from the router."""

    weights_TK: Tensor
    chosen_TK: Tensor
    counts_E: Tensor


def applies(x: Tensor, products: Products) -> bool:
    """Whether `routed` may compute these tokens with these products."""
    return x.device.type == "cpu" and x.dtype in DTYPES and products is HIGH


def routed(x_TD: Tensor, choice: Choice, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Sum over a token's experts of weight times SwiGLU, [T, D]."""
    return _Routed.apply(x_TD, *choice, gate_EFD, up_EFD, down_EDF)  # type: ignore[no-any-return,no-untyped-call]


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
        k = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel())).view_as(chosen)
        tokens, ends = order // k, counts.cumsum(0).tolist()
        gate, up = (x.new_empty(order.numel(), gate_w.shape[1]) for _ in range(2))
        out = x.new_empty(order.numel(), x.shape[1], dtype=torch.float32)
        for e, part in _parts(ends):
            rows = x.index_select(0, tokens[part])
            torch.mm(rows, gate_w[e].t(), out=gate[part])
            torch.mm(rows, up_w[e].t(), out=up[part])
            _product(F.silu(gate[part]).mul_(up[part]), down_w[e].t(), out[part])
        ctx.ends = ends
        ctx.save_for_backward(x, weights, order, place, tokens, gate, up, gate_w, up_w, down_w)
        return F.embedding_bag(place, out, mode="sum", per_sample_weights=weights).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weights, order, place, tokens, gate, up, gate_w, up_w, down_w = ctx.saved_tensors
        weight = weights.flatten()[order].unsqueeze(1)
        d_weight, d_rows = weight.new_empty(order.numel()), weight.new_empty(order.numel(), x.shape[1])
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
