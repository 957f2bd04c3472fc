"""Bytes of one token that one layer keeps for its backward pass, under each policy of recomputation. No torch.

Called by `orchestrator.plan.footprint` and, as a measure of memory traffic, by `orchestrator.plan.step_time`.
Invariant: `none` and `full` are `orchestrator.plan.memory`'s formulas for GPUs, and so is `selective` where only data
and experts are divided, as today's engine does. Elsewhere `selective` is what DeepSeek-V3's report keeps (section 3.2.3
and 3.3.3: less, gate and up in 8 bits), and was never measured.
"""

from __future__ import annotations

from functools import cache

from model.config import ModelConfig
from orchestrator.plan.dense import DenseModel
from orchestrator.plan.memory import (
    ALIGN,
    FLOAT,
    Kernels,
    Policy,
    attention_bytes,
    entry_bytes,
    feed_forward_bytes,
    moe_bytes,
    norm_bytes,
    operand_bytes,
)
from orchestrator.plan.work import Architecture
from orchestrator.plan.workload import Recompute

_SEQUENCE = 4096
"""`attention_bytes` asks for a length, which its fused kernels do not use."""


@cache
def kept(
    config: Architecture, policy: Policy, recompute: Recompute, moe: bool, rows: int, expert: int, plain: bool
) -> float:
    """Of one layer. `rows`: tokens of a micro-batch on one GPU, which padding by expert is spread over; `plain`:
    `Parallel.plain`."""
    if recompute == "full":
        return policy.activations * config.hidden_size
    if isinstance(config, DenseModel):
        return _dense(config, policy, recompute)
    some = recompute == "selective"
    if some and not plain:
        return _selective_attention(config, policy) + _selective_feed_forward(config, policy, moe, rows, expert)
    attention = attention_bytes(config, policy, _SEQUENCE, Kernels.fused, some)
    if moe:
        return attention + moe_bytes(config, policy, rows, expert, Kernels.fused, some)
    return attention + feed_forward_bytes(config, policy, config.intermediate_size, Kernels.fused, some)


def entry(config: Architecture, policy: Policy) -> float:
    """Of prediction modules besides their layers."""
    if isinstance(config, DenseModel):
        return 0.0
    return config.num_nextn_predict_layers * entry_bytes(config, policy.activations, Kernels.fused)


def _dense(config: DenseModel, policy: Policy, recompute: Recompute) -> float:
    """Grouped-query attention keeps queries, keys, values, output and logarithms of the sums; SwiGLU
    is one kernel. Selective recomputation leaves out norms and SwiGLU."""
    c, e, width = config, policy.activations, config.hidden_size
    heads, kv = c.num_attention_heads, c.num_key_value_heads
    attention: float = e * (heads + 2 * kv) * c.head_dim + heads * (e * c.head_dim + FLOAT)
    attention += operand_bytes(heads * c.head_dim, policy) if policy.eight_bits else 0
    if recompute == "selective":
        return attention + 2 * e * width + 2 * operand_bytes(c.intermediate_size, policy)
    norms = 2 * norm_bytes(width, e, Kernels.fused) + operand_bytes(width, policy, 3) + operand_bytes(width, policy, 2)
    return attention + norms + 2 * e * c.intermediate_size + operand_bytes(c.intermediate_size, policy)


def _selective_attention(config: ModelConfig, policy: Policy) -> float:
    """The input, the latents before their norms, the output by head and logarithms of the sums: queries, keys and
    values are computed again from the latents."""
    c, e, heads = config, policy.activations, config.num_attention_heads
    queries = c.q_lora_rank if c.q_lora_rank is not None else heads * c.qk_head_dim
    latents = queries + c.kv_lora_rank + c.qk_rope_head_dim
    return e * (c.hidden_size + latents) + heads * (e * c.v_head_dim + FLOAT)


def _selective_feed_forward(config: ModelConfig, policy: Policy, moe: bool, rows: int, expert: int) -> float:
    """The input; gate and up, in 8 bits under FP8; the experts' rows, whose weights are multiplied in before the down
    projection, so that its output need not be kept; the router in FP32."""
    c, k, inner = config, config.num_experts_per_tok, config.moe_intermediate_size
    if not moe:
        return policy.activations * c.hidden_size + 2 * operand_bytes(c.intermediate_size, policy)
    padded = k + ALIGN * c.n_routed_experts / expert / rows
    routed = padded * (operand_bytes(c.hidden_size, policy) + 2 * operand_bytes(inner, policy))
    shared = 2 * operand_bytes(c.n_shared_experts * inner, policy)
    return policy.activations * c.hidden_size + FLOAT * (c.n_routed_experts + 3 * k) + routed + shared
