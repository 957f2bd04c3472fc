"""Angles of rotary embeddings against transformers' and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.recipes import TINY
from transformers import DeepseekV3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.config import Yarn
from model.rope import inverse_frequencies, rotate, rotation


@pytest.mark.parametrize(
    ("theta", "yarn"),
    [
        (10_000.0, {"factor": 40.0}),
        (10_000.0, {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0, "beta_slow": 2.0}),
        (10_000.0, {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 4.0, "beta_slow": 4.0}),
        (30.0, {"factor": 8.0, "beta_fast": 200.0}),  # the slowest pair turns often: the range ends beyond the last one
        (12.0, {"factor": 8.0, "original_max_position_embeddings": 2048, "beta_fast": 64.0, "beta_slow": 0.5}),
        (10_000.0, {"factor": 2.0, "original_max_position_embeddings": 16}),  # none turns often: it begins below 0
    ],
)
def test_frequencies_are_those_of_transformers(theta: float, yarn: dict[str, Any]) -> None:
    config = TINY.replace(qk_rope_head_dim=16, rope_theta=theta, yarn=Yarn(mscale_all_dim=1.0, **yarn).model_dump())
    assert config.yarn is not None
    theirs = DeepseekV3Config(
        qk_rope_head_dim=16,
        head_dim=16,
        rope_parameters={"rope_type": "yarn", "rope_theta": theta, **config.yarn.model_dump()},
    )
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    torch.testing.assert_close(inverse_frequencies(config), expected, rtol=1e-6, atol=0)


def test_without_yarn_by_hand() -> None:
    config = TINY.replace(qk_rope_head_dim=4, rope_theta=100.0)
    cos, sin = rotation(config, 3, torch.device("cpu"))
    angles = torch.tensor([[t * f for f in (1.0, 0.1)] for t in range(3)])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())
    turned = rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 1, 3, 4), cos, sin)[0, 0, 2]
    c, s, d, u = math.cos(2), math.sin(2), math.cos(0.2), math.sin(0.2)
    torch.testing.assert_close(turned, torch.tensor([c - 2 * s, 3 * d - 4 * u, 2 * c + s, 4 * d + 3 * u]))
