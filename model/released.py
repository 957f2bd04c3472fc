"""Released `config.json` files: read into a ModelConfig, and written from one. No torch.

Called by `fathom model`, by a job's `model.initFrom` and by the export. Invariant: what this program would
compute differently from the released code is refused, never silently dropped; and
`from_released(to_released(config)) == config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import ModelConfig
from model.files import local_path, read_file

MAX_BYTES = 1 << 20
"""Larger files are no configuration."""

_V3: dict[str, Any] = {
    "vocab_size": 129_280,
    "hidden_size": 7168,
    "intermediate_size": 18_432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "num_nextn_predict_layers": 1,
    "index_n_heads": 0,
    "index_head_dim": 0,
    "index_topk": 0,
}
_V2 = _V3 | {
    "vocab_size": 102_400,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "moe_intermediate_size": 1407,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": None,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "max_position_embeddings": 2048,
    "num_nextn_predict_layers": 0,
}
_V32 = _V3 | {
    "max_position_embeddings": 163_840,
    "num_nextn_predict_layers": 0,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": _V2,
    "deepseek_v3": _V3,
    "deepseek_v32": _V32,
    "kimi_k2": _V3,
}
"""What a key means that the file leaves out: transformers' defaults, by `model_type`."""

_ALIASES = {
    "n_routed_experts": ("num_local_experts", "num_experts"),
    "num_nextn_predict_layers": ("num_mtp_layers",),
}
_NULL_MEANS = {"n_group": 1, "topk_group": 1, "n_shared_experts": 0, "num_nextn_predict_layers": 0}
_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "rope_interleave": True,
    "tie_word_embeddings": False,
}
"""Keys of which one value is supported; absent or null means that value."""


def from_released(data: Mapping[str, Any]) -> ModelConfig:
    """The architecture in a released `config.json`; keys that do not describe it are ignored.

    ValueError says which key is missing, impossible or not supported.
    """
    defaults = DEFAULTS.get(str(data.get("model_type")))
    if defaults is None:
        raise ValueError(_refusal(data))
    _refuse_unsupported(data)
    fields = {key: _value(data, key, default) for key, default in defaults.items()}
    if fields["num_experts_per_tok"] is None:
        raise ValueError("num_experts_per_tok is missing; add how many routed experts a token visits")
    rope = _rope(data)
    theta = rope.get("rope_theta", data.get("rope_theta"))
    fields["rope_theta"] = 10_000.0 if theta is None else theta
    fields["yarn"] = _yarn(rope, fields["max_position_embeddings"])
    try:
        config = ModelConfig.model_validate(fields)
    except ValidationError as error:
        raise ValueError("; ".join(_problem(e) for e in error.errors())) from error
    _refuse_other_layers(data, config)
    return config


def _refusal(data: Mapping[str, Any]) -> str:
    text = data.get("text_config")
    inner = text.get("model_type") if isinstance(text, Mapping) else None
    hint = f"; its text_config is {inner}: give that part as a file of its own" if str(inner) in DEFAULTS else ""
    return f"model_type {data.get('model_type')!r} is not one of {', '.join(DEFAULTS)}{hint}"


def _refuse_unsupported(data: Mapping[str, Any]) -> None:
    for key, supported in _ONLY.items():
        if data.get(key) is not None and data[key] != supported:
            raise ValueError(f"{key} is {data[key]!r}; only {supported!r} is supported")


def _refuse_other_layers(data: Mapping[str, Any], config: ModelConfig) -> None:
    heads, kinds = data.get("num_key_value_heads"), data.get("mlp_layer_types")
    if heads is not None and heads != config.num_attention_heads:
        raise ValueError(
            f"num_key_value_heads ({heads}) differs from num_attention_heads ({config.num_attention_heads}): "
            "latent attention has as many keys as queries"
        )
    dense = config.first_k_dense_replace
    if kinds is not None and kinds != ["dense"] * dense + ["sparse"] * config.num_moe_layers:
        raise ValueError(
            f"mlp_layer_types must be 'dense' {dense} times (first_k_dense_replace), then 'sparse' "
            f"{config.num_moe_layers} times, as num_hidden_layers is {config.num_hidden_layers}"
        )


def _value(data: Mapping[str, Any], key: str, default: object) -> object:
    for name in (key, *_ALIASES.get(key, ())):
        if name in data:
            return _NULL_MEANS.get(key) if data[name] is None else data[name]
    return default


def _rope(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings under either of their two names."""
    rope = data.get("rope_scaling") or data.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError(f"rope_scaling must be one flat object for all layers, got {str(rope)[:80]}")
    return rope


def _yarn(rope: Mapping[str, Any], context: object) -> dict[str, Any] | None:
    """YaRN's settings, with the defaults of DeepSeek's code for mscale (1) and mscale_all_dim (0: none)."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "yarn":
        raise ValueError(f"rope type {kind!r} is not supported; only 'yarn' and 'default' are")
    for key, neutral in (("attention_factor", None), ("truncate", True)):
        if rope.get(key, neutral) not in (None, neutral):
            raise ValueError(f"rope_scaling.{key} is {rope[key]!r}, which is not supported; remove it")
    given = {key: rope[key] for key in rope if rope[key] is not None}
    if given.get("factor") is None:
        raise ValueError("rope_scaling.factor is missing: YaRN needs it")
    if given["factor"] == 1:
        return None
    return {
        "factor": given["factor"],
        "original_max_position_embeddings": given.get("original_max_position_embeddings", context),
        "beta_fast": given.get("beta_fast", 32.0),
        "beta_slow": given.get("beta_slow", 1.0),
        "mscale": given.get("mscale", 1.0),
        "mscale_all_dim": given.get("mscale_all_dim", 0.0),
    }


def _problem(error: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {message}, got {str(error['input'])[:80]}" if path else message


def read_released(path: str | Path) -> ModelConfig:
    """`from_released` of a file, or of `config.json` in a folder or below a URL; errors name the file.

    FileNotFoundError if there is none, ValueError if it is too large, not JSON or not supported.
    """
    file = _file(str(path))
    try:
        raw = read_file(file, MAX_BYTES)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; give a config.json or the folder that holds it") from None
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds a JSON {type(data).__name__}, not an object")
    try:
        return from_released(data)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _file(uri: str) -> str:
    """The file itself, or `config.json` in the folder."""
    local = local_path(uri)
    folder = not uri.endswith(".json") if local is None else local.is_dir()
    return f"{uri.rstrip('/') or uri}/config.json" if folder else uri


def to_released(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers and `from_released` read; every field is written out."""
    c = config
    kind, architecture = "deepseek_v3", "DeepseekV3ForCausalLM"
    if c.index_n_heads:
        kind, architecture = "deepseek_v32", "DeepseekV32ForCausalLM"
    elif c.topk_method != "noaux_tc":
        kind, architecture = "deepseek_v2", "DeepseekV2ForCausalLM"
    data: dict[str, Any] = {"architectures": [architecture], "model_type": kind}
    data |= c.model_dump(exclude={"yarn"})
    data |= {"hidden_act": "silu", "attention_bias": False, "moe_layer_freq": 1}
    data["num_key_value_heads"] = c.num_attention_heads
    data["rope_scaling"] = None if c.yarn is None else {"type": "yarn", **c.yarn.model_dump()}
    return data
