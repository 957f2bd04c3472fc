import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import DeepseekV2Config, DeepseekV3Config, DeepseekV32Config, PreTrainedConfig

from model.config import ModelConfig, Yarn
from model.flops import count
from model.presets import PRESETS, preset
from model.released import DEFAULTS, MAX_BYTES, from_released, read_released, to_released

YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": YARN,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
V2_LITE = V3 | {
    "model_type": "deepseek_v2",
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "vocab_size": 102400,
}
del V2_LITE["num_nextn_predict_layers"]


def test_v3_file() -> None:
    assert from_released(V3) == preset("v3-671b").replace(initializer_range=0.02)
    assert count(from_released(V3)).total == 671_026_404_352


def test_v2_lite_file() -> None:
    assert from_released(V2_LITE) == preset("v2-lite-16b").replace(initializer_range=0.02)
    assert count(from_released(V2_LITE)).total == 15_706_484_224


def test_v32_file_brings_its_indexer() -> None:
    indexer: dict[str, Any] = {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
    indexer["mlp_layer_types"] = ["dense"] * 3 + ["sparse"] * 58
    expected = preset("v3.2-671b").replace(initializer_range=0.02)
    assert from_released(V3 | {"model_type": "deepseek_v32"} | indexer) == expected
    assert from_released(V3 | {"model_type": "deepseek_v32"}) == expected  # by default


def test_kimi_is_read_like_v3() -> None:
    assert from_released(V3 | {"model_type": "kimi_k2"}) == from_released(V3)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("deepseek_v2", DeepseekV2Config(num_experts_per_tok=6)),
        ("deepseek_v3", DeepseekV3Config()),
        ("deepseek_v32", DeepseekV32Config()),
    ],
)
def test_what_a_file_leaves_out_means_what_transformers_says(kind: str, theirs: PreTrainedConfig) -> None:
    ours = from_released({"model_type": kind, "num_experts_per_tok": theirs.num_experts_per_tok})
    for key in DEFAULTS[kind]:
        expected = getattr(theirs, key, "absent")
        if expected == "absent":
            assert key.startswith("index_") or key in (
                "scoring_func",
                "topk_method",
                "num_nextn_predict_layers",
            )
        else:
            assert getattr(ours, key) == (1 if expected is None else expected), key
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_of_presets(name: str) -> None:
    config = preset(name)
    assert from_released(json.loads(json.dumps(to_released(config)))) == config


yarns = st.builds(
    Yarn,
    factor=st.floats(1.01, 100),
    original_max_position_embeddings=st.integers(1, 10_000),
    mscale=st.floats(0, 2),
    mscale_all_dim=st.floats(0, 2),
)


@given(
    st.none() | yarns,
    st.sampled_from(["noaux_tc", "greedy", "group_limited_greedy"]),
    st.sampled_from(["sigmoid", "softmax"]),
    st.integers(0, 3),
    st.integers(0, 2),
    st.none() | st.integers(1, 99),
)
def test_round_trip(yarn: Yarn | None, method: str, scoring: str, shared: int, depth: int, rank: int | None) -> None:
    config = preset("mini").replace(
        yarn=yarn,
        topk_method=method,
        scoring_func=scoring,
        n_shared_experts=shared,
        num_nextn_predict_layers=depth,
        q_lora_rank=rank,
    )
    assert from_released(json.loads(json.dumps(to_released(config)))) == config


@pytest.mark.parametrize("yarn", [None, Yarn(factor=40, mscale=0.707, mscale_all_dim=0.5)])
def test_transformers_reads_what_we_write_and_we_read_what_it_writes(yarn: Yarn | None) -> None:
    config = preset("mini").replace(yarn=yarn, max_position_embeddings=163_840, rope_theta=5e4)
    theirs = DeepseekV3Config(**to_released(config))
    for field in ModelConfig.model_fields.keys() - {"yarn", "rope_theta", "scoring_func", "topk_method"}:
        assert getattr(theirs, field) == getattr(config, field), field
    rope: dict[str, Any] = dict(theirs.rope_parameters or {})
    assert rope["rope_theta"] == 5e4
    assert rope["rope_type"] == ("yarn" if yarn else "default")
    assert yarn is None or yarn.model_dump().items() <= rope.items()
    assert from_released(json.loads(theirs.to_json_string(use_diff=False))) == config


def test_other_spellings() -> None:
    five = {k: v for k, v in V3.items() if k not in ("rope_scaling", "rope_theta", "num_nextn_predict_layers")}
    five["rope_parameters"] = {k: v for k, v in YARN.items() if k != "type"} | {
        "rope_type": "yarn",
        "rope_theta": 10000,
    }
    five["num_mtp_layers"] = 1
    five["num_local_experts"] = five.pop("n_routed_experts")
    assert from_released(five) == from_released(V3)
    assert from_released(V3 | {"rope_scaling": None}).yarn is None
    assert from_released(V3 | {"rope_scaling": {"rope_type": "default"}}).yarn is None
    assert from_released(V3 | {"rope_scaling": YARN | {"factor": 1.0}}).yarn is None  # stretches nothing
    bare = from_released(V3 | {"rope_scaling": {"type": "yarn", "factor": 4, "mscale_all_dim": None}}).yarn
    assert bare == Yarn(factor=4, original_max_position_embeddings=163_840, mscale=1.0, mscale_all_dim=0.0)


def test_null_means_none_of_it() -> None:
    nulls = {"n_group": None, "topk_group": None, "n_shared_experts": None, "num_nextn_predict_layers": None}
    config = from_released(V3 | nulls)
    assert (config.n_group, config.topk_group) == (1, 1)
    assert (config.n_shared_experts, config.num_nextn_predict_layers) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, r"model_type 'llama' is not one of deepseek_v2, deepseek_v3"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": ["deepseek_v3"]}, "model_type"),
        ({"model_type": "kimi_k25", "text_config": {"model_type": "kimi_k2"}}, "text_config is kimi_k2"),
        ({"model_type": "kimi_k25", "text_config": {"model_type": []}}, "'kimi_k25'"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2; only 1"),
        ({"moe_layer_freq": [0, 1]}, r"moe_layer_freq is \[0, 1\]"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_interleave": False}, "rope_interleave is False"),
        ({"num_key_value_heads": 8}, r"num_key_value_heads \(8\) differs from num_attention_heads \(128\)"),
        ({"mlp_layer_types": ["sparse"] * 61}, "'dense' 3 times .* then 'sparse' 58 times"),
        ({"mlp_layer_types": "dense"}, "'dense' 3 times"),
        ({"mlp_layer_types": 7}, "mlp_layer_types"),
        ({"first_k_dense_replace": [], "mlp_layer_types": ["dense"]}, "first_k_dense_replace"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope type 'linear'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": YARN | {"factor": 0.5}}, "yarn.factor: .* greater than 1, got 0.5"),
        ({"rope_scaling": YARN | {"factor": "many"}}, "yarn.factor: .*got many"),
        ({"rope_scaling": YARN | {"truncate": False}}, "rope_scaling.truncate is False"),
        ({"rope_scaling": YARN | {"attention_factor": 1.2}}, "rope_scaling.attention_factor is 1.2"),
        ({"rope_scaling": {"full_attention": YARN}}, "one flat object"),
        ({"rope_scaling": [1]}, "one flat object"),
        ({"rope_theta": -1}, "rope_theta: .*got -1"),
        ({"hidden_size": None}, "hidden_size: .*got None"),
        ({"hidden_size": "wide"}, "hidden_size: .*got wide"),
        ({"hidden_size": 10**30}, "hidden_size: "),
        ({"scoring_func": "sqrtsoftplus"}, "scoring_func: .*got sqrtsoftplus"),
        ({"topk_group": 9}, r"topk_group \(9\) exceeds n_group \(8\)"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_released(V3 | changes)


def test_v2_must_say_how_many_experts_a_token_visits() -> None:
    with pytest.raises(ValueError, match="num_experts_per_tok is missing"):
        from_released({k: v for k, v in V2_LITE.items() if k != "num_experts_per_tok"})


def test_reads_a_file_and_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(V3))
    assert read_released(file) == read_released(str(tmp_path)) == from_released(V3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{'model_type': 1}", "not valid JSON"),
        (b"\xff\xfe\xfa", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "JSON list"),
        (b"null", "JSON NoneType"),
        (b'{"model_type": "deepseek_v3", "rms_norm_eps": NaN}', "rms_norm_eps"),
        (b'{"model_type": "mixtral"}', "'mixtral'"),
        (b" " * (MAX_BYTES + 1), "larger than 1048576 bytes"),
    ],
)
def test_hostile_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_released(file)
    assert str(file) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*config\.json; give a config\.json or the folder"):
        read_released(tmp_path)
