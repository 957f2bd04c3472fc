"""Tensors in 8 bits with one FP32 scale per block (arXiv 2412.19437, section 3.3.2); pure functions.

Value = 8-bit number * `scale_inv`. Blocks: 1x128 along the last dimension (activations and gradients), 128 tokens x 1
(the same, for the product over tokens), 128x128 (weights; the layout of released files, `weight_scale_inv`). At the
edge a block is smaller. The scale follows the block's largest magnitude; it is rounded up to a power of two unless
asked otherwise, as in Transformer Engine's default: then scaling is exact, and every backend gets the same 8 bits.

A block of zeros has scale 1. A block that holds an infinity or a NaN is NaN throughout: E4M3 knows no infinity, and
torch's conversion would make 448 of it, which would hide that training has diverged.
Shapes: N tokens, K contraction, E experts, O outputs, I inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
E4M3 = torch.float8_e4m3fn
_TINY = torch.finfo(torch.float32).tiny
"""Least scale: with a smaller one its inverse would overflow."""


def scales(amax: Tensor, fp8: torch.dtype = E4M3, *, power_of_two: bool = True) -> Tensor:
    """FP32 `scale_inv` of blocks with these largest magnitudes: the largest becomes at most the format's largest."""
    scale = (amax / torch.finfo(fp8).max).clamp_min(_TINY)
    if power_of_two:  # up: a mantissa that is not zero carries into the exponent
        scale = ((scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    scale = torch.where(amax == 0, 1.0, scale)
    return torch.where(amax.isfinite(), scale, torch.nan)


def quantise_rows(x: Tensor, fp8: torch.dtype = E4M3, *, power_of_two: bool = True) -> tuple[Tensor, Tensor]:
    """[..., K] in 1x128 blocks -> 8 bits [..., K], scale_inv [..., ceil(K/128)]."""
    blocks = _row_blocks(x)
    scale = scales(blocks.abs().amax(-1), fp8, power_of_two=power_of_two)
    return (blocks / scale.unsqueeze(-1)).to(fp8).flatten(-2)[..., : x.shape[-1]].contiguous(), scale


def dequantise_rows(q: Tensor, scale_inv: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `quantise_rows`."""
    return (_row_blocks(q) * scale_inv.unsqueeze(-1)).to(dtype).flatten(-2)[..., : q.shape[-1]]


def quantise_tokens(
    x_NK: Tensor, ends_E: Tensor, fp8: torch.dtype = E4M3, *, power_of_two: bool = True
) -> tuple[Tensor, Tensor]:
    """[N, K] in blocks of 128 tokens of one expert -> 8 bits [N, K], scale_inv [blocks, K], see `token_places`."""
    place_N, blocks = token_places(x_NK.shape[0], ends_E)
    x, block_N = x_NK.float(), place_N // BLOCK
    amax = x.new_zeros(blocks, x.shape[1])
    amax.scatter_reduce_(0, block_N.unsqueeze(-1).expand_as(x), x.abs(), "amax")
    scale = scales(amax, fp8, power_of_two=power_of_two)
    return (x / scale[block_N]).to(fp8), scale


def dequantise_tokens(q_NK: Tensor, scale_inv: Tensor, ends_E: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `quantise_tokens`."""
    place_N, _ = token_places(q_NK.shape[0], ends_E)
    return (q_NK.float() * scale_inv[place_N // BLOCK]).to(dtype)


def token_places(tokens: int, ends_E: Tensor) -> tuple[Tensor, int]:
    """Where each token [N] stands once every expert's tokens (up to `ends_E`) begin a new block of 128, and how many
    blocks there may be. The number does not depend on `ends_E`, so that nothing waits for the device; blocks at the
    end may be empty."""
    row_N = torch.arange(tokens, device=ends_E.device)
    sizes = ends_E.diff(prepend=ends_E.new_zeros(1))
    blocks = (sizes + BLOCK - 1) // BLOCK
    expert_N = torch.searchsorted(ends_E, row_N, right=True)
    shift_E = (blocks.cumsum(0) - blocks) * BLOCK - (ends_E - sizes)
    return row_N + shift_E[expert_N], tokens // BLOCK + ends_E.numel()


def aligned(x_NK: Tensor, ends_E: Tensor) -> tuple[Tensor, Tensor]:
    """Rows moved so that each expert's begin a new block, zeros between, and the last dimension filled up to whole
    blocks -> [blocks * 128, ...], the place of each row. For kernels that want whole blocks."""
    place_N, blocks = token_places(x_NK.shape[0], ends_E)
    rows = x_NK.new_zeros(blocks * BLOCK, x_NK.shape[1] + -x_NK.shape[1] % BLOCK)
    rows[place_N, : x_NK.shape[1]] = x_NK
    return rows, place_N


def aligned_parts(tokens: int, ends_E: Tensor) -> list[tuple[int, int]]:
    """First row and end of each expert's part of `aligned`. With more than one expert this waits for the device."""
    ends = ends_E.tolist() if ends_E.numel() > 1 else [tokens]
    parts, start, first = [], 0, 0
    for end in ends:
        blocks = -(-(end - start) // BLOCK)
        parts.append((first, first + blocks * BLOCK))
        start, first = end, first + blocks * BLOCK
    return parts


def whole_blocks(w: Tensor) -> Tensor:
    """[..., O, I] filled up with zeros to whole 128x128 blocks."""
    down, across = -w.shape[-2] % BLOCK, -w.shape[-1] % BLOCK
    return F.pad(w, (0, across, 0, down)) if down or across else w


def quantise_weight(w: Tensor, fp8: torch.dtype = E4M3, *, power_of_two: bool = True) -> tuple[Tensor, Tensor]:
    """[..., O, I] in 128x128 blocks -> 8 bits [..., O, I], scale_inv [..., ceil(O/128), ceil(I/128)].

    What `dequantise_weight` gave in FP32 comes back bit for bit if each block's scale is a power of two and its
    largest magnitude in 8 bits above 224 (half of the range); in BF16 too, as four significant bits fit. With other
    scales (`power_of_two=False`) and a largest of 448, the 8 bits come back and the scale to one unit in its last
    place.
    """
    blocks = _square_blocks(w)
    scale = scales(blocks.abs().amax((-3, -1)), fp8, power_of_two=power_of_two)
    q = (blocks / scale.unsqueeze(-1).unsqueeze(-3)).to(fp8)
    return q.flatten(-2).flatten(-3, -2)[..., : w.shape[-2], : w.shape[-1]].contiguous(), scale


def dequantise_weight(q: Tensor, scale_inv: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `quantise_weight`; ValueError if there is not one scale for each block."""
    wanted = (*q.shape[:-2], -(-q.shape[-2] // BLOCK), -(-q.shape[-1] // BLOCK))
    if tuple(scale_inv.shape) != wanted:
        raise ValueError(f"{tuple(q.shape)} in blocks of {BLOCK} has {wanted} scales, got {tuple(scale_inv.shape)}")
    w = (_square_blocks(q) * scale_inv.unsqueeze(-1).unsqueeze(-3)).to(dtype)
    return w.flatten(-2).flatten(-3, -2)[..., : q.shape[-2], : q.shape[-1]]


def _row_blocks(x: Tensor) -> Tensor:
    """[..., K] -> FP32 [..., ceil(K/128), 128], zeros behind."""
    padded = F.pad(x.float(), (0, -x.shape[-1] % BLOCK)) if x.shape[-1] % BLOCK else x.float()
    return padded.reshape(*x.shape[:-1], -(-x.shape[-1] // BLOCK), BLOCK)


def _square_blocks(w: Tensor) -> Tensor:
    """[..., O, I] -> FP32 [..., ceil(O/128), 128, ceil(I/128), 128], zeros behind."""
    rows, missing = w.shape[-2], -w.shape[-2] % BLOCK
    blocks = _row_blocks(F.pad(w.float(), (0, 0, 0, missing)) if missing else w)
    return blocks.reshape(*w.shape[:-2], (rows + missing) // BLOCK, BLOCK, *blocks.shape[-2:])
