from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DeepseekV32Config, DeepseekV32ForCausalLM

from model.config import ModelConfig
from model.flops import (
    cache_bytes_per_token,
    count,
    flops_per_token,
    mean_keys,
    plain_cache_bytes_per_token,
    released_storage,
)
from model.presets import PRESETS, preset
from model.released import to_released
from model.transformer import CausalLM

GIGA = 1e9


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def buffers(module: torch.nn.Module) -> int:
    return sum(b.numel() for n, b in module.named_buffers() if n.endswith("e_score_correction_bias"))


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    groups, per_group = draw(st.sampled_from([1, 2, 4])), draw(st.integers(2, 4))
    layers, reachable = draw(st.integers(1, 3)), draw(st.integers(1, groups))
    return ModelConfig(
        vocab_size=draw(st.integers(2, 300)),
        hidden_size=draw(st.integers(1, 40)),
        num_hidden_layers=layers,
        num_attention_heads=draw(st.integers(1, 5)),
        q_lora_rank=draw(st.none() | st.integers(1, 20)),
        kv_lora_rank=draw(st.integers(1, 20)),
        qk_nope_head_dim=draw(st.integers(1, 9)),
        qk_rope_head_dim=2 * draw(st.integers(1, 5)),
        v_head_dim=draw(st.integers(1, 9)),
        intermediate_size=draw(st.integers(1, 60)),
        moe_intermediate_size=draw(st.integers(1, 30)),
        first_k_dense_replace=draw(st.integers(0, layers)),
        n_routed_experts=groups * per_group,
        num_experts_per_tok=draw(st.integers(1, reachable * per_group)),
        n_shared_experts=draw(st.integers(1, 3)),
        n_group=groups,
        topk_group=reachable,
        num_nextn_predict_layers=draw(st.integers(0, 2)),
    )


@settings(deadline=None, max_examples=25)
@given(configs())
def test_total_is_that_of_transformers(config: ModelConfig) -> None:
    with torch.device("meta"):
        theirs = DeepseekV3ForCausalLM(DeepseekV3Config(**to_released(config)))
    counts = count(config)
    assert counts.total == parameters(theirs)
    assert counts.router_bias == buffers(theirs)


@settings(deadline=None, max_examples=25)
@given(configs())
def test_total_and_mtp_are_those_of_our_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        ours = CausalLM(config)
    counts = count(config)
    assert counts.total + counts.mtp == parameters(ours)
    assert counts.mtp == parameters(ours.model.mtp)
    experts = config.n_routed_experts * config.num_nextn_predict_layers
    assert counts.router_bias + experts == buffers(ours)


@settings(deadline=None, max_examples=25)
@given(configs())
def test_parts_add_up(config: ModelConfig) -> None:
    c = count(config)
    parts = (c.attention, c.indexer, c.dense_ffn, c.routed_experts, c.shared_experts, c.routers, c.norms)
    assert sum(parts) + c.embedding + c.head == c.total
    dense = config.first_k_dense_replace
    layers = dense * c.dense_layer + config.num_moe_layers * c.moe_layer
    assert layers + c.embedding + c.head + config.hidden_size == c.total
    assert c.matmul + c.norms == c.active_without_embedding


def hand_counted_matmul(config: ModelConfig) -> int:
    """Walks over the modules of our own model: every matrix once, experts as often as a token visits them."""
    with torch.device("meta"):
        ours = CausalLM(config)
    total = 0
    for name, parameter in ours.named_parameters():
        if "embed_tokens" in name or ".mtp." in name or parameter.dim() == 1:
            continue
        share = config.num_experts_per_tok if parameter.dim() == 3 else 1
        total += share * parameter.numel() // (config.n_routed_experts if parameter.dim() == 3 else 1)
    return total


@settings(deadline=None, max_examples=25)
@given(configs())
def test_matmul_parameters_by_walking_the_model(config: ModelConfig) -> None:
    assert count(config).matmul == hand_counted_matmul(config)


def test_flops_are_those_that_torch_counts() -> None:
    """Forward and backward of our model with dense layers only, in FP64, where no quick path skips hidden scores; the
    plain product computes them all."""
    from torch.utils.flop_counter import FlopCounterMode

    config = preset("mini").replace(num_nextn_predict_layers=0, first_k_dense_replace=4, vocab_size=64)
    model, length = CausalLM(config).double(), 32
    model.initialise(0)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(torch.zeros(1, length, dtype=torch.long)).logits[0].sum().backward()
    expected = flops_per_token(config, length, causal=False) * length
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-12)


def test_v3_counts_to_the_digit() -> None:
    c = count(preset("v3-671b"))
    assert asdict(c) == {
        "total": 671_026_404_352,
        "active": 37_552_282_624,
        "active_without_embedding": 36_625_603_584,
        "active_without_embedding_and_head": 35_698_924_544,
        "matmul": 36_624_596_992,
        "mtp": 11_610_067_968,
        "mtp_shipped": 13_463_426_048,
        "mtp_matmul": 1_614_741_504,
        "router_bias": 14_848,
        "embedding": 129_280 * 7168,
        "head": 129_280 * 7168,
        "attention": 61 * (583_483_392 - 3 * 18_432 * 7168 - 2 * 7168 - 1536 - 512),
        "indexer": 0,
        "dense_ffn": 3 * 3 * 18_432 * 7168,
        "routed_experts": 653_908_770_816,
        "shared_experts": 58 * 44_040_192,
        "routers": 58 * 256 * 7168,
        "norms": 61 * (2 * 7168 + 1536 + 512) + 7168,
        "expert": 44_040_192,
        "dense_layer": 583_483_392,
        "moe_layer": 11_507_286_016,
    }


@pytest.mark.parametrize(
    ("name", "total"),
    [("v3.2-671b", 671_877_929_216), ("v2-236b", 235_741_434_880), ("v2-lite-16b", 15_706_484_224)],
)
def test_totals_to_the_digit(name: str, total: int) -> None:
    assert count(preset(name)).total == total


def test_indexer() -> None:
    config = preset("v3.2-671b")
    assert count(config).indexer == 851_524_864
    with torch.device("meta"):
        small = config.replace(num_hidden_layers=4, vocab_size=8)
        theirs = DeepseekV32ForCausalLM(DeepseekV32Config(**to_released(small)))
    assert count(small).total == parameters(theirs)
    with pytest.raises(ValueError, match=r"index_n_heads=64\) .* q_lora_rank is null"):
        count(config.replace(q_lora_rank=None))


@pytest.mark.parametrize(("name", "active"), [("v2-236b", 21.4), ("v2-lite-16b", 2.66), ("kimi-k2-1t", 32.9)])
def test_active_in_billions(name: str, active: float) -> None:
    assert count(preset(name)).active / GIGA == pytest.approx(active, rel=0.003)


@pytest.mark.parametrize(
    ("causal", "mtp", "expected"),
    [(True, False, 250.4), (False, False, 281.2), (True, True, 260.6), (False, True, 291.8)],
)
def test_v3_flops_per_token(causal: bool, mtp: bool, expected: float) -> None:
    value = flops_per_token(preset("v3-671b"), 4096, causal=causal, mtp=mtp)
    assert round(value / GIGA, 1) == expected


def test_flops_per_token_elsewhere() -> None:
    v3 = preset("v3-671b")
    assert round(6 * count(v3).matmul / GIGA, 1) == 219.7
    assert round(flops_per_token(preset("v2-236b"), 4096) / GIGA, 1) == 155.3
    assert round(flops_per_token(v3, 32 * 1024) / GIGA) == 465
    assert round(flops_per_token(v3, 128 * 1024) / GIGA) == 1202
    with pytest.raises(ValueError, match="at least 1, got 0"):
        flops_per_token(v3, 0)


def test_sparse_attention_takes_no_more_than_its_limit() -> None:
    config = preset("v3.2-671b")
    for length in (100, 2048, 4096, 10_000):
        exact = sum(min(t, 2048) for t in range(1, length + 1)) / length
        assert mean_keys(config, length) == pytest.approx(exact, abs=0.51)
    assert mean_keys(config, 2048) == 1024
    assert mean_keys(config, 10_000, causal=False) == 2048
    dense = preset("v3-671b")
    assert mean_keys(dense, 10_000) == 5000
    assert flops_per_token(config, 128 * 1024) < flops_per_token(dense, 128 * 1024)


@pytest.mark.parametrize(("name", "expected"), [("v3-671b", 70_272), ("v2-236b", 69_120)])
def test_cache_bytes_per_token(name: str, expected: int) -> None:
    assert cache_bytes_per_token(preset(name)) == expected


def test_cache_of_other_kinds() -> None:
    v3 = preset("v3-671b")
    assert cache_bytes_per_token(v3, element_bytes=1) * 2 == cache_bytes_per_token(v3)
    assert plain_cache_bytes_per_token(v3) == 61 * 128 * (128 + 64 + 128) * 2
    assert cache_bytes_per_token(preset("v3.2-671b")) - cache_bytes_per_token(v3) == 61 * 128 * 2


def test_released_fp8_file_of_v3_to_the_byte() -> None:
    storage = released_storage(preset("v3-671b"))
    assert (storage.fp8, storage.bf16) == (680_571_043_840, 3_918_786_560)
    assert storage.fp32 == 41_540_496 + 15_104
    assert storage.bytes == 688_574_839_360


@pytest.mark.parametrize("name", PRESETS)
def test_every_count_is_a_natural_number(name: str) -> None:
    values: dict[str, Any] = asdict(count(preset(name)))
    assert all(isinstance(value, int) and value >= 0 for value in values.values())
