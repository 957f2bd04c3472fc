import math
import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.recipes import tiny_recipe

from model.presets import preset
from orchestrator.errors import FathomError, InvalidJob, UsageError
from orchestrator.plan.against import against
from orchestrator.plan.basis import Basis
from orchestrator.plan.cpu import CpuRates, forecast_cpu
from orchestrator.plan.estimate import estimate
from orchestrator.plan.failures import find_failures
from orchestrator.plan.fit import gpu_hours
from orchestrator.plan.forecast import Plan
from orchestrator.plan.goodput import goodput
from orchestrator.plan.known import known_run
from orchestrator.plan.on_cpus import layout_on_cpus
from orchestrator.plan.published import runs
from orchestrator.plan.request import Engine, Request, make_request
from orchestrator.settings import Settings

V3 = {"preset": "v3-671b", "accelerator": "H800", "gpus": "2048", "tokens": "14.8T", "precision": "fp8"}
LITE = {"preset": "v2-lite-16b", "accelerator": "H100", "gpus": "64", "tokens": "1T"}


@pytest.fixture(scope="module")
def basis(tmp_path_factory: pytest.TempPathFactory) -> Basis:
    return Basis.load(Settings.load({"FATHOM_HOME": str(tmp_path_factory.mktemp("home"))}))


@pytest.fixture(scope="module")
def v3(basis: Basis) -> Plan:
    return estimate(make_request(None, V3), basis)


@pytest.fixture(scope="module")
def lite(basis: Basis) -> Plan:
    return estimate(make_request(None, LITE, engine="today"), basis)


def numbers(value: Any) -> Iterator[float]:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


def test_deepseek_v3_comes_out_as_published(v3: Plan) -> None:
    """Fitted, not predicted: this holds the plan's own arithmetic, goodput above all, to the fit."""
    assert v3.gpu_hours is not None
    assert v3.cost is not None
    assert v3.gpu_hours.expected == pytest.approx(2_664_000, rel=0.01)
    assert float(v3.cost.expected) == pytest.approx(5_328_000, rel=0.01)
    assert v3.gpu_hours.low < 2_664_000 < v3.gpu_hours.high
    assert v3.step is not None
    assert v3.step.mfu == pytest.approx(0.391, abs=0.005)


def test_the_money_is_hours_times_price(lite: Plan) -> None:
    assert lite.gpu_hours is not None
    assert lite.hours is not None
    assert lite.cost is not None
    assert lite.cost.expected == Decimal(repr(lite.gpu_hours.expected)) * Decimal("2.95")
    assert lite.cost.low == Decimal(repr(lite.gpu_hours.low)) * Decimal("1.99")
    assert lite.cost.high == Decimal(repr(lite.gpu_hours.high)) * Decimal("6.88")
    for hours, device_hours in ((lite.hours.low, lite.gpu_hours.low), (lite.hours.high, lite.gpu_hours.high)):
        assert hours * 64 == pytest.approx(device_hours)
    assert {width.affects for width in lite.width} == {"hours", "price"}
    assert all(width.low <= 1 <= width.high and width.reason for width in lite.width)


def test_the_parts_add_up(v3: Plan) -> None:
    assert v3.step is not None
    assert v3.memory is not None
    assert v3.goodput is not None
    assert math.fsum(v3.step.parts.values()) == pytest.approx(v3.step.seconds)
    tokens = v3.step.tokens_per_second_per_gpu * v3.request.gpus * v3.step.seconds
    assert tokens == pytest.approx(v3.request.batch_tokens)
    assert v3.step.teraflops_per_gpu * 1e12 == pytest.approx(
        v3.architecture.flops_per_token * v3.step.tokens_per_second_per_gpu
    )
    assert v3.memory.fits
    assert v3.memory.peak + v3.memory.spare == v3.memory.usable
    assert v3.layout is not None
    assert v3.memory.by_recompute[v3.layout.recompute] == v3.memory.peak
    assert v3.goodput.fraction + math.fsum(v3.goodput.lost.values()) == pytest.approx(1)
    assert v3.layout.data * v3.layout.tensor * v3.layout.pipeline == 2048


def test_small_models_are_known_to_be_slower(v3: Plan, lite: Plan, basis: Basis) -> None:
    """The only published run of such a size took some 1.7 times the forecast: the range reaches as far."""
    published = next(run for run in runs() if run.model == "v2-lite-16b")
    slower = published.tokens / published.throughput / 3600 / gpu_hours(published, basis.efficiencies)
    reasons = [width for width in lite.width if "slower than this model says" in width.reason]
    assert [width.high for width in reasons] == [pytest.approx(slower)]
    assert slower > 1.5
    assert lite.gpu_hours is not None
    assert lite.gpu_hours.high > slower * lite.gpu_hours.expected
    assert not any("slower than this model says" in width.reason for width in v3.width)
    own = estimate(make_request(None, LITE, engine="today"), replace(basis, fitted_to_whole_runs=False))
    assert not any("slower than this model says" in width.reason for width in own.width)


def test_lost_time_is_counted_once(basis: Basis) -> None:
    """Twice the failures cost what goodput says; efficiencies from steps lose all of it, fitted ones only the rest."""
    request = make_request(None, LITE, engine="today")
    mine = goodput(64, 8, basis.failures, basis.recovery).fraction
    fitted = goodput(2048, 8, basis.failures, basis.recovery).fraction
    whole, steps = estimate(request, basis), estimate(request, replace(basis, fitted_to_whole_runs=False))
    assert whole.step is not None
    assert whole.hours is not None
    assert steps.hours is not None
    steady = whole.request.steps * whole.step.seconds / 3600
    assert steps.hours.expected == pytest.approx(steady / mine)
    assert whole.hours.expected == pytest.approx(steady * fitted / mine)
    worse = estimate(request, replace(basis, failures=find_failures("opt-175b")))
    assert worse.goodput is not None
    assert worse.goodput.fraction < mine


def test_layouts_are_offered_by_what_the_engine_can_run(v3: Plan, lite: Plan) -> None:
    assert v3.layouts
    assert all(not one.needs and one.fits and one.pipeline == one.tensor == 1 for one in v3.layouts)
    assert all("pipeline parallelism" in one.needs for one in v3.other_layouts)
    assert v3.layout == v3.other_layouts[0], "asked by options: whatever is fastest"
    assert any("cannot run yet" in note for note in v3.notes)
    assert lite.layout == lite.layouts[0]
    assert not lite.layout.needs if lite.layout else False
    seconds = [one.step_seconds for one in v3.layouts]
    assert seconds == sorted(seconds)


def test_cheaper_ways_are_cheaper(basis: Basis, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    row = "- {accelerator: H100, priceClass: spot, amount: '1.00', currency: %s, unit: gpu-hour, source: s, "
    row += "date: 2026-01-01}\n"
    prices.write_text(row % "USD" + (row % "EUR").replace("H100", "H200").replace("'1.00'", "'0.01'"))
    own = Basis.load(Settings.load({"FATHOM_HOME": str(tmp_path), "FATHOM_PRICES": str(prices)}))
    plan = estimate(make_request(None, LITE, engine="today"), own)
    assert plan.cost is not None
    assert plan.hours is not None
    by_change = {one.change: one for one in plan.alternatives}
    spot = by_change["spot"]
    assert (
        spot.saves
        == plan.cost.expected - spot.cost
        == pytest.approx(plan.cost.expected * Decimal("1.95") / Decimal("2.95"))
    )
    assert (spot.saves_hours, spot.hours) == (0, plan.hours.expected)
    assert "fp8, spot" in by_change
    assert by_change["fp8, spot"].saves_hours > 0
    assert all(one.saves > 0 and one.cost < plan.cost.expected for one in plan.alternatives)
    assert not any("H200, spot" in change for change in by_change), "euros and dollars are not compared"


def test_a_model_that_cannot_fit(basis: Basis) -> None:
    with pytest.raises(UsageError, match=r"needs [0-9.]+ GB per GPU, there are 80.0 GB: use [0-9]+ H800"):
        estimate(make_request(None, V3 | {"gpus": "8"}), basis)
    with pytest.raises(UsageError, match="no price of class 'free' for H800; known: on-demand"):
        estimate(make_request(None, V3 | {"price-class": "free"}), basis)


def test_the_nearest_that_fits_fits(basis: Basis) -> None:
    with pytest.raises(UsageError) as caught:
        estimate(make_request(None, V3 | {"gpus": "8"}), basis)
    gpus = str(caught.value).split(": use ")[1].split(" H800")[0]
    assert estimate(make_request(None, V3 | {"gpus": gpus}), basis).memory is not None


def test_deepseek_s_own_batch_can_be_planned(basis: Basis) -> None:
    """15,360 sequences: today's engine cannot share them among 2048 GPUs, which is no reason to say nothing."""
    own = V3 | {"batch-tokens": str(15_360 * 4096)}
    plan = estimate(make_request(None, own), basis)
    assert plan.gpu_hours is not None
    assert plan.gpu_hours.expected == pytest.approx(2_664_000, rel=0.01)
    assert not plan.layouts
    assert any("15360 sequences" in note and "14336" in note and "16384" in note for note in plan.notes)
    with pytest.raises(UsageError, match=r"2048 x 1 = 2048 .* use 14336 \(58720256 tokens\) or 16384"):
        estimate(make_request(None, own, engine="today"), basis)


@given(st.integers(10**10, 10**14), st.integers(2, 10))
@settings(max_examples=4, deadline=None)
def test_more_tokens_cost_more_in_proportion(basis: Basis, tokens: int, factor: int) -> None:
    asked = LITE | {"batch-tokens": "1048576"}
    once, more = (
        estimate(make_request(None, asked | {"tokens": str(number)}, engine="today"), basis)
        for number in (tokens, factor * tokens)
    )
    assert once.cost is not None
    assert more.cost is not None
    assert float(more.cost.expected / once.cost.expected) == pytest.approx(factor, rel=1e-3)
    assert once.cost.low < once.cost.expected < once.cost.high


def test_why_nothing_runs_today(basis: Basis) -> None:
    indexer = estimate(make_request(None, V3 | {"preset": "v3.2-671b", "precision": "bf16"}), basis)
    assert any("no layout of this model today: it lacks training with the sparse" in note for note in indexer.notes)
    memory = estimate(make_request(None, V3 | {"gpus": "512", "sequence-length": "131072"}), basis)
    assert not memory.layouts
    assert any("none fits into the memory of these GPUs" in note for note in memory.notes)


SUGGESTED = re.compile(r"(\d+) (A100|H100|H800|H200|B200|GB200)\b")
ASKED = st.fixed_dictionaries(
    {
        "preset": st.sampled_from(["small-h100", "v2-lite-16b", "v2-236b", "v3-671b", "kimi-k2-1t"]),
        "accelerator": st.sampled_from(["A100", "H100", "H800", "H200", "GB200"]),
        "gpus": st.sampled_from(["1", "2", "3", "5", "8", "24", "64", "72"]),
        "tokens": st.sampled_from(["1000000", "1B", "10B", "1T", "14.8T", "1000T"]),
        "precision": st.sampled_from(["bf16", "fp32"]),
    },
    optional={"batch-tokens": st.sampled_from(["65536", "1048576", "62914560"])},
)
WISHED = st.lists(
    st.sampled_from(
        [f"parallelism.{one}" for one in ("expert=1", "expert=8", "zeroStage=0", "zeroStage=2", "microBatch=2")]
    ),
    max_size=2,
    unique_by=lambda text: text.split("=")[0],
)


@given(ASKED, WISHED, st.sampled_from(["any", "today"]))
@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_whatever_is_said_to_do_instead_does(
    basis: Basis, asked: dict[str, str], wished: list[str], engine: Engine
) -> None:
    """Where nothing fits, the numbers of GPUs and the other devices that the message names can be planned."""
    try:
        estimate(make_request(None, asked, wished, engine=engine), basis)
    except UsageError as error:
        said = str(error).partition(": use ")[2]
        for gpus, accelerator in SUGGESTED.findall(said):
            other = asked | {"gpus": gpus, "accelerator": accelerator}
            assert estimate(make_request(None, other, wished, engine=engine), basis).cost is not None
        if "another layout: leave spec.parallelism out" in said:
            assert estimate(make_request(None, asked, engine=engine), basis).cost is not None
    except InvalidJob:  # refused by the form of a job, before anything is planned
        pass


# wishes were ignored here, and so were the machines that are to be filled and the number of tokens
@pytest.mark.parametrize(
    ("changes", "wished", "engine", "said"),
    [
        ({"gpus": "5", "preset": "kimi-k2-1t", "accelerator": "H200"}, [], "any", r"use \d+ H200$"),
        ({"gpus": "64", "accelerator": "A100", "precision": "fp32"}, ["expert=1", "zeroStage=1"], "any", "leave spec"),
        ({"gpus": "8", "tokens": "1000000"}, [], "today", "smaller model"),
        ({"gpus": "64", "batch-tokens": "32768"}, ["microBatch=3"], "today", r"64 x 3 = 192 .* use 192 "),
    ],
)
def test_what_is_said_to_do_instead(
    basis: Basis, changes: dict[str, str], wished: list[str], engine: Engine, said: str
) -> None:
    wishes = [f"parallelism.{wish}" for wish in wished]
    asked = V3 | {"precision": "bf16"} | changes
    with pytest.raises(UsageError, match=said):
        estimate(make_request(None, asked, wishes, engine=engine), basis)


def test_on_cpus_nothing_is_forecast_that_is_not_known(basis: Basis, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "metadata: {name: mini}\nspec: {model: {preset: mini}, data: {source: x}, training: {tokens: 2000000}, "
        "compute: {accelerator: cpu, workers: 2}}\n"
    )
    plan = estimate(make_request(file, {}), basis)
    assert (plan.hours, plan.gpu_hours, plan.cost, plan.layout) == (None, None, None, None)
    assert "fathom calibrate" in plan.notes[0]
    assert plan.price.unit == "cpu-hour"


CPU_JOB = """
metadata: {{name: mini}}
spec:
  model: {{preset: mini}}
  data: {{source: x, sequenceLength: 256}}
  training: {{tokens: 450000, globalBatchTokens: 4096, precision: {precision}}}
  parallelism: {parallelism}
  compute: {{accelerator: cpu, workers: 2, cpuPerWorker: {cores}}}
"""


def on_cpus(folder: Path, *, precision: str = "fp32", parallelism: str = "{}", cores: int = 1) -> Request:
    file = folder / "job.yaml"
    file.write_text(CPU_JOB.format(precision=precision, parallelism=parallelism, cores=cores))
    return make_request(file, {})


@pytest.fixture
def calibrated(basis: Basis) -> Basis:
    return replace(basis, cpu=CpuRates(8e10, 8e10, 2e10, 1.4e10, 2.4e5, 3.7e8))


def test_on_calibrated_cpus_time_and_money_are_forecast(calibrated: Basis, tmp_path: Path) -> None:
    request = on_cpus(tmp_path)
    plan, layout = estimate(request, calibrated), layout_on_cpus(request)
    assert (layout.expert_parallel, layout.micro_batch, layout.accumulation) == (2, 8, 1), "as the launcher chooses it"
    run = tiny_recipe(model=preset("mini"), layout=layout, sequence_length=256)
    assert calibrated.cpu is not None
    seconds = forecast_cpu(run, calibrated.cpu) * 450_000 / 4096
    assert plan.gpu_hours is not None
    assert plan.gpu_hours.expected == pytest.approx(seconds / 3600)
    assert plan.hours is not None
    assert plan.hours.expected == pytest.approx(plan.gpu_hours.expected / 2)
    assert plan.cost is not None
    assert plan.cost.expected == pytest.approx(Decimal(repr(plan.gpu_hours.expected)) * plan.price.amount)
    assert plan.cost.low < plan.cost.expected < plan.cost.high
    assert "evaluations" in plan.notes[0]
    assert (plan.layout, plan.memory, plan.alternatives) == (None, None, ())


@pytest.mark.parametrize(("changes", "words"), [({"precision": "bf16"}, "bf16 with 1"), ({"cores": 2}, "fp32 with 2")])
def test_what_is_not_calibrated_is_not_forecast(
    calibrated: Basis, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    plan = estimate(on_cpus(tmp_path, **changes), calibrated)
    assert plan.cost is None
    assert words in plan.notes[0]


def test_a_batch_that_workers_cannot_share(calibrated: Basis, tmp_path: Path) -> None:
    words = "a batch of 16 sequences is no multiple of the 6 that 2 workers take at a time: use 3072 tokens"
    with pytest.raises(UsageError, match=words):
        estimate(on_cpus(tmp_path, parallelism="{microBatch: 3}"), calibrated)


def test_a_file_of_ones_own_is_what_a_plan_rests_on(basis: Basis, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("- {name: matrix_fp8, value: 0.25, origin: x}\n")
    own = Basis.load(Settings.load({"FATHOM_HOME": str(tmp_path), "FATHOM_EFFICIENCIES": str(file)}))
    assert own.efficiencies.matrix_fp8 == 0.25
    assert own.cpu is None
    assert (own.fitted_to_whole_runs, basis.fitted_to_whole_runs) == (False, True), "times of steps hold no failures"


def test_beside_published_runs(v3: Plan, basis: Basis) -> None:
    plan, llama, own, r1 = against(v3, ["llama-3.1-405b", "deepseek-v3", "deepseek-r1", "deepseek-v3"], basis.prices)
    assert plan.gpu_hours == pytest.approx(own.gpu_hours, rel=0.01)
    assert llama.gpu_hours / own.gpu_hours == pytest.approx(11.58, abs=0.01), "what made DeepSeek famous"
    assert llama.cost_at_same_price == 61_680_000
    assert llama.cost_at_own_price == Decimal("30840000") * Decimal("2.95")
    assert own.total_cost_at_same_price == 5_576_000
    assert r1.total_gpu_hours == 2_788_000 + 147_336, "R1 comes on top of V3"
    assert (r1.tokens, r1.mfu) == (None, None)
    assert plan.flops == pytest.approx(known_run("deepseek-v3").flops)


def test_json_holds_what_was_promised(v3: Plan) -> None:
    document = v3.model_dump(mode="json")
    assert set(document["gpuHours"]) == {"low", "expected", "high"}
    assert set(document["cost"]) == {"low", "expected", "high", "currency"}
    assert document["cost"]["low"] < document["cost"]["expected"] < document["cost"]["high"]
    assert all(math.isfinite(number) for number in numbers(document))
    assert Plan.model_validate_json(v3.model_dump_json()).gpu_hours == v3.gpu_hours


FLAGS = st.fixed_dictionaries(
    {
        "preset": st.sampled_from(["mini", "small-h100", "v2-lite-16b", "moonlight-16b", "v3.2-671b"]),
        "accelerator": st.sampled_from(["A100", "H100", "H800", "H200", "B200", "GB200"]),
        "gpus": st.one_of(st.integers(1, 64), st.sampled_from([128, 1000, 4096])).map(str),
        "tokens": st.sampled_from(["1k", "1M", "3B", "14.8T", "1e15"]),
        "precision": st.sampled_from(["bf16", "fp8", "fp32"]),
    },
    optional={
        "sequence-length": st.sampled_from(["2", "128", "4096", "100k"]),
        "batch-tokens": st.sampled_from(["4096", "1048576", "1M", "62914560"]),
        "gpus-per-node": st.sampled_from(["1", "4", "8", "72"]),
    },
)
SETS = st.lists(
    st.sampled_from(
        [
            "parallelism.expert=8",
            "parallelism.zeroStage=0",
            "parallelism.zeroStage=3",
            "parallelism.microBatch=3",
            "parallelism.recompute=full",
            "model.overrides.layers=7",
            "checkpoint.intervalMinutes=0.5",
            "checkpoint.intervalMinutes=20",
            "compute.gpus=7",
        ]
    ),
    max_size=3,
)


@given(FLAGS, SETS, st.sampled_from([None, "today", "any"]))
@settings(max_examples=25, deadline=None)
def test_any_request_gives_finite_numbers_or_an_error_for_people(
    basis: Basis, flags: dict[str, str], assignments: list[str], engine: Engine | None
) -> None:
    try:
        plan = estimate(make_request(None, flags, assignments, engine=engine), basis)
    except FathomError:
        return
    assert all(math.isfinite(number) for number in numbers(plan.model_dump(mode="json")))
    assert plan.memory is not None
    assert plan.memory.fits
    assert plan.gpu_hours is not None
    assert 0 < plan.gpu_hours.low <= plan.gpu_hours.expected <= plan.gpu_hours.high
