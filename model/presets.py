"""Named architectures as functions: the names that `model.preset` of a job and `fathom model` know. No torch.

Released models are given as their final `config.json` describes them, so with the YaRN extension that was
trained last; pre-training from scratch starts with `replace(yarn=None, max_position_embeddings=4096)`.
DeepSeek's have the papers' `initializer_range` (0.006); their released files carry transformers' default.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from model.config import ModelConfig, Yarn


def mini() -> ModelConfig:
    """4.0M parameters with MTP (2.3M active), every mechanism of V3 in small: a laptop without a GPU.

    `initializer_range` is larger than the paper's because the width is smaller.
    """
    return ModelConfig(
        vocab_size=4096,
        hidden_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        q_lora_rank=64,
        kv_lora_rank=48,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        intermediate_size=448,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
        max_position_embeddings=1024,
        initializer_range=0.02,
    )


def small_h100() -> ModelConfig:
    """3.5B parameters with MTP (0.6B active): fills one 80 GB H100.

    BF16 weights 2 + FP32 master weights 4 + FP32 moments 8 + FP32 gradients 4 = 18 bytes per parameter;
    3,500,578,560 parameters x 18 = 63.0 GB, which leaves the rest of the 80 GB to activations.
    """
    return ModelConfig(
        vocab_size=32_768,
        hidden_size=1536,
        num_hidden_layers=14,
        num_attention_heads=16,
        q_lora_rank=768,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        intermediate_size=6144,
        moe_intermediate_size=768,
        first_k_dense_replace=1,
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_shared_experts=1,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
        max_position_embeddings=4096,
        initializer_range=0.006,
    )


def v2_lite_16b() -> ModelConfig:
    """DeepSeek-V2-Lite, 15.7B parameters (2.7B active), arXiv 2405.04434: BF16 weights fit one 40 GB GPU for
    inference; its training states (283 GB) need four 80 GB GPUs."""
    return ModelConfig(
        vocab_size=102_400,
        hidden_size=2048,
        num_hidden_layers=27,
        num_attention_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        intermediate_size=10_944,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_shared_experts=2,
        scoring_func="softmax",
        topk_method="greedy",
        norm_topk_prob=False,
        yarn=Yarn(factor=40, mscale=0.707, mscale_all_dim=0.707),
        max_position_embeddings=163_840,
    )


def v2_236b() -> ModelConfig:
    """DeepSeek-V2, 235.7B parameters (21.4B active), arXiv 2405.04434: a cluster of H800 nodes."""
    return ModelConfig(
        vocab_size=102_400,
        hidden_size=5120,
        num_hidden_layers=60,
        num_attention_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        intermediate_size=12_288,
        moe_intermediate_size=1536,
        first_k_dense_replace=1,
        n_routed_experts=160,
        num_experts_per_tok=6,
        n_shared_experts=2,
        n_group=8,
        topk_group=3,
        scoring_func="softmax",
        topk_method="group_limited_greedy",
        norm_topk_prob=False,
        routed_scaling_factor=16.0,
        yarn=Yarn(factor=40, mscale=0.707, mscale_all_dim=0.707),
        max_position_embeddings=163_840,
    )


def v3_671b() -> ModelConfig:
    """DeepSeek-V3 and R1, 671.0B parameters (37.6B active) and one MTP module, arXiv 2412.19437: trained on
    2048 H800."""
    return ModelConfig(
        vocab_size=129_280,
        hidden_size=7168,
        num_hidden_layers=61,
        num_attention_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        intermediate_size=18_432,
        moe_intermediate_size=2048,
        first_k_dense_replace=3,
        n_routed_experts=256,
        num_experts_per_tok=8,
        n_shared_experts=1,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
        yarn=Yarn(factor=40),
        max_position_embeddings=163_840,
    )


def v3_2_671b() -> ModelConfig:
    """DeepSeek-V3.2, V3 with a sparse-attention indexer in every layer, 671.9B parameters: counted and priced
    only, not yet trainable."""
    return v3_671b().replace(index_n_heads=64, index_head_dim=128, index_topk=2048)


def moonlight_16b() -> ModelConfig:
    """Moonlight-16B-A3B, 16.0B parameters (2.9B active), V3's mechanisms at V2-Lite's size without groups and
    MTP: training states (287 GB) need four 80 GB GPUs."""
    return ModelConfig(
        vocab_size=163_840,
        hidden_size=2048,
        num_hidden_layers=27,
        num_attention_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        intermediate_size=11_264,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_shared_experts=2,
        routed_scaling_factor=2.446,
        rms_norm_eps=1e-5,
        rope_theta=50_000.0,
        max_position_embeddings=8192,
        initializer_range=0.02,
    )


def kimi_k2_1t() -> ModelConfig:
    """Kimi K2 as first released (128K context), 1.03T parameters (32.9B active): V3 with 384 experts,
    half the heads, one dense layer, no groups, no MTP; BF16 weights alone (2.05 TB) fill 26 GPUs of 80 GB."""
    return v3_671b().replace(
        vocab_size=163_840,
        num_attention_heads=64,
        first_k_dense_replace=1,
        n_routed_experts=384,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=2.827,
        num_nextn_predict_layers=0,
        rope_theta=50_000.0,
        yarn=Yarn(factor=32, beta_fast=1.0),
        max_position_embeddings=131_072,
        initializer_range=0.02,
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "mini": mini,
    "small-h100": small_h100,
    "v2-lite-16b": v2_lite_16b,
    "moonlight-16b": moonlight_16b,
    "v2-236b": v2_236b,
    "v3-671b": v3_671b,
    "v3.2-671b": v3_2_671b,
    "kimi-k2-1t": kimi_k2_1t,
}
"""From small to large."""


def preset(name: str) -> ModelConfig:
    """The architecture of that name; ValueError names the nearest and lists them all."""
    if name in PRESETS:
        return PRESETS[name]()
    near = get_close_matches(name, PRESETS, n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"there is no preset {name!r}{hint} (presets: {', '.join(PRESETS)})")
