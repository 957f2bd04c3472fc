"""A model and a recipe that train in a second."""

from typing import Any

from model.config import ModelConfig
from model.recipe import (
    Balance,
    Checkpointing,
    Layout,
    MultiToken,
    Optimizer,
    Recipe,
    Schedule,
)

TINY = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    q_lora_rank=12,
    kv_lora_rank=8,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=8,
    intermediate_size=48,
    moe_intermediate_size=16,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=1.5,
    num_nextn_predict_layers=1,
    initializer_range=0.05,
)
SHALLOW = TINY.replace(num_hidden_layers=2, n_routed_experts=4, n_group=2)
"""One layer of each kind, and groups of experts that can all be reached: where not the model is tested."""


def tiny_recipe(**changes: Any) -> Recipe:  # noqa: ANN401 - field values
    """A recipe with some fields changed."""
    base: dict[str, Any] = {
        "model": TINY,
        "data": "unused",
        "seed": 1,
        "sequence_length": 16,
        "steps": 8,
        "precision": "fp32",
        "schedule": Schedule(
            learning_rate=1e-2,
            final_learning_rate=1e-3,
            warmup_steps=2,
            decay_start_step=5,
            decay_end_step=8,
        ),
        "optimizer": Optimizer(grad_clip=0.5),
        "balance": Balance(bias_update_speed=0.01, bias_stop_step=7, aux_loss_alpha=0.01),
        "multi_token": MultiToken(switch_step=4),
        "layout": Layout(world_size=1, expert_parallel=1, micro_batch=4, accumulation=1),
        "checkpoint": Checkpointing(uri="unused", interval_seconds=60, keep=2),
        "eval_every_steps": 4,
        "eval_tokens": 256,
        "sample_tokens": 0,
        "device": "cpu",
    }
    return Recipe.model_validate(base | changes)
