import pytest

from model.flops import count
from model.presets import PRESETS, preset, small_h100, v3_671b


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_described(name: str) -> None:
    config = preset(name)
    assert config.replace() == config
    assert PRESETS[name].__doc__


def test_presets_are_listed_from_small_to_large() -> None:
    totals = [count(make()).total for make in PRESETS.values()]
    assert totals == sorted(totals)


def test_unknown_preset_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"'v3-617b'; did you mean v3-671b") as caught:
        preset("v3-617b")
    assert all(name in str(caught.value) for name in PRESETS)


def test_mini_shows_every_mechanism_on_a_laptop() -> None:
    config = preset("mini")
    counts = count(config)
    assert 3_000_000 <= counts.total + counts.mtp <= 4_500_000
    assert config.q_lora_rank
    assert config.n_group > config.topk_group > 1
    assert config.n_shared_experts
    assert config.num_nextn_predict_layers == 1
    assert 0 < config.first_k_dense_replace < config.num_hidden_layers


def test_small_h100_fills_one_80_gb_gpu() -> None:
    counts = count(small_h100())
    states = 18 * (counts.total + counts.mtp)  # BF16 weight 2, FP32 master 4, moments 8, gradient 4
    assert counts.total + counts.mtp == 3_500_578_560
    assert 60e9 <= states <= 65e9
    assert "3,500,578,560 parameters x 18 = 63.0 GB" in (small_h100.__doc__ or "")
    assert round(states / 1e9, 1) == 63.0


def test_v32_is_v3_with_an_indexer() -> None:
    without = preset("v3.2-671b").replace(index_n_heads=0, index_head_dim=0, index_topk=0)
    assert without == v3_671b()
