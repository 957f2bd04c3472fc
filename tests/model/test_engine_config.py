"""DeepSpeed's configuration, word for word: the files under tests/golden are what it is meant to be.

After an intended change, look at the difference and write the files anew:
`PYTHONPATH=.:tests python tests/model/test_engine_config.py`.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from support.recipes import TINY, tiny_recipe

from model.flops import count
from model.presets import preset
from model.recipe import Layout, Optimizer, Recipe

GOLDEN = Path(__file__).parents[1] / "golden"


def _stage(stage: Literal[0, 1, 2, 3]) -> Recipe:
    of = Layout(world_size=2, expert_parallel=2, zero_stage=stage, micro_batch=4, accumulation=1)
    return tiny_recipe(layout=of)


RECIPES = {
    "tiny-fp32": tiny_recipe(layout=Layout(world_size=2, expert_parallel=2, micro_batch=4, accumulation=1)),
    "v2-bf16-accumulation": tiny_recipe(
        model=TINY.replace(
            scoring_func="softmax",
            topk_method="group_limited_greedy",
            norm_topk_prob=False,
            routed_scaling_factor=16.0,
            n_shared_experts=0,
        ),
        precision="bf16",
        optimizer=Optimizer(grad_clip=1.0),
        layout=Layout(world_size=16, expert_parallel=8, micro_batch=2, accumulation=4, recompute="full"),
    ),
    "tiny-zero0": _stage(0),
    "tiny-zero2": _stage(2),
    "tiny-zero3": _stage(3),
    "fp8-gpu": tiny_recipe(precision="fp8", device="cuda"),
    "fp8-cpu": tiny_recipe(precision="fp8"),
    "dense": tiny_recipe(model=TINY.replace(first_k_dense_replace=3, num_nextn_predict_layers=0)),
}
Config = Callable[[Recipe], dict[str, Any]]


@pytest.fixture(scope="module")
def deepspeed_config() -> Config:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever DeepSpeed's imports have to say
        from model.engine.zero import deepspeed_config
    return deepspeed_config


@pytest.mark.parametrize("name", RECIPES)
def test_golden(deepspeed_config: Config, name: str) -> None:
    expected = json.loads((GOLDEN / f"deepspeed-{name}.json").read_text())
    assert deepspeed_config(RECIPES[name]) == expected


def test_no_golden_file_is_left_over() -> None:
    assert {p.name for p in GOLDEN.glob("deepspeed-*.json")} == {f"deepspeed-{name}.json" for name in RECIPES}


def test_pure_and_new_each_time(deepspeed_config: Config) -> None:
    recipe = RECIPES["tiny-fp32"]
    first = deepspeed_config(recipe)
    first["zero_optimization"]["stage"] = 3
    first["expert_parallel"]["autoep_size"] = 99
    second = deepspeed_config(recipe)
    assert second["zero_optimization"]["stage"] == 1
    assert second["expert_parallel"]["autoep_size"] == 2


def test_the_bucket_is_no_larger_than_the_model(deepspeed_config: Config) -> None:
    large = tiny_recipe(model=preset("small-h100"))
    sizes = [deepspeed_config(one)["zero_optimization"]["reduce_bucket_size"] for one in (tiny_recipe(), large)]
    assert sizes == [count(TINY).total + count(TINY).mtp, 500_000_000]


def test_a_module_alone_still_needs_expert_parallelism(deepspeed_config: Config) -> None:
    """All main layers dense, but the prediction module has experts."""
    recipe = tiny_recipe(model=TINY.replace(first_k_dense_replace=3))
    assert deepspeed_config(recipe)["expert_parallel"]["enabled"] is True


def test_the_pattern_finds_every_moe_layer_and_nothing_else() -> None:
    import re

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from model.engine.autoep import MOE_LAYERS
    from model.moe import MoE
    from model.transformer import CausalLM

    modules = dict(CausalLM(TINY.replace(num_hidden_layers=12, num_nextn_predict_layers=2)).named_modules())
    routed = {name for name, module in modules.items() if isinstance(module, MoE)}
    assert len(routed) == 13
    matched = {name for name in modules if re.fullmatch(MOE_LAYERS, name)}
    assert matched - {"model.layers.0.mlp"} == routed  # the dense layer has no experts for AutoEP to find


if __name__ == "__main__":
    from model.engine.zero import deepspeed_config as written

    for label, recipe in RECIPES.items():
        text = json.dumps(written(recipe), indent=2, sort_keys=True)
        (GOLDEN / f"deepspeed-{label}.json").write_text(text + "\n")
