"""Rotary position embeddings with YaRN extension, for the decoupled keys of latent attention.

Shapes: B batch, H heads, S sequence, R rotary dimension (even).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.config import ModelConfig, Yarn


def yarn_mscale(factor: float, mscale: float) -> float:
    """Temperature correction of YaRN: 0.1 * mscale * ln(factor) + 1 (arXiv 2309.00071)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def softmax_scale(config: ModelConfig) -> float:
    """Scale of the attention scores: 1/sqrt(d), times the square of YaRN's correction."""
    scale: float = config.qk_head_dim**-0.5
    if config.yarn and config.yarn.mscale_all_dim:
        scale *= yarn_mscale(config.yarn.factor, config.yarn.mscale_all_dim) ** 2
    return scale


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """[R/2] FP32 angles per position; with YaRN, low frequencies are interpolated and high ones kept."""
    dim = config.qk_rope_head_dim
    base = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    extrapolated = 1.0 / config.rope_theta**base
    if config.yarn is None:
        return extrapolated
    low, high = _correction_range(config.yarn, config.rope_theta, dim)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return extrapolated / config.yarn.factor * ramp + extrapolated * (1 - ramp)


def _correction_range(yarn: Yarn, theta: float, dim: int) -> tuple[float, float]:
    """Pairs of dimensions that turn `beta_fast` and `beta_slow` times within the original context."""

    def pair(turns: float) -> float:
        context = yarn.original_max_position_embeddings
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair(yarn.beta_fast)), 0), min(math.ceil(pair(yarn.beta_slow)), dim - 1)
    return float(low), float(high) if high != low else low + 0.001


def rotation(config: ModelConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, each [S, R/2] FP32, for positions 0..length-1."""
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse_frequencies(config))
    scale = 1.0
    if config.yarn:
        mscale_all = yarn_mscale(config.yarn.factor, config.yarn.mscale_all_dim)
        scale = yarn_mscale(config.yarn.factor, config.yarn.mscale) / mscale_all
    return (angles.cos() * scale).to(device), (angles.sin() * scale).to(device)


def rotate(x_BHSR: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the interleaved pairs (x0, x1), (x2, x3), ... by their angles, in FP32.

    The result holds all first members, then all second members: queries and keys are permuted alike,
    so their products are those of the interleaved layout.
    """
    even, odd = x_BHSR[..., 0::2].float(), x_BHSR[..., 1::2].float()
    return torch.cat((even * cos - odd * sin, odd * cos + even * sin), dim=-1).to(x_BHSR.dtype)
