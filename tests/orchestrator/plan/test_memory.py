"""The planner's memory: published sums to the digit, and what ZeRO, experts and recomputation divide."""

import pytest

from model.presets import mini, preset, small_h100
from model.recipe import Layout
from orchestrator.plan.memory import (
    BF16,
    BUCKET,
    CLASSIC_BF16,
    FP32,
    OFFICIAL_FP8,
    Kernels,
    expert_parameters,
    trained_parameters,
    training_memory,
)

GIB = 2**30


def layout(**changes: object) -> Layout:
    base = {"world_size": 1, "expert_parallel": 1, "micro_batch": 2, "accumulation": 1}
    return Layout.model_validate(base | changes)


def test_published_sums_of_v3() -> None:
    """13 and 18 bytes for each of 682.6 billion parameters: 8.87 and 12.3 TB, 4.0 and 5.6 GiB on each of 2048."""
    parameters = trained_parameters(preset("v3-671b"))
    assert parameters == 682_636_472_320
    assert (OFFICIAL_FP8.bytes_per_parameter, CLASSIC_BF16.bytes_per_parameter) == (13, 18)
    official, classic = (parameters * policy.bytes_per_parameter for policy in (OFFICIAL_FP8, CLASSIC_BF16))
    assert (official, classic) == (8_874_274_140_160, 12_287_456_501_760)
    assert (round(official / 1e12, 2), round(classic / 1e12, 1)) == (8.87, 12.3)
    assert (round(official / 2048 / GIB, 1), round(classic / 2048 / GIB, 1)) == (4.0, 5.6)
    for policy, total in ((OFFICIAL_FP8, official), (CLASSIC_BF16, classic)):
        found = training_memory(preset("v3-671b"), layout(), policy, 4096)
        assert found.states == total, "the parts add up to it on one device"


def test_small_h100_fills_its_gpu_as_its_description_says() -> None:
    assert training_memory(small_h100(), layout(), CLASSIC_BF16, 4096).states == 63_010_414_080
    ours = training_memory(small_h100(), layout(recompute="full"), BF16, 4096)
    assert ours.states == 16 * 3_500_578_560
    assert ours.peak < 80e9
    assert training_memory(small_h100(), layout(micro_batch=64), BF16, 4096).peak > 80e9


def test_stages_divide_what_the_paper_says() -> None:
    config, parts = mini(), ("weights", "gradients", "master", "moments")
    whole = trained_parameters(config)
    found = {s: training_memory(config, layout(world_size=8, zero_stage=s), FP32, 64).by_part() for s in range(4)}
    kept = {
        s: [round(found[s][part] / (whole * size), 3) for part, size in zip(parts, (4, 4, 4, 8), strict=True)]
        for s in found
    }
    assert kept[0] == [1, 1, 0, 1], "without ZeRO, FP32 weights are updated in place"
    assert kept[1] == [1, 1, 0.125, 0.125]
    assert kept[2] == [1, 0.125, 0.125, 0.125]
    assert kept[3] == [0.125, 0.125, 0.125, 0.125]


def test_experts_are_divided_among_their_processes() -> None:
    """Weights of a process: all but the experts, and its own of them; moments are divided as before."""
    config = mini()
    alone, shared = (training_memory(config, layout(world_size=4, expert_parallel=e), FP32, 64) for e in (1, 4))
    assert alone.weights - shared.weights == 4 * expert_parameters(config) * 3 // 4
    assert alone.moments == shared.moments == 2 * trained_parameters(config)
    assert shared.activations < alone.activations * 1.01, "no more rows than without"


def test_recomputation_keeps_inputs_and_one_layer() -> None:
    config = mini().replace(num_hidden_layers=40)
    none, full = (training_memory(config, layout(recompute=r), FP32, 256).activations for r in ("none", "full"))
    assert full < none / 10
    deeper = training_memory(config.replace(num_hidden_layers=41), layout(recompute="full"), FP32, 256).activations
    assert deeper - full == 2 * 256 * 4 * config.hidden_size, "one more layer costs its input"


def test_attention_of_cpus_grows_with_the_square() -> None:
    def of(length: int, kernels: Kernels) -> float:
        return training_memory(mini(), layout(), BF16, length, kernels).activations / length

    more_keys = 2 * 5 * 4 * 2 * (512 - 256) / 2  # half of them: the mask hides the rest
    assert of(512, Kernels.composed) - of(256, Kernels.composed) == pytest.approx(more_keys, rel=0.02)
    assert of(1024, Kernels.composed) < of(512, Kernels.composed), "long sequences compute them again"
    assert of(1024, Kernels.fused) == pytest.approx(of(512, Kernels.fused), rel=0.01)


def test_the_bucket_is_no_larger_than_the_model() -> None:
    assert training_memory(small_h100(), layout(), BF16, 64).buckets == 2 * BUCKET
    assert training_memory(mini(), layout(), BF16, 64).buckets == 2 * trained_parameters(mini())
    assert training_memory(mini(), layout(), BF16, 64, Kernels.composed).buckets == 2 * trained_parameters(mini())
    assert training_memory(mini(), layout(zero_stage=0), BF16, 64).buckets == 0


def test_the_larger_of_backward_and_update_decides() -> None:
    short = training_memory(small_h100(), layout(micro_batch=8), BF16, 4096)
    assert short.peak == short.states + short.buckets + short.activations + short.logits
    zero = short.__class__(**(short.by_part() | {"update": 10**12}))
    assert zero.peak == zero.states + 10**12
