"""The heart of latent attention on a CPU: from projections to heads' outputs in one differentiable piece.

torch's fast CPU kernel wants values as long as keys, which latent attention has not, and its general path builds
whole S x S matrices several times. Here a block of queries meets the keys up to its end, queries and keys are turned
and put in place in one go, and the backward pass writes into the layout of the projections. In BF16 the products are of
BF16; softmax, rotation and what is summed over blocks are computed in FP32.
Shapes: B batch, S sequence, H heads, N + R dimension of a head's query (R with position), V of its value.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64
"""Queries at a time: measured best of 64, 128 and 256 for sequences of 256 to 1024."""
KEEP = 512
"""Sequences up to this length keep their probabilities for the backward pass, longer ones compute them again."""


class Heads(NamedTuple):
    """Dimensions of a layer's heads, and the scale of the scores."""

    heads: int
    nope: int
    rope: int
    value: int
    scale: float


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """As `model.rope.rotate`, into `out`."""
    half = out.shape[-1] // 2
    even, odd = x[..., 0::2], x[..., 1::2]
    out[..., :half] = even * cos - odd * sin
    out[..., half:] = odd * cos + even * sin


def _placed(
    queries: Tensor, keys_values: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor, of: Heads
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, turned, [BH, S, N+R]; values [BH, S, V]."""
    batch, length, _ = queries.shape
    by_head = (batch, length, of.heads, -1)
    raw, kv = queries.view(by_head).transpose(1, 2), keys_values.view(by_head).transpose(1, 2)
    q, k = (raw.new_empty(batch, of.heads, length, of.nope + of.rope) for _ in range(2))
    q[..., : of.nope] = raw[..., : of.nope]
    _turn(raw[..., of.nope :], cos, sin, q[..., of.nope :])
    k[..., : of.nope] = kv[..., : of.nope]
    _turn(k_rope.unsqueeze(1), cos, sin, k[..., of.nope :])
    return q.flatten(0, 1), k.flatten(0, 1), kv[..., of.nope :].reshape(-1, length, of.value)


def _turn_back(grad: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """The gradient of `_turn`'s input, into `out`."""
    half = grad.shape[-1] // 2
    first, second = grad[..., :half], grad[..., half:]
    out[..., 0::2] = first * cos + second * sin
    out[..., 1::2] = second * cos - first * sin


def _probabilities(q: Tensor, k: Tensor, begin: int, end: int, scale: float, hidden: Tensor | None) -> Tensor:
    """[BH, block, end] of the queries `begin`..`end`; `hidden`: [B, 1, S, S] keys that a query does not see."""
    scores = torch.bmm(q[:, begin:end], k[:, :end].transpose(1, 2)).mul_(scale)
    if hidden is None:
        after = torch.ones(end - begin, end - begin, dtype=torch.bool).triu_(1)
        scores[:, :, begin:].masked_fill_(after, float("-inf"))
    else:
        by_batch = scores.view(hidden.shape[0], -1, end - begin, end)
        by_batch.masked_fill_(hidden[:, :, begin:end, :end], float("-inf"))
    return torch.softmax(scores, dim=-1)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """To an FP32 sum."""
    if a.dtype == total.dtype:
        total.baddbmm_(a, b)
    else:
        total.add_(torch.bmm(a, b))


class Attend(torch.autograd.Function):
    """Causal attention of FP32 or BF16 projections; see the module."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        queries: Tensor,
        keys_values: Tensor,
        k_rope: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        of: Heads,
        sparing: bool = False,
    ) -> Tensor:
        """Queries [B, S, H*(N+R)], keys and values [B, S, H*(N+V)], the rotary key [B, S, R] -> [B, S, H*V].

        `sparing` keeps these for the backward pass, and nothing that is made of them."""
        batch, length, _ = queries.shape
        given = queries, keys_values, k_rope
        q, k, v = _placed(*given, cos, sin, of)
        hidden = None if mask is None else ~mask
        out, kept = torch.empty_like(v), []
        for begin in range(0, length, BLOCK):
            end = min(begin + BLOCK, length)
            p = _probabilities(q, k, begin, end, of.scale, hidden)
            out[:, begin:end] = torch.bmm(p, v[:, :end])
            if length <= KEEP and not sparing:
                kept.append(p)
        ctx.of, ctx.has_mask, ctx.sparing = of, mask is not None, sparing
        first = given if sparing else (q, k, v)
        ctx.save_for_backward(*first, cos, sin, *(() if hidden is None else (hidden,)), *kept)
        return out.view(batch, of.heads, length, of.value).transpose(1, 2).reshape(batch, length, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        q, k, v, cos, sin, *rest = ctx.saved_tensors
        of: Heads = ctx.of
        if ctx.sparing:
            q, k, v = _placed(q, k, v, cos, sin, of)
        hidden = rest.pop(0) if ctx.has_mask else None
        batch, length, _ = grad.shape
        grad = grad.view(batch, length, of.heads, of.value).transpose(1, 2).reshape(-1, length, of.value)
        dq, dk, dv = torch.empty_like(q), *(torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        for i, begin in enumerate(range(0, length, BLOCK)):
            end = min(begin + BLOCK, length)
            p = rest[i] if rest else _probabilities(q, k, begin, end, of.scale, hidden)
            g = grad[:, begin:end]
            _add_product(dv[:, :end], p.transpose(1, 2), g)
            dp = torch.bmm(g, v[:, :end].transpose(1, 2))
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype).mul_(of.scale)
            dq[:, begin:end] = torch.bmm(ds, k[:, :end])
            _add_product(dk[:, :end], ds.transpose(1, 2), q[:, begin:end])
        dq, dk, dv = (x.view(batch, of.heads, length, -1) for x in (dq, dk, dv))

        by_head = (batch, length, of.heads)
        d_raw, d_kv = grad.new_empty(*by_head, of.nope + of.rope), grad.new_empty(*by_head, of.nope + of.value)
        at = d_raw.transpose(1, 2)
        at[..., : of.nope] = dq[..., : of.nope]
        _turn_back(dq[..., of.nope :], cos, sin, at[..., of.nope :])
        at = d_kv.transpose(1, 2)
        at[..., : of.nope], at[..., of.nope :] = dk[..., : of.nope], dv
        d_rope = grad.new_empty(batch, length, of.rope)
        _turn_back(dk[..., of.nope :].sum(1), cos, sin, d_rope)
        return d_raw.flatten(2), d_kv.flatten(2), d_rope, None, None, None, None, None
