from pathlib import Path
from subprocess import run
from sys import executable
from typing import Any

import pytest
from pydantic import ValidationError

from model.config import ModelConfig, Yarn
from model.presets import mini


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({"qk_rope_head_dim": 15}, ["even", "15"]),
        ({"first_k_dense_replace": 9}, ["9", "4"]),
        ({"n_group": 3, "topk_group": 1}, ["3", "16"]),
        ({"topk_group": 5}, ["5", "4"]),
        ({"num_experts_per_tok": 9}, ["9", "8"]),
        ({"n_group": 16, "topk_group": 8}, ["16", "at most 8"]),
        ({"vocab_size": 1}, ["vocab_size"]),
        ({"hidden_size": -8}, ["hidden_size"]),
        ({"hidden_size": 1.5}, ["hidden_size"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps"]),
        ({"rope_theta": float("inf")}, ["rope_theta"]),
        ({"scoring_func": "sqrtsoftplus"}, ["scoring_func"]),
        ({"tie_word_embeddings": True}, ["tie_word_embeddings"]),
        ({"yarn": {"factor": 1.0}}, ["yarn.factor"]),
        ({"yarn": {"factor": 2.0, "beta": 1}}, ["yarn.beta"]),
        ({"yarn": {"factor": 2.0, "beta_slow": 0}}, ["yarn.beta_slow"]),
        ({"yarn": {"factor": 2.0, "beta_fast": 2, "beta_slow": 3}}, ["beta_fast (2)", "beta_slow (3)"]),
        ({"yarn": {"factor": 2.0, "mscale_all_dim": -1}}, ["yarn.mscale_all_dim"]),
        ({"yarn": {"factor": 2.0}, "rope_theta": 1.0}, ["rope_theta (1)"]),
        ({"hiden_size": 8}, ["hiden_size"]),
    ],
)
def test_impossible_values_are_named(changes: dict[str, Any], numbers: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        mini().replace(**changes)
    for number in numbers:
        assert number in str(caught.value)


def test_a_single_expert_group_needs_no_pair_of_experts() -> None:
    config = mini().replace(n_routed_experts=1, n_group=1, topk_group=1, num_experts_per_tok=1)
    assert config.n_routed_experts == 1


def test_replace_keeps_the_original_and_nested_values() -> None:
    config = mini().replace(yarn=Yarn(factor=4))
    changed = config.replace(num_hidden_layers=6)
    assert (config.num_hidden_layers, changed.num_hidden_layers) == (4, 6)
    assert changed.yarn == Yarn(factor=4)
    with pytest.raises(ValidationError):
        config.hidden_size = 1  # type: ignore[misc]


def test_stretched_for_longer_sequences() -> None:
    config, yarn = mini(), Yarn(factor=2.5, original_max_position_embeddings=1000)
    assert config.stretched(2500, yarn) == config.replace(yarn=yarn, max_position_embeddings=2500)
    with pytest.raises(ValueError, match=r"factor 2\.5 makes 2500 positions of 1000, 2501 are wanted: .* factor of 3"):
        config.stretched(2501, yarn)


def test_derived_sizes() -> None:
    config = mini()
    assert config.qk_head_dim == config.qk_nope_head_dim + config.qk_rope_head_dim
    assert config.num_moe_layers == config.num_hidden_layers - config.first_k_dense_replace
    assert config.replace(first_k_dense_replace=4).num_moe_layers == 0


def test_json_round_trip() -> None:
    config = mini().replace(yarn=Yarn(factor=4, mscale=0.707))
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_configuration_imports_neither_torch_nor_numpy() -> None:
    """The planner and the command line run where neither is installed."""
    code = (
        "import sys; sys.modules.update(torch=None, numpy=None, transformers=None)\n"
        "import model.config, model.recipe, model.presets, model.flops, model.names, model.released\n"
        "from model.presets import preset\n"
        "print(model.flops.count(preset('v3-671b')).total)"
    )
    root = Path(__file__).parents[2]
    done = run([executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "671026404352", done.stderr


def test_every_size_has_a_bound() -> None:
    """A number out of a file must not decide how long anything takes."""
    sizes = {name for name, value in mini().model_dump().items() if type(value) is int} | {"q_lora_rank"}
    related = {"first_k_dense_replace", "num_experts_per_tok", "n_group", "topk_group"}  # bounded by others
    for name in sorted(sizes - related):
        with pytest.raises(ValidationError, match=f"{name}\n.*less than or equal to"):
            mini().replace(**{name: 2 * 10**9})
    for changes in ({"factor": 1e7}, {"factor": 2.0, "original_max_position_embeddings": 2 * 10**9}):
        with pytest.raises(ValidationError, match="less than or equal to"):
            mini().replace(yarn=changes)
    for name in sorted(related):
        with pytest.raises(ValidationError, match=name):
            mini().replace(**{name: 2 * 10**9})


def test_a_copy_that_differs_has_a_hash_of_its_own() -> None:
    """The hash is kept once it was asked for."""
    first, same = mini(), mini().model_copy()
    assert len({first, same, mini()}) == 1
    wider = first.model_copy(update={"hidden_size": 2 * first.hidden_size})
    assert len({first, wider}) == 2
    assert hash(wider) != hash(first)
    assert hash(wider.model_copy(update={"hidden_size": first.hidden_size})) == hash(first)
