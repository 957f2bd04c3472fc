"""Schedules at their boundaries, and the paper's own numbers."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.recipe import Balance, MultiToken, Schedule
from model.schedule import bias_speed, learning_rate, multi_token_weight

BATCH = 15_360 * 4096
"""Tokens of one step of DeepSeek-V3, after the growth of the batch."""
PAPER = Schedule(
    learning_rate=2.2e-4,
    final_learning_rate=2.2e-5,
    warmup_steps=2000,
    decay_start_step=round(10e12 / BATCH),
    decay_end_step=round(14.3e12 / BATCH),
)


def test_the_papers_learning_rate() -> None:
    assert learning_rate(0, PAPER) == pytest.approx(2.2e-4 / 2000)
    assert learning_rate(999, PAPER) == pytest.approx(1.1e-4)
    assert learning_rate(1999, PAPER) == learning_rate(2000, PAPER) == 2.2e-4
    start, end = PAPER.decay_start_step, PAPER.decay_end_step
    assert learning_rate(start - 1, PAPER) == 2.2e-4
    assert learning_rate(start, PAPER) == pytest.approx(2.2e-4)
    # a quarter and a half of a cosine from 2.2e-4 to 2.2e-5
    assert learning_rate(start + (end - start) // 4, PAPER) == pytest.approx(
        2.2e-5 + 1.98e-4 * (1 + math.sqrt(0.5)) / 2, rel=1e-4
    )
    assert learning_rate(start + (end - start) // 2, PAPER) == pytest.approx(1.21e-4, rel=1e-4)
    assert learning_rate(end - 1, PAPER) == pytest.approx(2.2e-5, rel=1e-6)
    assert learning_rate(end, PAPER) == learning_rate(end * 10, PAPER) == 2.2e-5


@given(warmup=st.integers(0, 20), constant=st.integers(0, 20), decay=st.integers(0, 20), final=st.floats(0, 1e-3))
def test_rises_stays_and_falls_within_its_bounds(warmup: int, constant: int, decay: int, final: float) -> None:
    start = warmup + constant
    schedule = Schedule(
        learning_rate=1e-3,
        final_learning_rate=final,
        warmup_steps=warmup,
        decay_start_step=start,
        decay_end_step=start + decay,
    )
    rates = [learning_rate(step, schedule) for step in range(start + decay + 5)]
    assert all(0 <= rate <= 1e-3 * (1 + 1e-12) for rate in rates)
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert rates[warmup:start] == [1e-3] * constant
    assert all(a >= b - 1e-15 for a, b in pairwise(rates[start:]))
    assert rates[start + decay :] == [final] * 5
    if warmup:
        assert rates[0] > 0  # the first step is not lost
        assert rates[warmup - 1] == pytest.approx(1e-3)
        assert rates[1] - rates[0] == pytest.approx(1e-3 / warmup) if warmup > 1 else True


def test_lambda_switches_at_its_step() -> None:
    paper = MultiToken(switch_step=round(10e12 / BATCH))
    assert multi_token_weight(0, paper) == multi_token_weight(paper.switch_step - 1, paper) == 0.3
    assert multi_token_weight(paper.switch_step, paper) == 0.1


def test_gamma_stops_at_its_step() -> None:
    paper = Balance(bias_stop_step=round(14.3e12 / BATCH))
    assert bias_speed(0, paper) == bias_speed(paper.bias_stop_step - 1, paper) == 0.001
    assert bias_speed(paper.bias_stop_step, paper) == 0.0
    assert paper.aux_loss_alpha == 1e-4
