"""Each part of a step against arithmetic by hand, and what must hold of all of them."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import ModelConfig
from model.flops import count, flops_per_token
from model.presets import mini, preset
from orchestrator.plan.communication import Links, exchange, tensor_seconds, zero_seconds
from orchestrator.plan.efficiency import Efficiencies, efficiencies
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.published import dense_models
from orchestrator.plan.step_time import StepTime, step_time
from orchestrator.plan.workload import Cluster, Parallel, Workload

PERFECT = Efficiencies(1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0)
H800 = Cluster(accelerator("H800"), 2048)
V3 = Workload(preset("v3-671b").replace(yarn=None), 4096, 62_914_560, "fp8", 14_800_000_000_000)
OWN = Parallel(128, pipeline=16, expert=64, recompute="selective", schedule="dualpipe", dispatch="node")


def small(**changes: Any) -> StepTime:  # noqa: ANN401
    """V2-Lite on 8 H100."""
    config = preset("v2-lite-16b").replace(yarn=None)
    workload = Workload(config, 4096, 64 * 4096, changes.pop("precision", "bf16"), 10**9)
    constants = changes.pop("constants", efficiencies())
    return step_time(workload, Cluster(accelerator("H100"), 8), Parallel(**({"data": 8} | changes)), constants)


def test_products_take_the_model_s_flops() -> None:
    """At perfect efficiency in BF16 all computation is FLOPs over peak, `model.flops`' FLOPs with the MTP module."""
    workload = replace(V3, precision="bf16", config=V3.config)
    step = step_time(workload, H800, replace(OWN, recompute="none", pipeline=2, data=1024), PERFECT)
    kinds = ("attention_projections", "routed_experts", "shared_experts", "dense", "router", "head", "prediction")
    total = sum(step.parts[kind] for kind in (*kinds, "attention"))
    flops = flops_per_token(preset("v3-671b"), 4096, mtp=True) * V3.batch_tokens
    assert total == pytest.approx(flops / 2048 / 989.4e12, rel=1e-12)


def test_fp8_halves_what_is_in_eight_bits() -> None:
    low, high = (small(precision=name, expert=8, constants=PERFECT) for name in ("fp8", "bf16"))
    for kind in ("attention_projections", "routed_experts", "shared_experts", "dense"):
        assert low.parts[kind] == pytest.approx(high.parts[kind] * 989.4 / 1978.9)
    for kind in ("head", "router", "attention"):
        assert low.parts[kind] == high.parts[kind]


def test_fp32_has_no_tensor_cores() -> None:
    fast, slow = (small(precision=name, expert=8, constants=PERFECT) for name in ("bf16", "fp32"))
    for kind in ("attention", "attention_projections", "head"):
        assert slow.parts[kind] == pytest.approx(16 * fast.parts[kind])


def test_parts_add_up_and_utilisation_follows() -> None:
    step = step_time(V3, H800, OWN, efficiencies())
    assert step.seconds == sum(step.parts.values())
    speed = 62_914_560 / 2048 / step.seconds
    assert step.tokens_per_second_per_gpu == pytest.approx(speed)
    assert step.mfu == pytest.approx(speed * flops_per_token(preset("v3-671b"), 4096) / 989.4e12)
    assert step.mfu_with_mtp / step.mfu == pytest.approx(260.6 / 250.4, rel=1e-3)


def test_dualpipe_hides_the_exchange_and_1f1b_does_not() -> None:
    hidden = step_time(V3, H800, OWN, efficiencies())
    shown = step_time(V3, H800, replace(OWN, schedule="1f1b"), efficiencies())
    assert hidden.parts["exchange_network"] == hidden.parts["exchange_nvlink"] == 0
    assert hidden.overlapped["exchange_network"] == pytest.approx(shown.parts["exchange_network"])
    assert shown.parts["exchange_network"] > 4
    ratio = hidden.parts["routed_experts"] / shown.parts["routed_experts"]
    assert ratio == pytest.approx(132 / 112, rel=1e-3), "the hidden exchange takes 20 of 132 multiprocessors"


def test_bubbles() -> None:
    """1F1B (p-1)(F+B) over m micro-batches of F+B; pieces divide it; DualPipe (p/2-1)(F&B+B-3W) = 2/3 of (p/2-1)."""
    constants = replace(efficiencies(), communication_cores=0.0)
    base = replace(OWN, schedule="1f1b", pipeline=8, data=256, chunks=1)
    workload = replace(V3, batch_tokens=256 * 64 * 4096)

    def share(parallel: Parallel) -> float:
        parts = step_time(workload, H800, parallel, constants).parts
        rest = {"bubble", "optimizer", "overhead", "zero_reduce", "zero_gather"}
        return parts["bubble"] / sum(seconds for name, seconds in parts.items() if name not in rest)

    assert share(base) == pytest.approx(7 / 64)
    assert share(replace(base, chunks=4)) == pytest.approx(7 / 64 / 4)
    assert share(replace(base, schedule="dualpipe")) == pytest.approx(3 * 2 / 3 / 64)


def test_exchange_of_v3_by_hand() -> None:
    """4096 tokens of one layer to the nodes that are reached but the own one, FP8 there and BF16 back."""
    links = Links.of(H800, PERFECT)
    once = replace(V3, batch_tokens=4096 * 128)  # one sequence for each GPU of a stage
    found = exchange(once, OWN, links, passes=2)
    nodes = 4 * (1 - (3 / 4) ** 8) * 7 / 8
    layers = 4  # of the fullest stage: 59 on 16 stages of 4
    assert found.network == pytest.approx(
        4096 * layers * 2 * nodes * (7168 * (1 + 4 / 128) + 2 * 7168) / 50e9, rel=0.01
    )
    assert found.seconds == found.network > found.nvlink
    assert exchange(once, replace(OWN, dispatch="expert"), links, 2).network > 2 * found.network
    assert exchange(once, replace(OWN, expert=8), links, 2).network == 0
    assert exchange(once, replace(OWN, expert=1), links, 2).seconds == 0


def test_tensor_sums_of_llama_by_hand() -> None:
    """405B, TP8 PP16: two sums in each layer and pass, 7/8 scattered and 7/8 gathered, in BF16."""
    workload = Workload(dense_models()["llama-3.1-405b"], 8192, 8192 * 2048, "bf16", 10**12)
    parallel = Parallel(data=64, tensor=8, pipeline=16)
    tokens = 8192 * 2048 / 64 * 8  # of 126 layers the fullest stage of 16 has 8
    expected = 2 * 2 * 2 * 7 / 8 * tokens * 16_384 * 2 / 360e9
    links = Links.of(Cluster(accelerator("H100"), 8192), PERFECT)
    assert tensor_seconds(workload, parallel, links, 2) == pytest.approx(expected)


def test_zero_stages_move_more() -> None:
    workload = Workload(mini(), 64, 64 * 64 * 4, "bf16", 10**6)
    links = Links.of(Cluster(accelerator("H100"), 16), PERFECT)
    found = [zero_seconds(workload, Parallel(16, zero_stage=stage), links) for stage in range(4)]
    reduces, gathers = [zero.reduce for zero in found], [zero.gather for zero in found]
    assert reduces[0] == pytest.approx(2 * reduces[1])
    assert gathers[0] == 0
    assert reduces[2] == reduces[3] == pytest.approx(16 * reduces[1]), "after each of 16 micro-batches"
    assert gathers[3] == pytest.approx(2 * 16 * gathers[1]), "twice for each"
    size = 2 * 4_006_640
    sent = 15 / 16 * size
    assert gathers[1] == pytest.approx(max(sent / (8 * 50e9), sent / 360e9), rel=0.01)


def test_dualpipe_sums_two_stages_among_twice_as_many() -> None:
    """Each GPU of a pair holds both their stages: 2 x 4 GPUs of a stage's data, 2 x 2 with the same experts."""
    links = Links.of(H800, PERFECT)
    workload = replace(V3, batch_tokens=4 * 64 * 4096)
    once = Parallel(data=4, pipeline=16, expert=2, dispatch="node")
    one, two = (zero_seconds(workload, replace(once, schedule=name), links) for name in ("1f1b", "dualpipe"))
    config = V3.config
    assert isinstance(config, ModelConfig)
    counts = count(config)
    routed = 256 * counts.expert
    common, experts = 4 * (counts.moe_layer - routed), 4 * routed / 2
    ends = config.vocab_size * config.hidden_size  # the first stage: embedding, 3 dense layers and 1 other
    common = max(common, 3 * counts.dense_layer + counts.moe_layer - routed + ends)

    nvlink = 160e9
    assert one.reduce == pytest.approx(2 * (3 / 4 * common + 1 / 2 * experts) / nvlink, rel=1e-6)
    assert two.reduce == pytest.approx(2 * 2 * (7 / 8 * common + 3 / 4 * experts) / nvlink, rel=1e-6)


def test_a_ring_waits_for_each_of_its_steps() -> None:
    """16 GPUs in 2 nodes: of 15 steps 1 goes between nodes; within a node all are NVLink's."""
    constants = replace(PERFECT, nvlink_hop_seconds=1.0, network_hop_seconds=100.0)
    links = Links.of(Cluster(accelerator("H100"), 16), constants)
    assert links.group(16, 1, 0.0, 3) == 3 * (100 + 14)
    assert links.group(8, 1, 0.0, 3) == 3 * 7
    assert links.group(2, 8, 0.0, 1) == 100
    assert links.group(1, 1, 1e9, 5) == 0


def test_recomputation_costs_a_forward_pass() -> None:
    none, some, full = (small(recompute=how) for how in ("none", "selective", "full"))
    products = sum(none.parts[kind] for kind in ("attention_projections", "routed_experts", "shared_experts", "dense"))
    products += none.parts["router"] + none.parts["attention"]
    assert full.parts["recomputation"] == pytest.approx(products / 3 + none.parts["activations"] / 2)
    assert 0 < some.parts["recomputation"] < full.parts["recomputation"] / 3
    assert "recomputation" not in none.parts


def test_few_tokens_still_read_all_experts() -> None:
    """One micro-batch of 64 tokens: the experts' weights and gradients take longer than the products."""
    config = preset("v2-lite-16b").replace(yarn=None)
    step = step_time(Workload(config, 64, 64, "bf16", 10**6), Cluster(accelerator("H100"), 1), Parallel(1), PERFECT)
    held = 26 * 64 * 3 * 2048 * 1408
    assert step.parts["routed_experts"] == pytest.approx(held * 2 * (2 + 2) / 3.35e12)


def test_optimizer_reads_and_writes_its_states() -> None:
    workload = Workload(mini(), 64, 64 * 8, "bf16", 10**6)
    step = step_time(workload, Cluster(accelerator("H100"), 8), Parallel(8), PERFECT)
    assert step.parts["optimizer"] == pytest.approx(4_006_640 / 8 * (2 + 8 + 16 + 2) / 3.35e12, rel=1e-3)


def test_eight_bits_need_a_device_that_has_them() -> None:
    with pytest.raises(ValueError, match="A100 has no 8-bit"):
        step_time(replace(V3, precision="fp8"), Cluster(accelerator("A100"), 2048), OWN, efficiencies())


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be gpus \(2048\)"):
        step_time(V3, H800, replace(OWN, data=64), efficiencies())


def test_nothing_is_hidden_twice() -> None:
    """A slow network: DualPipe's exchange takes all computation to hide behind, activations between stages wait."""
    step = step_time(V3, H800, OWN, replace(efficiencies(), network=0.02))
    assert step.parts["exchange_network"] > 0
    assert step.parts["stages"] > 0
    assert step.overlapped["stages"] == 0


layouts = st.tuples(
    st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 3), st.sampled_from(["none", "selective", "full"]),
    st.sampled_from(["expert", "node"]), st.sampled_from(["1f1b", "dualpipe"]),
)  # fmt: skip


@given(layouts)
def test_every_layout_takes_time_and_hides_no_more_than_it_computes(layout: tuple[Any, ...]) -> None:
    data, tensor, pipeline, expert, zero, recompute, dispatch, schedule = layout
    workload = Workload(mini(), 64, 64 * 64 * 4, "bf16", 10**6)
    try:
        parallel = Parallel(data, tensor, pipeline, expert, zero, 1, recompute, 1, schedule, 1, dispatch)
    except ValueError:
        return
    cluster = Cluster(accelerator("H100"), parallel.gpus)
    step = step_time(workload, cluster, parallel, efficiencies())
    assert all(seconds >= 0 for seconds in (*step.parts.values(), *step.overlapped.values()))
    computed = sum(step.parts[kind] for kind in ("attention", "routed_experts", "attention_projections", "activations"))
    assert step.seconds > computed
    assert 0 < step.mfu < 1
    slower = step_time(workload, cluster, parallel, replace(efficiencies(), network=0.1, nvlink=0.1, matrix_bf16=0.1))
    assert slower.seconds > step.seconds


def test_only_zero_3_hides_its_traffic() -> None:
    """As the engine configures DeepSpeed: `overlap_comm` is on by itself under ZeRO-3 alone."""
    one, two, three = (small(zero_stage=stage) for stage in (1, 2, 3))
    assert one.parts["zero_reduce"] > 0
    assert two.parts["zero_reduce"] == pytest.approx(8 * one.parts["zero_reduce"]), "after each of 8 micro-batches"
    assert one.overlapped["zero_reduce"] == two.overlapped["zero_reduce"] == 0
    sent = three.parts["zero_reduce"] + three.overlapped["zero_reduce"]
    assert sent == pytest.approx(two.parts["zero_reduce"])
    assert three.overlapped["zero_reduce"] > 0.8 * sent
    assert three.overlapped["zero_gather"] > 0
