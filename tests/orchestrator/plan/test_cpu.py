"""The forecast of CPU seconds: what was measured, what it counts, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.recipes import tiny_recipe
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import calibrate as benchmark
from model.again import choose
from model.flops import flops_per_token
from model.loss import training_losses
from model.presets import preset
from model.recipe import Layout, Recipe
from model.transformer import CausalLM
from orchestrator.errors import UsageError
from orchestrator.plan.cpu import CpuRates, asked, cpu_priors, cpu_rates, forecast_cpu, seconds_by_rate, work

ROOT = Path(__file__).parents[3]
ROUNDS = json.loads((ROOT / "tests/golden/cpu_seconds.json").read_text())
RATES = CpuRates(5e10, 2e10, 2e10, 1e10, 2e5, 1e9)


# ------------------------------------------------------------------ what was measured


@pytest.mark.parametrize("number", range(len(ROUNDS)))
def test_shapes_that_were_not_fitted_to_are_forecast_within_ten_percent(number: int) -> None:
    measured = ROUNDS[number]["seconds"]
    assert measured.keys() == benchmark.SHAPES.keys(), "misses too"
    assert len(benchmark.OTHERS) >= 4
    found = benchmark.errors(measured, benchmark.rates(benchmark.fitted(measured)))
    assert {name: off for name, off in found.items() if name in benchmark.OTHERS and abs(off) > 0.1} == {}


def test_the_document_shows_what_was_measured() -> None:
    text = (ROOT / "docs/calibration.md").read_text()
    for one in ROUNDS:
        assert benchmark.tables(one["seconds"]) in text, "python benchmarks/calibrate.py --read ... prints it anew"
        assert one["about"] in text


def test_rates_of_one_hour_hold_at_another() -> None:
    """On the same machine with other neighbours: as far as the plan's width says."""
    known = benchmark.rates(benchmark.fitted(ROUNDS[0]["seconds"]))
    found = benchmark.errors(ROUNDS[1]["seconds"], known)
    assert max(map(abs, found.values())) < 0.17


# ------------------------------------------------------------------ what it counts


def one(**changes: int | str) -> Recipe:
    layout = {"world_size": 1, "expert_parallel": 1, "micro_batch": 4, "accumulation": 1} | changes
    return tiny_recipe(sequence_length=64, layout=Layout.model_validate(layout))


def test_flops_are_those_of_the_model_and_what_is_computed_twice() -> None:
    recipe = one()
    work, tokens = asked(recipe), recipe.batch_tokens
    dense = recipe.model.replace(num_nextn_predict_layers=1)
    plain = flops_per_token(dense, 64, mtp=True) * tokens
    attention = work["attention_flops"] / 2  # a block of 64 queries sees all 64 keys, of which half count
    assert work["matrix_flops"] + attention == pytest.approx(plain, rel=1e-12)
    again = asked(one(recompute="full"))
    assert again["attention_flops"] == pytest.approx(work["attention_flops"] * 4 / 3)
    assert work["matrix_flops"] < again["matrix_flops"] < work["matrix_flops"] * 4 / 3, "heads are not repeated"


class Counter(TorchDispatchMode):
    """FLOPs of matrix products and of attention's batched products, and operations, as torch runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = self.attention = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        self.operations += 1
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            a, b = args[-2:] if name.endswith("addmm") or name == "baddbmm" else args[:2]
            flops = 2 * a.numel() * b.shape[-1]
            self.attention += flops if "b" in name else 0
            self.matrix += 0 if "b" in name else flops
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    ("length", "batch", "changes"),
    [
        (64, 2, {}),
        (100, 2, {}),
        (640, 1, {}),  # beyond 512 scores are computed again
        (128, 2, {"n_routed_experts": 16, "num_experts_per_tok": 4, "vocab_size": 20_000}),
        (128, 2, {"first_k_dense_replace": 4}),
    ],
)
def test_what_the_model_really_does(length: int, batch: int, changes: dict[str, int], recompute: str) -> None:
    """Forward and backward of `model/`: products to the digit; operations without those that DeepSpeed adds."""
    config = preset("mini").replace(**changes)
    model = CausalLM(config)
    model.initialise(0)
    choose(model, recompute)
    ahead = config.num_nextn_predict_layers
    window = torch.randint(config.vocab_size, (batch, length + 1 + ahead), generator=torch.Generator().manual_seed(0))
    with Counter() as counted:
        losses = training_losses(model(window[:, :-1], ahead, None, window), window, ahead_weight=0.3, alpha=1e-4)
        losses.total.backward()
    layout = {"world_size": 1, "expert_parallel": 1, "micro_batch": batch, "accumulation": 1, "recompute": recompute}
    once, twice = (work(config, Layout.model_validate(layout | {"accumulation": n}), length) for n in (1, 2))
    assert once["attention_flops"] == pytest.approx(counted.attention, rel=1e-9)
    assert once["matrix_flops"] == pytest.approx(counted.matrix, rel=1e-9)
    assert 1 < (twice["operations"] - once["operations"]) / counted.operations < 1.3


def test_more_micro_batches_do_everything_again_but_the_update() -> None:
    once, twice = asked(one()), asked(one(accumulation=2))
    for name in ("matrix_flops", "attention_flops", "activation_bytes"):
        assert twice[name] == 2 * once[name]
    for name in ("state_bytes", "operations"):
        assert once[name] < twice[name] < 2 * once[name]


def test_workers_exchange_gradients_and_tokens() -> None:
    alone, two = asked(one()), asked(one(world_size=2))
    shared = asked(one(world_size=2, expert_parallel=2))
    assert alone["exchanged_bytes"] == 0
    parameters = sum(p for p in (two["exchanged_bytes"],)) / 8
    assert parameters == pytest.approx(sum_of_parameters(), rel=1e-12), "each worker sends half twice, of all weights"
    assert shared["exchanged_bytes"] != two["exchanged_bytes"]
    assert shared["state_bytes"] < two["state_bytes"]
    assert asked(one(world_size=2, zero_stage=0))["state_bytes"] == 2 * asked(one(zero_stage=0))["state_bytes"]
    assert two["state_bytes"] < 2 * alone["state_bytes"], "ZeRO divides the update"
    assert two["matrix_flops"] == 2 * alone["matrix_flops"], "each worker has a micro-batch of its own"


def sum_of_parameters() -> int:
    from orchestrator.plan.memory import trained_parameters

    return trained_parameters(one().model)


def test_long_sequences_compute_their_scores_again() -> None:
    kept, again = (asked(one().model_copy(update={"sequence_length": length})) for length in (512, 1024))
    doubled = kept["attention_flops"] * 2 * (1024 + 64) / (512 + 64)
    width = one().model
    assert again["attention_flops"] == pytest.approx(
        doubled * (1 + width.qk_head_dim / (width.qk_head_dim + width.v_head_dim) / 3)
    )


@given(st.sampled_from(list(RATES.__dataclass_fields__)), st.floats(1.1, 100))
def test_a_faster_rate_takes_its_share_off_and_no_more(name: str, factor: float) -> None:
    recipe = one(world_size=2)
    before = seconds_by_rate(recipe, RATES)
    after = forecast_cpu(recipe, replace(RATES, **{name: getattr(RATES, name) * factor}))
    assert after == pytest.approx(sum(before.values()) - before[name] * (1 - 1 / factor))


# ------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"precision": "fp8"}, {"device": "cuda"}])
def test_what_it_does_not_cover(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"for fp32 on cpu, got (bf16 on cpu|fp8 on cpu|fp32 on cuda)"):
        forecast_cpu(one().model_copy(update=changes), RATES)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 1e19])
def test_rates_that_are_none(rate: float) -> None:
    with pytest.raises(ValueError, match="state_bytes must be from 1 to 1e18"):
        replace(RATES, state_bytes=rate)


def test_rates_of_ones_own_file(tmp_path: Path) -> None:
    assert cpu_rates(None) is None
    file = tmp_path / "own.yaml"
    rows = [f"- {{name: cpu_{name}, value: {value!r}, origin: x}}" for name, value in vars(RATES).items()]
    file.write_text("- {name: attention, value: 0.5, origin: x}\n")
    assert cpu_rates(file) is None
    file.write_text("\n".join(rows))
    assert cpu_rates(file) == RATES
    file.write_text("\n".join(rows[1:]))
    with pytest.raises(UsageError, match="unknown or missing: cpu_matrix_flops"):
        cpu_rates(file)
    file.write_text("\n".join([*rows, rows[0]]))
    with pytest.raises(UsageError, match=r"cpu_matrix_flops twice: 50000000000.0 and 50000000000.0"):
        cpu_rates(file)
    file.write_text("\n".join([*rows[1:], "- {name: cpu_matrix_flops, value: -1, origin: x}"]))
    with pytest.raises(UsageError, match=r"own.yaml: matrix_flops must be from 1 to 1e18 a second, got -1"):
        cpu_rates(file)


def test_where_calibration_starts() -> None:
    assert CpuRates(**{name: prior.value for name, prior in cpu_priors().items()})
