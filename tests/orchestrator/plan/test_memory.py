"""The planner's memory: published sums to the digit, and what ZeRO, experts and recomputation divide."""

import pytest
import torch

from benchmarks.memory import Alive
from model.again import choose
from model.loss import training_losses
from model.presets import mini, preset, small_h100
from model.recipe import Layout, PrecisionName
from model.transformer import CausalLM
from orchestrator.plan.memory import (
    BF16,
    BUCKET,
    CLASSIC_BF16,
    FP32,
    OFFICIAL_FP8,
    Kernels,
    expert_parameters,
    kept_bytes,
    policy_of,
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


def test_selective_recomputation_keeps_less_and_brings_back_one_layer() -> None:
    config = mini().replace(num_hidden_layers=40)
    ways = ("none", "selective", "full")
    none, some, full = (training_memory(config, layout(recompute=r), FP32, 256).activations for r in ways)
    assert full < some < 0.65 * none
    kept = 2 * 256 * kept_bytes(config, layout(recompute="selective"), FP32, 256, Kernels.fused)
    assert kept < some < kept * 1.06, "of one of 41 layers more comes back than stays"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(("length", "batch", "changes"), [(128, 12, {}), (576, 3, {"q_lora_rank": None})])
def test_activations_are_what_the_model_keeps(
    precision: PrecisionName, recompute: str, length: int, batch: int, changes: dict[str, None]
) -> None:
    """On a CPU, of the plain model, which keeps what AutoEP keeps with all experts on one process. In BF16 a little
    more is kept than counted: `model.local` fills up each expert's rows."""
    config = mini().replace(vocab_size=512, num_hidden_layers=3, **changes)
    policy, model = policy_of(precision, on_cpu=True), CausalLM(config)
    model.to(torch.float32 if precision == "fp32" else torch.bfloat16)
    model.initialise(0)
    choose(model, recompute)
    window = torch.randint(config.vocab_size, (batch, length + 2), generator=torch.Generator().manual_seed(0))
    with Alive([window, *model.parameters()], 0) as alive:
        loss = training_losses(model(window[:, :-1], 1, None, window), window, ahead_weight=0.3, alpha=1e-4).total
        found = alive.bytes
    width, e = config.hidden_size, policy.activations
    of_heads = 2 * (batch * length * e * width + config.vocab_size * width * policy.weights)
    of = layout(recompute=recompute, micro_batch=batch)
    formula = batch * length * kept_bytes(config, of, policy, length, Kernels.composed)
    assert loss.requires_grad, "still there"
    assert found == pytest.approx(formula + of_heads, rel=0.03)


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
