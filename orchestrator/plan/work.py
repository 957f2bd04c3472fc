"""An architecture as work for a step: FLOPs by kind, parameters by layer, bytes that are kept and sent. No torch.

Called by `orchestrator.plan.step_time` and `orchestrator.plan.footprint`; the one place in the planner that tells a
mixture of experts from a dense model. Invariant: FLOPs of all kinds add up to `model.flops.flops_per_token` with the
prediction modules, to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from model.config import ModelConfig
from model.flops import (
    BLOCK,
    attention_flops,
    attention_matrices,
    count,
    elements,
    flops_per_token,
    indexer_matrices,
    mtp_entry,
    shared_matrices,
)
from model.recipe import PrecisionName
from orchestrator.plan.dense import DenseModel
from orchestrator.plan.memory import FLOAT

Architecture = ModelConfig | DenseModel

HIGH = ("router", "head", "prediction")
"""Those that stay in 16 bits under FP8 (DeepSeek-V3, section 3.3.1: embedding, head, gating)."""


@dataclass(frozen=True)
class Layers:
    """Neighbouring layers that are alike."""

    count: int
    common: int
    """Parameters of one: what tensor parallelism divides."""
    experts: int
    """What expert parallelism divides."""
    entry: int = 0
    """Of `common`, what leads into a prediction module."""


@cache
def flops_by_kind(config: Architecture, sequence_length: int) -> dict[str, float]:
    """Training FLOPs per token, forward and backward, causal, prediction modules included."""
    if isinstance(config, DenseModel):
        layers = config.num_hidden_layers
        return {
            "attention_projections": 6 * layers * config.attention_parameters,
            "dense": 6 * layers * config.feed_forward_parameters,
            "head": 6 * config.embedding_parameters,
            "attention": layers * config.attention_flops(sequence_length),
        }
    c, counts, ahead = config, count(config), config.num_nextn_predict_layers
    layers, moe = c.num_hidden_layers + ahead, c.num_moe_layers + ahead
    return {
        "attention_projections": 6 * layers * (elements(attention_matrices(c)) + elements(indexer_matrices(c))),
        "routed_experts": 6 * moe * c.num_experts_per_tok * counts.expert,
        "shared_experts": 6 * moe * elements(shared_matrices(c)),
        "dense": 6 * counts.dense_ffn,
        "router": 6 * moe * c.n_routed_experts * c.hidden_size,
        "head": 6 * (1 + ahead) * counts.head,
        "prediction": 6 * ahead * elements([mtp_entry(c)]),
        "attention": layers * attention_flops(c, sequence_length),
    }


@cache
def model_flops(config: Architecture, sequence_length: int, mtp: bool = False) -> float:
    """Training FLOPs per token, causal: what utilisation is counted by."""
    if isinstance(config, DenseModel):
        return config.flops_per_token(sequence_length)
    return flops_per_token(config, sequence_length, causal=True, mtp=mtp)


@cache
def up_projection_flops(config: Architecture) -> float:
    """Per token, of one forward pass: from the latents to queries, keys and values by head."""
    if isinstance(config, DenseModel):
        return 0.0
    c, heads = config, config.num_attention_heads
    queries = 0 if c.q_lora_rank is None else c.q_lora_rank * heads * c.qk_head_dim
    keys = c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim)
    return 2.0 * (c.num_hidden_layers + c.num_nextn_predict_layers) * (queries + keys)


def layer_count(config: Architecture) -> int:
    """Layers with those of prediction modules."""
    return config.num_hidden_layers + (0 if isinstance(config, DenseModel) else config.num_nextn_predict_layers)


def moe_layer_count(config: Architecture) -> int:
    """Those that exchange tokens between experts."""
    return 0 if isinstance(config, DenseModel) else config.num_moe_layers + config.num_nextn_predict_layers


@cache
def moe_layers(config: Architecture, pipeline: int, chunks: int) -> int:
    """Those of the GPU that has most, the layers being divided into `chunks` pieces on each of `pipeline` GPUs."""
    if isinstance(config, DenseModel):
        return 0
    layers, pieces = layer_count(config), pipeline * chunks
    each, held = -(-layers // pieces), [0] * pipeline
    for layer in range(config.first_k_dense_replace, layers):
        held[layer // each % pipeline] += 1
    return max(held)


@cache
def layer_runs(config: Architecture) -> tuple[Layers, ...]:
    """All layers from first to last, prediction modules' included; without embedding, head and the last norm."""
    if isinstance(config, DenseModel):
        return (Layers(config.num_hidden_layers, config.layer_parameters, 0),)
    c, counts = config, count(config)
    routed = c.n_routed_experts * counts.expert
    moe, entry = counts.moe_layer - routed, elements([mtp_entry(c)]) + 3 * c.hidden_size
    found = (
        Layers(c.first_k_dense_replace, counts.dense_layer, 0),
        Layers(c.num_moe_layers, moe, routed),
        Layers(c.num_nextn_predict_layers, moe + entry, routed, entry),
    )
    return tuple(layers for layers in found if layers.count)


@cache
def expert_parameters(config: Architecture) -> int:
    """Routed experts of all layers."""
    return sum(layers.count * layers.experts for layers in layer_runs(config))


def vocabulary_parameters(config: Architecture) -> int:
    """The embedding; the head has as many."""
    return config.vocab_size * config.hidden_size


def parameters(config: Architecture) -> int:
    """All that is trained."""
    layers = sum(run.count * (run.common + run.experts) for run in layer_runs(config))
    return layers + 2 * vocabulary_parameters(config) + config.hidden_size


# ------------------------------------------------------------------ what is sent


def dispatch_bytes(config: ModelConfig, precision: PrecisionName, nodes: float) -> float:
    """Of one token and MoE layer, to `nodes` nodes: once to each. FP8 has an FP32 scale for each 128 numbers."""
    width = config.hidden_size
    each = width + FLOAT * width / BLOCK if precision == "fp8" else _wide(precision) * width
    return nodes * each


def combine_bytes(config: ModelConfig, precision: PrecisionName, nodes: float) -> float:
    """The way back, in 16 bits (in FP32 where all is)."""
    return nodes * _wide(precision) * config.hidden_size


def context_bytes(config: Architecture) -> float:
    """Of one token and layer: what attention must see of other parts of the sequence, in 16 bits."""
    if isinstance(config, DenseModel):
        return 2 * 2 * config.num_key_value_heads * config.head_dim
    return 2 * (config.kv_lora_rank + config.qk_rope_head_dim)


@cache
def reached(config: ModelConfig, places: int) -> float:
    """Mean number of places (nodes, or GPUs) that a token's experts lie on, experts being spread evenly over `places`
    and visited equally. Routing limited to `topk_group` groups can reach only the places that hold them."""
    groups, chosen, k = config.n_group, config.topk_group, config.num_experts_per_tok
    if places >= groups:
        open_to = chosen * places / groups
    else:
        missed = 1.0  # no chosen group lies on a given place, which holds groups / places of them
        held = groups // places
        for drawn in range(chosen):
            missed *= max(0, groups - held - drawn) / (groups - drawn)
        open_to = places * (1 - missed)
    return min(float(k), open_to * (1 - (1 - 1 / open_to) ** k)) if open_to > 1 else open_to


def _wide(precision: PrecisionName) -> int:
    return FLOAT if precision == "fp32" else 2
