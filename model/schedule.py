"""What changes during a run, as pure functions of the optimizer step (0 for the first). Imports no torch."""

from __future__ import annotations

import math

from model.recipe import Balance, MultiToken, Schedule


def learning_rate(step: int, schedule: Schedule) -> float:
    """Rate of optimizer step `step`: linear warm-up, constant, cosine, constant (arXiv 2412.19437, section 4.2)."""
    s = schedule
    if step < s.warmup_steps:
        return s.learning_rate * (step + 1) / s.warmup_steps
    if step < s.decay_start_step:
        return s.learning_rate
    if step >= s.decay_end_step:
        return s.final_learning_rate
    progress = (step - s.decay_start_step) / (s.decay_end_step - s.decay_start_step)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return s.final_learning_rate + (s.learning_rate - s.final_learning_rate) * cosine


def multi_token_weight(step: int, multi_token: MultiToken) -> float:
    """lambda of the multi-token prediction loss."""
    return multi_token.weight if step < multi_token.switch_step else multi_token.final_weight


def bias_speed(step: int, balance: Balance) -> float:
    """gamma of the routing bias update."""
    return balance.bias_update_speed if step < balance.bias_stop_step else 0.0
