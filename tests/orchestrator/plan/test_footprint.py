"""Memory under divided tensors and stages: equal to what was measured where these are not divided."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.presets import PRESETS, mini, preset, small_h100
from model.recipe import Layout
from orchestrator.plan.activations import kept
from orchestrator.plan.footprint import FRAGMENTATION, footprint, stages
from orchestrator.plan.memory import BF16, FP8, policy_of, training_memory
from orchestrator.plan.published import dense_models
from orchestrator.plan.work import parameters
from orchestrator.plan.workload import Parallel, Workload


def work(name: str = "small-h100", length: int = 4096, sequences: int = 64, precision: str = "bf16") -> Workload:
    config = dense_models()[name] if name in dense_models() else preset(name).replace(yarn=None)
    return Workload(config, length, length * sequences, precision, 10**9)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"v3.2-671b"}))
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_equals_what_was_measured_where_only_data_and_experts_are_divided(
    name: str, precision: str, stage: int, recompute: str
) -> None:
    workload = work(name, precision=precision)
    layout = Layout.model_validate(
        {"world_size": 8, "expert_parallel": 4, "micro_batch": 2, "accumulation": 4}
        | {"zero_stage": stage, "recompute": recompute}
    )
    policy = policy_of(workload.precision, on_cpu=False)
    measured = training_memory(preset(name), layout, policy, 4096).by_part()
    parallel = Parallel(data=8, expert=4, zero_stage=stage, micro_batch=2, recompute=recompute)  # type: ignore[arg-type]
    ours = footprint(workload, parallel).by_part()
    for part, size in measured.items():
        assert ours[part] == pytest.approx(size, rel=1e-6, abs=64), part


def test_fragmentation_is_a_share_of_what_is_not_states() -> None:
    found = footprint(work(), Parallel(data=8, zero_stage=1))
    working = max(found.activations + found.logits + found.buckets, found.update)
    assert found.fragmentation == round(FRAGMENTATION * working)
    assert found.peak == found.states + working + found.fragmentation
    assert sum(found.by_part().values()) >= found.peak


def test_stages_hold_all_layers_once() -> None:
    for pipeline in (1, 2, 3, 4, 7, 14, 16):
        alone = Parallel(data=1, pipeline=pipeline)
        each = -(-15 // pipeline)
        found = stages(work(), alone)
        assert found[0].first
        assert found[-1].last
        assert all(sum(run.count for run in stage.layers) <= each for stage in found)
    config = small_h100()
    two = stages(work(), Parallel(data=1, pipeline=2))
    total = sum(stage.common + stage.experts for stage in two) + 2 * config.vocab_size * config.hidden_size
    assert total + config.hidden_size == parameters(config)


def test_divided_tensors_and_stages_divide_the_states() -> None:
    whole = footprint(work("llama-3.1-8b"), Parallel(data=1, zero_stage=0))
    assert whole.weights == 2 * 8_030_261_248
    half = footprint(work("llama-3.1-8b"), Parallel(data=1, tensor=2, zero_stage=0))
    assert half.weights == whole.weights // 2
    stage = footprint(work("llama-3.1-8b"), Parallel(data=1, pipeline=4, zero_stage=0))
    assert whole.weights / 4 < stage.weights < whole.weights / 3, "embedding or head on top of a fourth of the layers"


def test_stages_keep_as_many_micro_batches_as_stages() -> None:
    """1F1B: the first stage of p holds p micro-batches of its layers, as much as all layers hold of one."""
    alone = footprint(work("llama-3.1-8b"), Parallel(data=1)).activations
    first = footprint(work("llama-3.1-8b"), Parallel(data=1, pipeline=8)).activations
    assert first == pytest.approx(alone, rel=0.01)
    pieces = footprint(work("llama-3.1-8b"), Parallel(data=1, pipeline=8, chunks=4)).activations
    assert pieces / first == pytest.approx((2 * 8 - 1 + 3 * 8) / 4 / 8, rel=0.01)
    few = footprint(work("llama-3.1-8b", sequences=2), Parallel(data=1, pipeline=8)).activations
    assert few <= first * 2 / 8 * 1.01, "only two micro-batches exist"


def test_dualpipe_holds_two_stages_and_one_micro_batch_more() -> None:
    workload = work("v3-671b", sequences=15_360, precision="fp8")
    plain = Parallel(128, pipeline=16, expert=64, recompute="selective", dispatch="node")
    once = footprint(workload, plain)
    twice = footprint(workload, Parallel(128, 1, 16, 64, recompute="selective", schedule="dualpipe", dispatch="node"))
    assert twice.weights == 2 * once.weights
    assert twice.moments == once.moments
    assert twice.activations / once.activations == pytest.approx(17 / 15, rel=0.01), "the second stage has most"
    assert 60e9 < twice.peak < 80e9, "DeepSeek's own layout fits its GPUs"


def test_recomputation_in_order() -> None:
    for name in ("v3-671b", "llama-3.1-70b"):
        config = work(name).config
        for policy in (BF16, FP8):
            moe = name == "v3-671b"
            ways = ("none", "selective", "full")
            none, some, full = (kept(config, policy, how, moe, 4096, 64, plain=True) for how in ways)
            assert full == 2 * config.hidden_size
            assert full < some < none
            assert kept(config, policy, "selective", moe, 4096, 64, plain=False) <= some


def test_selective_recomputation_of_v3_by_hand() -> None:
    """Per token in FP8: the two inputs in BF16, latents, 128 outputs by head with logarithms; router; the experts' rows
    with gate and up in 8 bits with scales, padded to 8 rows of each of the 4 experts here; the shared expert."""
    scaled = 1 + 4 / 128
    attention = 2 * (7168 + 1536 + 512 + 64) + 128 * (2 * 128 + 4)
    padded = 8 + 8 * 4 / 4096
    experts = padded * (7168 + 2 * 2048) * scaled + 2 * 2048 * scaled
    moe = 2 * 7168 + 4 * (256 + 24) + experts
    found = kept(preset("v3-671b"), FP8, "selective", True, 4096, 64, plain=False)
    assert found == pytest.approx(attention + moe)


def test_exchange_is_two_buffers_of_rows() -> None:
    found = footprint(work("v2-lite-16b"), Parallel(data=8, expert=8)).exchange
    assert found == 2 * 4096 * 6 * 2048 * 2
    assert footprint(work("v2-lite-16b"), Parallel(data=8)).exchange == 0


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4, 8]), st.integers(0, 3))
def test_more_gpus_never_take_more_states(tensor: int, pipeline: int, expert: int, stage: int) -> None:
    workload = Workload(mini(), 64, 64 * 64, "bf16", 10**6)
    stage = min(stage, 1) if pipeline > 1 else stage
    one = footprint(workload, Parallel(8, tensor, pipeline, expert, zero_stage=stage))
    more = footprint(workload, Parallel(16, tensor, pipeline, expert, zero_stage=stage))
    assert more.states <= one.states
    assert all(size >= 0 for size in one.by_part().values())
