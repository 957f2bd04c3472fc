"""The fit of constants to runs."""

import datetime
import math
from pathlib import Path

import pytest
from support.recipes import TINY

from model.presets import preset
from model.recipe import Layout
from orchestrator.errors import UsageError
from orchestrator.plan.calibrate import (
    GROUPS,
    Calibration,
    Constant,
    Run,
    calibrate,
    file_text,
    fit,
    forecast_of,
)
from orchestrator.plan.cpu import CpuRates, cpu_priors, cpu_rates, forecast_cpu
from orchestrator.plan.efficiency import Efficiencies, efficiencies
from orchestrator.plan.hardware import accelerators
from orchestrator.plan.observed import Observed

TRUTH = CpuRates(9e10, 6e10, 1.2e10, 8e9, 4e5, 5e8)
TODAY = datetime.date(2026, 1, 2)


def cpu_run(name: str, seconds: float | None = None, **changes: int) -> Observed:
    """A run whose seconds follow from `TRUTH` unless given."""
    layout = {"world_size": 1, "expert_parallel": 1, "micro_batch": 4, "accumulation": 1}
    sizes = {"sequence": 256} | changes
    layout |= {key: value for key, value in sizes.items() if key in layout}
    shape = {key: value for key, value in sizes.items() if key not in layout and key != "sequence"}
    run = Observed(
        name=name,
        device="cpu",
        model=preset("mini").replace(max_position_embeddings=8192, **shape),
        sequence_length=sizes["sequence"],
        precision="fp32",
        layout=Layout.model_validate(layout),
        seconds=1.0,
    )
    return run.model_copy(update={"seconds": seconds or forecast_cpu(run, TRUTH)})


VARIED = [
    cpu_run("wide", hidden_size=768, moe_intermediate_size=256),
    cpu_run("long", sequence=4096, num_attention_heads=16),
    cpu_run("short", sequence=64, micro_batch=1, accumulation=8),
    cpu_run("vocabulary", vocab_size=64_000),
    cpu_run("experts", n_routed_experts=256, n_group=8, sequence=64, micro_batch=1),
    cpu_run("deep", num_hidden_layers=24, hidden_size=64),
    cpu_run("large", hidden_size=1024, sequence=64, micro_batch=1),
    cpu_run("two", world_size=2, expert_parallel=2),
    cpu_run("four", world_size=4, hidden_size=512, micro_batch=1),
]


def on_cpus(runs: list[Observed]) -> Calibration:
    return calibrate(runs, efficiencies(), accelerators(), cpu_priors())


# ------------------------------------------------------------------ many runs, one run


def test_many_runs_determine_all() -> None:
    few, many = on_cpus(VARIED), on_cpus(VARIED * 4)
    for one, better in zip(few.constants, many.constants, strict=True):
        truth = getattr(TRUTH, one.constant.name.removeprefix("cpu_"))
        off = abs(math.log(one.value / truth))
        assert off < 0.5 * abs(math.log(one.constant.prior / truth)), one.constant.name
        assert off < one.spread < 0.6 * one.constant.width, one.constant.name
        assert better.value == pytest.approx(truth, rel=0.1), one.constant.name
        assert better.spread < 0.6 * one.spread
    assert all(error.after == pytest.approx(error.measured, rel=0.02) for error in few.errors)
    assert max(abs(error.before / error.measured - 1) for error in few.errors) > 0.3


def test_one_run_moves_little_that_it_says_nothing_about() -> None:
    (run,) = VARIED[:1]
    found = {one.constant.name: one for one in on_cpus([run]).constants}
    exchanged, matrix = found["cpu_exchanged_bytes"], found["cpu_matrix_flops"]
    assert exchanged.value == pytest.approx(exchanged.constant.prior, rel=1e-6)
    assert exchanged.spread == pytest.approx(exchanged.constant.width, rel=1e-3)
    assert matrix.value > 1.3 * matrix.constant.prior
    assert matrix.spread < 0.5 * matrix.constant.width


def test_a_run_is_left_out_of_the_fit_that_forecasts_it() -> None:
    strange = cpu_run("strange", seconds=1.6 * (VARIED[0].seconds or 0), hidden_size=768, moe_intermediate_size=256)
    rest = [run for run in VARIED if run.name != "wide"]
    by_name = {error.name: error for error in on_cpus([*rest, strange]).errors}
    left_out = by_name["strange"].left_out
    assert left_out is not None
    assert left_out < by_name["strange"].after < by_name["strange"].measured
    alone = on_cpus(rest).values
    known = CpuRates(**{name.removeprefix("cpu_"): value for name, value in alone.items()})
    assert left_out == pytest.approx(forecast_cpu(strange, known), rel=1e-4)
    assert on_cpus([strange]).errors[0].left_out is None


def test_many_runs_are_left_out_in_groups() -> None:
    """One constant, of which each run says something else: whom a fit knew is to be seen in it."""
    constants = [Constant("a", 1.0, 0.1)]
    runs = [Run(str(i), 1 + i / 100, lambda values: values["a"]) for i in range(2 * GROUPS + 1)]
    few, many = fit("cpu", constants, runs[:GROUPS]).errors, fit("cpu", constants, runs).errors
    assert len({error.left_out for error in few}) == GROUPS, "each by itself"
    assert len({error.left_out for error in many}) == GROUPS
    assert many[3].left_out == many[3 + GROUPS].left_out == fit("cpu", constants, without(runs, 3)).values["a"]


def without(runs: list[Run], group: int) -> list[Run]:
    return [run for run in runs if int(run.name) % GROUPS != group]


def test_runs_that_contradict_each_other_make_it_less_certain() -> None:
    twice = [run.model_copy(update={"seconds": (run.seconds or 0) * f}) for run in VARIED for f in (0.8, 1.25)]
    calm, torn = on_cpus(VARIED), on_cpus(twice)
    assert torn.constants[0].spread > 1.5 * calm.constants[0].spread


# ------------------------------------------------------------------ GPUs


def gpu_run(name: str, truth: Efficiencies, sequence: int = 4096, **changes: object) -> Observed:
    layout = {"world_size": 8, "expert_parallel": 8, "micro_batch": 1, "accumulation": 4}
    run = Observed(
        name=name,
        device="H100",
        model=preset("small-h100").replace(max_position_embeddings=65536),
        sequence_length=sequence,
        precision="bf16",
        layout=Layout.model_validate(layout | changes),
        seconds=1.0,
    )
    seconds = forecast_of(run, truth, accelerators(), None)
    return run.model_copy(update={"seconds": seconds})


def changed(**values: float) -> Efficiencies:
    from dataclasses import replace

    return replace(efficiencies(), **values)


def test_efficiencies_of_gpus() -> None:
    truth = changed(matrix_bf16=0.4, attention=0.2)
    runs = [gpu_run(f"{n}", truth, n, micro_batch=m) for n, m in ((1024, 8), (4096, 2), (8192, 1), (32768, 1))]
    found = calibrate(runs, efficiencies(), accelerators(), cpu_priors())
    assert found.values["matrix_bf16"] == pytest.approx(0.4, rel=0.1)
    assert found.values["attention"] == pytest.approx(0.2, rel=0.1)
    assert found.values["matrix_fp8"] == pytest.approx(efficiencies().matrix_fp8, rel=1e-3), "nothing was said of it"
    assert all(error.after == pytest.approx(error.measured, rel=0.03) for error in found.errors)


def test_a_share_never_exceeds_one_and_an_overhead_never_falls_below_zero() -> None:
    fast = [gpu_run(str(n), changed(matrix_bf16=1.0, attention=1.0), n) for n in (4096, 32768)]
    hurried = [run.model_copy(update={"seconds": (run.seconds or 0) * 0.8}) for run in fast]
    found = calibrate(hurried, efficiencies(), accelerators(), cpu_priors()).values
    assert all(0 < found[name] <= 1 for name in ("matrix_bf16", "attention", "memory", "nvlink", "network"))
    assert 0 <= found["overhead_seconds"] < 1e-3
    slow = [gpu_run(str(n), changed(overhead_seconds=0.5), 4096, accumulation=n) for n in (1, 2, 4, 8, 16)]
    assert calibrate(slow, efficiencies(), accelerators(), cpu_priors()).values["overhead_seconds"] > 0.05


# ------------------------------------------------------------------ refusals


def test_no_runs() -> None:
    with pytest.raises(UsageError, match="at least 1, got 0"):
        on_cpus([])


def test_mixed_devices() -> None:
    with pytest.raises(UsageError, match="wide ran on cpu, a on H100"):
        on_cpus([VARIED[0], gpu_run("a", efficiencies()).model_copy(update={"name": "a"})])


def test_unknown_devices_and_arithmetic() -> None:
    with pytest.raises(UsageError, match="'TPU'; known: A100"):
        on_cpus([VARIED[0].model_copy(update={"device": "TPU"})])
    with pytest.raises(UsageError, match=r"wide: .*got bf16 on cpu"):
        on_cpus([VARIED[0].model_copy(update={"precision": "bf16"})])
    with pytest.raises(UsageError, match="a: A100 has no 8-bit"):
        on_cpus([gpu_run("a", efficiencies()).model_copy(update={"device": "A100", "precision": "fp8"})])


def test_a_run_that_nothing_explains() -> None:
    mad = cpu_run("mad", seconds=1000.0, hidden_size=256)
    with pytest.raises(UsageError, match=r"mad: measured 1000 s for a step, forecast .* beyond a factor of 3"):
        on_cpus([*VARIED, mad])


@pytest.mark.parametrize("seconds", [1e-3, 1e3, 1e5])
def test_an_overhead_does_not_explain_everything(seconds: float) -> None:
    """A step of a day, or of a millisecond, is no slow run but a wrong figure."""
    wrong = gpu_run("wrong", efficiencies()).model_copy(update={"seconds": seconds})
    with pytest.raises(UsageError, match=r"wrong: measured .* s for a step, forecast .* even after the fit"):
        calibrate([wrong], efficiencies(), accelerators(), cpu_priors())


def test_the_fit_is_least_squares_of_logarithms_with_priors() -> None:
    """One constant, two runs: the minimum of log(a x / 1)^2 + log(a x / 4)^2 over the noise and log(a)^2 over the
    width, in closed form."""
    runs = [Run(str(seconds), seconds, lambda values: values["a"]) for seconds in (1.0, 4.0)]
    found = fit("cpu", [Constant("a", 1.0, 0.1)], runs)
    weight = 2 / 0.05**2
    expected = weight * math.log(2) / (weight + 1 / 0.1**2)
    assert math.log(found.values["a"]) == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------ the file


def test_what_is_written_is_what_the_planner_reads(tmp_path: Path) -> None:
    file, gpu = tmp_path / "own.yaml", gpu_run("g", changed(matrix_bf16=0.4))
    on_gpus = calibrate([gpu], efficiencies(), accelerators(), cpu_priors())
    file.write_text(file_text(on_gpus, file, TODAY))
    assert cpu_rates(file) is None
    first = efficiencies(file)
    assert first.matrix_bf16 == pytest.approx(on_gpus.values["matrix_bf16"], rel=1e-4)
    assert first.communication_cores == efficiencies().communication_cores
    file.write_text(file_text(on_cpus(VARIED[:2]), file, TODAY))
    assert efficiencies(file) == first, "the GPUs' stay"
    both = file.read_text()
    assert "CALIBRATED 2026-01-02 to 2 runs on cpu (wide, long)" in " ".join(both.split())
    assert cpu_rates(file) is not None
    file.write_text(file_text(on_cpus(VARIED), file, TODAY))
    rates = cpu_rates(file)
    assert rates is not None
    assert rates.matrix_flops == pytest.approx(TRUTH.matrix_flops, rel=0.05)


def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("metadata: {}\n")
    with pytest.raises(UsageError, match="must be a list of rows"):
        file_text(on_cpus(VARIED[:1]), file, TODAY)


def test_forecasts_of_single_runs() -> None:
    assert forecast_of(VARIED[0], efficiencies(), {}, TRUTH) == pytest.approx(VARIED[0].seconds)
    assert forecast_of(VARIED[0], efficiencies(), {}, None) is None
    half = VARIED[0].model_copy(update={"precision": "bf16", "model": TINY})
    assert forecast_of(half, efficiencies(), {}, TRUTH) is None
    assert forecast_of(gpu_run("g", efficiencies()), efficiencies(), {}, TRUTH) is None
