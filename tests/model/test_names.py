from collections import Counter
from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DeepseekV32Config, DeepseekV32ForCausalLM

from model.config import ModelConfig
from model.flops import count
from model.names import (
    autoep_part,
    autoep_to_memory,
    disk_entries,
    is_buffer,
    memory_shapes,
    memory_to_autoep,
    parameter_count,
)
from model.presets import PRESETS, preset
from model.released import to_released
from model.transformer import CausalLM

MINI = preset("mini")
VARIANTS = [
    MINI,
    MINI.replace(q_lora_rank=None, num_nextn_predict_layers=2, n_shared_experts=2),
    MINI.replace(first_k_dense_replace=0, num_nextn_predict_layers=0),
    MINI.replace(first_k_dense_replace=4),
    MINI.replace(n_shared_experts=0, topk_method="greedy", scoring_func="softmax"),
]


def tensors(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tuple(tensor.shape) for name, tensor in named if not name.endswith("inv_freq")}


def on_meta(config: ModelConfig) -> CausalLM:
    with torch.device("meta"):
        return CausalLM(config)


@pytest.mark.parametrize("config", VARIANTS)
def test_memory_is_our_model(config: ModelConfig) -> None:
    assert memory_shapes(config) == tensors(on_meta(config))


@pytest.mark.parametrize("config", VARIANTS[:4])
def test_memory_holds_every_tensor_of_transformers(config: ModelConfig) -> None:
    with torch.device("meta"):
        theirs = DeepseekV3ForCausalLM(DeepseekV3Config(**to_released(config)))
    ours = {name: shape for name, shape in memory_shapes(config).items() if ".mtp." not in name}
    assert tensors(theirs).items() <= ours.items()
    assert {n for n in ours if n not in tensors(theirs)} == set()


def test_memory_names_of_the_indexer() -> None:
    config = preset("v3.2-671b").replace(num_hidden_layers=4, vocab_size=8, num_nextn_predict_layers=0)
    with torch.device("meta"):
        theirs = DeepseekV32ForCausalLM(DeepseekV32Config(**to_released(config)))
    assert memory_shapes(config) == tensors(theirs)


@pytest.mark.parametrize("name", PRESETS)
def test_shapes_and_counts_agree(name: str) -> None:
    counts = count(preset(name))
    assert parameter_count(preset(name)) == counts.total + counts.mtp


@pytest.mark.parametrize("config", VARIANTS)
def test_disk_covers_memory_exactly_once(config: ModelConfig) -> None:
    entries = disk_entries(config)
    assert len({entry.name for entry in entries}) == len(entries)
    seen = {name: torch.zeros(shape) for name, shape in memory_shapes(config).items()}
    for entry in entries:
        view = seen[entry.memory_name][entry.index]
        assert tuple(view.shape) == entry.shape
        if not entry.copy:
            view += 1
    for name, times in seen.items():
        unused = is_buffer(name) and config.topk_method != "noaux_tc"
        assert torch.equal(times, torch.full_like(times, 0 if unused else 1)), name


def test_disk_names_of_the_released_layout() -> None:
    by_name = {entry.name: entry for entry in disk_entries(preset("v3-671b"))}
    # Names as model.safetensors.index.json of DeepSeek-V3 lists them.
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.3.mlp.gate.e_score_correction_bias",
        "model.layers.60.mlp.experts.255.down_proj.weight",
        "model.layers.60.mlp.shared_experts.up_proj.weight",
        "model.layers.60.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.61.embed_tokens.weight",
        "model.layers.61.enorm.weight",
        "model.layers.61.hnorm.weight",
        "model.layers.61.eh_proj.weight",
        "model.layers.61.input_layernorm.weight",
        "model.layers.61.mlp.experts.0.gate_proj.weight",
        "model.layers.61.mlp.gate.weight",
        "model.layers.61.self_attn.q_a_layernorm.weight",
        "model.layers.61.shared_head.norm.weight",
        "model.layers.61.shared_head.head.weight",
        "model.norm.weight",
        "lm_head.weight",
    } <= by_name.keys()
    assert not any("mtp" in name or "block" in name or "gate_up" in name for name in by_name)
    up = by_name["model.layers.61.mlp.experts.7.up_proj.weight"]
    assert (up.memory_name, up.expert, up.part) == ("model.mtp.0.block.mlp.experts.gate_up_proj", 7, "up")
    assert (up.shape, up.index) == ((2048, 7168), (7, slice(2048, 4096)))
    assert by_name["model.layers.61.shared_head.norm.weight"].memory_name == "model.mtp.0.norm.weight"
    copies = [entry for entry in by_name.values() if entry.copy]
    assert {entry.memory_name for entry in copies} == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize(("name", "buffers"), [("v3-671b", 15_104), ("v2-lite-16b", 0)])
def test_disk_size(name: str, buffers: int) -> None:
    config, counts = preset(name), count(preset(name))
    sizes = [torch.Size(entry.shape).numel() for entry in disk_entries(config)]
    assert sum(sizes) == counts.total + counts.mtp_shipped + buffers


def test_slices_hold_the_weights_that_transformers_uses() -> None:
    """Gate before up in the stack: one expert by hand against the forward of transformers."""
    config = MINI.replace(num_hidden_layers=1, first_k_dense_replace=0, num_nextn_predict_layers=0)
    experts = DeepseekV3ForCausalLM(DeepseekV3Config(**to_released(config))).model.layers[0].mlp.experts
    torch.manual_seed(0)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    memory = {"gate_up_proj": experts.gate_up_proj, "down_proj": experts.down_proj}
    at = {
        entry.name.split(".")[-2]: memory[entry.memory_name.rsplit(".", 1)[1]][entry.index]
        for entry in disk_entries(config)
        if ".experts.5." in entry.name
    }
    x = torch.randn(3, config.hidden_size)
    by_hand = torch.nn.functional.silu(x @ at["gate_proj"].T) * (x @ at["up_proj"].T) @ at["down_proj"].T
    chosen, weight = torch.full((3, 1), 5), torch.ones(3, 1)
    torch.testing.assert_close(experts(x, chosen, weight), by_hand)


@pytest.mark.parametrize("config", VARIANTS)
def test_autoep_names_are_a_bijection(config: ModelConfig) -> None:
    memory = memory_shapes(config)
    renamed = {name: memory_to_autoep(name) for name in memory}
    flat = [new for names in renamed.values() for new in names]
    assert max(Counter(flat).values()) == 1
    for name, names in renamed.items():
        assert {autoep_to_memory(new) for new in names} == {name}
        parts = [autoep_part(new) for new in names]
        assert parts == (["gate", "up"] if name.endswith("gate_up_proj") else [None])
        stays = ".mlp.gate." not in name and ".mlp.experts." not in name
        assert (names == (name,)) == stays


@pytest.mark.parametrize("prefix", ["model.layers.3.mlp.", "model.mtp.0.block.mlp."])
def test_autoep_names_by_example(prefix: str) -> None:
    assert memory_to_autoep(prefix + "gate.weight") == (prefix + "router.gate.weight",)
    assert memory_to_autoep(prefix + "experts.gate_up_proj") == (prefix + "experts.w1", prefix + "experts.w3")
    assert memory_to_autoep(prefix + "experts.down_proj") == (prefix + "experts.w2",)
    assert autoep_to_memory(prefix + "router.e_score_correction_bias") == prefix + "gate.e_score_correction_bias"
    assert memory_to_autoep(prefix + "gate_proj.weight") == (prefix + "gate_proj.weight",)
    assert autoep_to_memory(prefix + "shared_experts.up_proj.weight") == prefix + "shared_experts.up_proj.weight"


@pytest.mark.filterwarnings("ignore")  # DeepSpeed's own, at import
def test_autoep_names_are_deepspeeds() -> None:
    """Its router and expert modules, built as AutoEPMoELayer builds them, hold the names of the table."""
    from model.engine.lean_deepspeed import GroupedExperts, TokenChoiceTopKRouter

    router: dict[str, Any] = {
        "score_func": "sigmoid",
        "route_norm": True,
        "route_scale": 1.0,
        "gate_bias": False,
    }
    layer = torch.nn.Module()
    layer.router = TokenChoiceTopKRouter(
        dim=MINI.hidden_size,
        num_experts=MINI.n_routed_experts,
        num_expert_groups=None,
        num_limited_groups=None,
        top_k=MINI.num_experts_per_tok,
        **router,
    )
    layer.experts = GroupedExperts(
        dim=MINI.hidden_size,
        hidden_dim=MINI.moe_intermediate_size,
        num_experts=MINI.n_routed_experts,
        use_grouped_mm=False,
    )
    prefix = "model.layers.1.mlp."
    memory = memory_shapes(MINI)
    expected: dict[str, tuple[int, ...]] = {}
    for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
        new = memory_to_autoep(prefix + name)
        experts, rows, *columns = memory[prefix + name]
        expected |= {key: (experts, rows // len(new), *columns) for key in new}
    assert {prefix + name: shape for name, shape in tensors(layer).items()} == expected
