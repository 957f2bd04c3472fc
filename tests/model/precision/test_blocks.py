"""Quantising against the formula of the paper, written down block by block with Python's own numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.precision.blocks import (
    E4M3,
    aligned,
    aligned_parts,
    dequantise_rows,
    dequantise_tokens,
    dequantise_weight,
    quantise_rows,
    quantise_tokens,
    quantise_weight,
    token_places,
)

E5M2 = torch.float8_e5m2
FORMATS = {E4M3: (3, -6, 448.0), E5M2: (2, -14, 57344.0)}
"""Bits of mantissa, exponent of the least normal number, largest number."""


def rounded(value: float, fp8: torch.dtype) -> float:
    """To the nearest number of the format, ties to even."""
    bits, least, largest = FORMATS[fp8]
    if value == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(value))), least)
    unit = 2.0 ** (exponent - bits)
    return math.copysign(min(round(abs(value) / unit) * unit, largest), value)


def expected(block: list[float], fp8: torch.dtype = E4M3) -> tuple[list[float], float]:
    """8-bit numbers and scale of one block: the least power of two that brings the largest into the format."""
    largest = max(map(abs, block))
    if largest == 0:
        return [0.0] * len(block), 1.0
    scale = 2.0 ** max(math.ceil(math.log2(largest / FORMATS[fp8][2])), -126)
    return [rounded(value / scale, fp8) for value in block], scale


def check(q: Tensor, scale: float, block: Tensor, fp8: torch.dtype = E4M3) -> None:
    numbers, wanted = expected(block.double().flatten().tolist(), fp8)
    assert scale == wanted
    assert q.double().flatten().tolist() == numbers


def sample(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of very different size, and some zeros."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp2(torch.randint(-30, 20, shape, generator=generator).float())
    kept = torch.rand(shape, generator=generator) > 0.1
    return (torch.randn(shape, generator=generator) * size * kept).to(dtype)


SHAPES = [(1, 1), (3, 127), (2, 128), (5, 129), (7, 300), (130, 257)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fp8", [E4M3, E5M2])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_block_by_block(shape: tuple[int, int], fp8: torch.dtype, dtype: torch.dtype) -> None:
    x = sample(*shape, dtype=dtype)
    q, scale = quantise_rows(x, fp8)
    assert (q.dtype, scale.dtype) == (fp8, torch.float32)
    assert (q.shape, scale.shape) == (x.shape, (shape[0], -(-shape[1] // 128)))
    back = dequantise_rows(q, scale, torch.float32)
    for row in range(shape[0]):
        for block in range(scale.shape[1]):
            part = (row, slice(128 * block, 128 * (block + 1)))
            check(q[part], scale[row, block].item(), x[part], fp8)
            assert torch.equal(back[part], q[part].float() * scale[row, block])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 150, 130), (3, 8, 8)])
def test_weights_block_by_block(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = sample(*shape, dtype=dtype)
    q, scale = quantise_weight(w)
    assert q.shape == w.shape
    assert scale.shape == (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    back = dequantise_weight(q, scale, torch.float32)
    for matrix in range(math.prod(shape[:-2])):
        of_w, of_q, of_scale, of_back = (t.reshape(-1, *t.shape[-2:])[matrix] for t in (w, q, scale, back))
        for i in range(of_scale.shape[0]):
            for j in range(of_scale.shape[1]):
                part = (slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1)))
                check(of_q[part], of_scale[i, j].item(), of_w[part])
                assert torch.equal(of_back[part], of_q[part].float() * of_scale[i, j])


@pytest.mark.parametrize("sizes", [(5,), (128,), (300,), (8, 0, 130, 128, 0, 7), (0, 256, 1)])
def test_tokens_of_one_expert_share_a_block_and_no_others(sizes: tuple[int, ...]) -> None:
    x = sample(sum(sizes), 6)
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    q, scale = quantise_tokens(x, ends)
    back = dequantise_tokens(q, scale, ends, torch.float32)
    used, start = 0, 0
    for size in sizes:
        for first in range(start, start + size, 128):
            for column in range(x.shape[1]):
                part = (slice(first, min(first + 128, start + size)), column)
                check(q[part], scale[used, column].item(), x[part])
                assert torch.equal(back[part], q[part].float() * scale[used, column])
            used += 1
        start += size
    assert (scale[used:] == 1).all(), "blocks without tokens"


@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0))
@settings(max_examples=50, deadline=None)
def test_aligned_rows_are_the_rows(sizes: list[int]) -> None:
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    x = torch.randn(sum(sizes), 3)
    rows, places = aligned(x, ends)
    assert rows.shape[0] == token_places(len(x), ends)[1] * 128
    assert torch.equal(rows[places, :3], x)
    assert rows.abs().sum() == pytest.approx(x.abs().sum().item(), rel=1e-4), "zeros everywhere else"
    for (first, end), size, last in zip(aligned_parts(len(x), ends), sizes, ends.tolist(), strict=True):
        assert first % 128 == end % 128 == 0
        assert 0 <= end - first - size < 128
        assert torch.equal(rows[first : first + size, :3], x[last - size : last])


# ------------------------------------------------------------------- numbers at the edge
@pytest.mark.parametrize("exponent", [-100, -1, 0, 60])
def test_a_scale_changes_at_the_largest_number_and_not_a_bit_before(exponent: int) -> None:
    edge = torch.tensor([448.0 * 2.0**exponent])
    above = torch.nextafter(edge, torch.tensor([torch.inf]))
    assert [quantise_rows(x[None])[1].item() for x in (edge, above)] == [2.0**exponent, 2.0 ** (exponent + 1)]


def test_a_block_of_zeros_stays_zero() -> None:
    for q, scale in (quantise_rows(torch.zeros(2, 200)), quantise_weight(torch.zeros(2, 200))):
        assert (scale == 1).all()
        assert (q.float() == 0).all()


@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_hidden(bad: float, power_of_two: bool) -> None:
    x = torch.ones(3, 256)
    x[1, 200] = bad
    rows = dequantise_rows(*quantise_rows(x, power_of_two=power_of_two), torch.float32)
    assert rows[1, 128:].isnan().all()
    assert rows[[0, 2]].isfinite().all()
    assert rows[1, :128].isfinite().all()
    assert dequantise_weight(*quantise_weight(x, power_of_two=power_of_two), torch.float32)[:, 128:].isnan().all()
    ends = torch.tensor([1, 3], dtype=torch.int32)
    tokens = dequantise_tokens(*quantise_tokens(x, ends, power_of_two=power_of_two), ends, torch.float32)
    assert tokens[1:, 200].isnan().all(), "of the same expert"
    assert tokens.isnan().sum() == 2


@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1.2e-38, 1e-30, 1.0, 3e38])
def test_any_size_is_represented_or_vanishes(size: float, power_of_two: bool) -> None:
    x = torch.linspace(-1, 1, 128) * size
    back = dequantise_rows(*quantise_rows(x[None], power_of_two=power_of_two), torch.float32)[0]
    assert back.isfinite().all()
    tolerance = size / 16 if size > 1e-35 else 2.0**-126  # a sixteenth: half a unit of three bits after the point
    assert (back - x).abs().max() <= tolerance * 1.001


def test_not_contiguous_is_the_same() -> None:
    x = sample(300, 260)
    for view in (x.T, x[::2], x[:, ::2], x[:, 5:140]):
        for quantise in (quantise_rows, quantise_weight):
            for ours, theirs in zip(
                quantise(view), quantise(view.clone(memory_format=torch.contiguous_format)), strict=True
            ):
                assert torch.equal(ours.float(), theirs.float())
                assert ours.is_contiguous()


def test_the_blocks_of_a_transposed_weight_are_the_transposed_blocks() -> None:
    w = sample(300, 140)
    (q, scale), (turned, of_turned) = quantise_weight(w), quantise_weight(w.T)
    assert torch.equal(q.float().T, turned.float())
    assert torch.equal(scale.T, of_turned)


# ------------------------------------------------------------------- released files
def released(power_of_two: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """8-bit blocks as in released files: any numbers of which each block uses the whole range, any scales."""
    generator = torch.Generator().manual_seed(seed)
    q = (torch.randn(300, 260, generator=generator) * 60).clamp(-448, 448).to(E4M3)
    for i in range(0, 300, 128):
        q[i, ::128] = 448
    scale = torch.rand(3, 3, generator=generator) * 1e-3 + 1e-5
    return q, torch.exp2(scale.log2().floor()) if power_of_two else scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_released_weights_with_powers_of_two_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    for seed in range(20):
        q, scale = released(power_of_two=True, seed=seed)
        again, of_again = quantise_weight(dequantise_weight(q, scale, dtype))
        assert torch.equal(again.view(torch.uint8), q.view(torch.uint8))
        assert torch.equal(of_again, scale)


def test_released_weights_with_other_scales_come_back_but_for_the_last_place_of_a_scale() -> None:
    for seed in range(20):
        q, scale = released(power_of_two=False, seed=seed)
        again, of_again = quantise_weight(dequantise_weight(q, scale, torch.float32), power_of_two=False)
        assert torch.equal(again.view(torch.uint8), q.view(torch.uint8))
        assert (of_again.view(torch.int32) - scale.view(torch.int32)).abs().max() <= 1


def test_scales_of_another_shape_are_refused() -> None:
    q, scale = quantise_weight(torch.ones(200, 300))
    with pytest.raises(ValueError, match=r"\(200, 300\) in blocks of 128 has \(2, 3\) scales, got \(3, 2\)"):
        dequantise_weight(q, scale.T, torch.float32)


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=140))
@settings(max_examples=200, deadline=None)
def test_property_a_row_is_near_itself_and_quantising_again_changes_nothing(values: list[float]) -> None:
    x = torch.tensor([values], dtype=torch.float32)
    q, scale = quantise_rows(x)
    back = dequantise_rows(q, scale, torch.float32)
    limit = torch.maximum(x.abs() / 16, scale.repeat_interleave(128, -1)[:, : x.shape[1]] * 2.0**-10)
    assert ((back - x).abs() <= limit).all()
    assert torch.equal(dequantise_rows(*quantise_rows(back), torch.float32), back)
