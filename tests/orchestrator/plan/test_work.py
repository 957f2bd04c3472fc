"""FLOPs by kind against `model.flops`, parameters against its counts, and the bytes that DeepSeek publishes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.flops import count, flops_per_token
from model.presets import PRESETS, mini, preset
from orchestrator.plan.memory import trained_parameters
from orchestrator.plan.published import dense_models
from orchestrator.plan.work import (
    combine_bytes,
    dispatch_bytes,
    expert_parameters,
    flops_by_kind,
    layer_runs,
    model_flops,
    moe_layers,
    parameters,
    reached,
    up_projection_flops,
)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("length", [64, 4096, 131_071])
def test_kinds_add_up_to_the_last_digit(name: str, length: int) -> None:
    config, tokens = preset(name), 62_914_560
    total = sum(flops_by_kind(config, length).values())
    assert total * tokens == flops_per_token(config, length, causal=True, mtp=True) * tokens
    assert model_flops(config, length, mtp=True) == total
    assert model_flops(config, length) == flops_per_token(config, length)


def test_kinds_of_dense_models_add_up() -> None:
    for model in dense_models().values():
        assert sum(flops_by_kind(model, 8192).values()) == model.flops_per_token(8192) == model_flops(model, 8192)


def test_parameters_by_layer() -> None:
    for name in PRESETS:
        config = preset(name)
        assert parameters(config) == trained_parameters(config), name
    assert parameters(preset("v3-671b")) == 682_636_472_320
    kinds = [(run.count, run.experts) for run in layer_runs(preset("v3-671b"))]
    assert kinds == [(3, 0), (58, 256 * 44_040_192), (1, 256 * 44_040_192)]
    assert expert_parameters(preset("v3-671b")) == 59 * 256 * 44_040_192
    for model in dense_models().values():
        assert parameters(model) == model.parameters


def test_up_projections_of_v3() -> None:
    """62 layers with that of the prediction module; 1536 to queries, 512 to keys and values of 128 heads."""
    assert up_projection_flops(preset("v3-671b")) == 2 * 62 * (1536 * 128 * 192 + 512 * 128 * 256)
    assert up_projection_flops(preset("v2-lite-16b")) == 2 * 27 * 512 * 16 * 256, "queries are not compressed"


def test_bytes_of_an_exchange_as_published() -> None:
    """A token to four nodes in FP8 with FP32 scales, back in BF16: model.md's 29,568 and 57,344 bytes."""
    config = preset("v3-671b")
    assert dispatch_bytes(config, "fp8", config.topk_group) == 29_568
    assert combine_bytes(config, "fp8", config.topk_group) == 57_344
    assert dispatch_bytes(config, "bf16", 1) == 2 * 7168
    assert dispatch_bytes(config, "fp32", 1) == combine_bytes(config, "fp32", 1) == 4 * 7168
    assert round(4096 * dispatch_bytes(config, "fp8", 4) / 1e6) == 121
    assert round(4096 * combine_bytes(config, "fp8", 4) / 1e6) == 235


def test_tokens_reach_few_nodes() -> None:
    config = preset("v3-671b")
    assert reached(config, 1) == 1
    assert reached(config, 8) < config.topk_group, "a chosen group may get no expert"
    assert reached(config, 8) == pytest.approx(4 * (1 - (3 / 4) ** 8), rel=0.01)
    assert reached(config.replace(n_group=1, topk_group=1), 8) > 1.3 * reached(config, 8), "what the limit saves"
    assert reached(config, 64) <= config.num_experts_per_tok


@given(st.integers(0, 8), st.integers(1, 4), st.integers(0, 8))
def test_reached_lies_between_one_and_all(log_groups: int, chosen: int, log_places: int) -> None:
    groups, places = 2 ** min(log_groups, 3), 2**log_places
    config = mini().replace(n_routed_experts=256, n_group=groups, topk_group=min(chosen, groups), num_experts_per_tok=4)
    found = reached(config, places)
    assert found + 1e-9 >= 1
    assert found <= min(places, 4) + 1e-9
    per_group = places / groups
    assert found <= max(1.0, min(chosen, groups) * max(1.0, per_group)) + 1e-9


def test_one_place_of_many_groups_is_missed_as_drawn() -> None:
    """2 of 4 groups, 2 places with 2 groups each: a place is missed by both draws with 1/2 x 1/3."""
    config = mini().replace(n_group=4, topk_group=2, num_experts_per_tok=4)
    open_to = 2 * (1 - 1 / 6)
    assert reached(config, 2) == pytest.approx(open_to * (1 - (1 - 1 / open_to) ** 4))


def test_counts_stay_shared_with_the_model() -> None:
    flops, counts = flops_by_kind(preset("v3-671b"), 4096), count(preset("v3-671b"))
    assert flops["dense"] == 6 * counts.dense_ffn
    assert flops["head"] == 2 * 6 * counts.head


def test_the_fullest_gpu_has_most_layers_that_exchange() -> None:
    v3 = preset("v3-671b")
    assert moe_layers(v3, 1, 1) == 59
    assert moe_layers(v3, 16, 1) == 4, "3 dense layers and 59 others: stages of 4"
    assert moe_layers(v3, 4, 8) == 16, "32 pieces of 2, 8 on each GPU; the first 2 pieces hold the 3 dense layers"
    assert moe_layers(v3, 32, 1) == 2
    assert moe_layers(dense_models()["llama-3.1-8b"], 4, 1) == 0
