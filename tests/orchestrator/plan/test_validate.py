"""Every published row is in the document, with the errors as the program finds them."""

from pathlib import Path

import pytest

from orchestrator.plan.efficiency import efficiencies
from orchestrator.plan.published import Run, runs
from orchestrator.plan.validate import outcome, outcomes, report
from orchestrator.plan.work import model_flops
from orchestrator.plan.workload import check

DOCUMENT = Path(__file__).parents[3] / "docs" / "planner.md"


def test_the_document_holds_what_the_program_prints() -> None:
    """After a change: `python -m orchestrator.plan.validate`, and look at what has become worse."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for table in report().strip().split("\n\n"):
        assert table in text


def test_published_layouts_are_possible_and_searched_ones_fit() -> None:
    for found in outcomes():
        for phase, parallel in zip(found.run.phases, found.parallels, strict=True):
            check(found.run.workload(phase), found.run.cluster, parallel)
        assert found.searched == (found.run.tensor is None)
        if found.searched:
            assert found.peak <= found.run.cluster.accelerator.memory_bytes


def test_throughput_of_whole_runs_follows_from_their_hours() -> None:
    published = {run.name: run for run in runs()}
    assert published["DeepSeek-V3 pre-training"].throughput == pytest.approx(1543.2, abs=0.1)
    flops = 2523.955986432e9
    assert published["Llama-3.1-405B, whole run"].throughput * flops / 1e12 == pytest.approx(355, abs=1)
    assert published["Llama-3.1-405B, 8192 GPUs"].throughput * flops / 1e12 == pytest.approx(430, abs=0.2)


def test_runs_without_the_prediction_module_are_forecast_without_it() -> None:
    """NVIDIA prints TFLOP/s beside tokens per second: their ratio says what was trained."""
    published = {run.name: run for run in runs()}
    for name, flops in (
        ("Megatron-Bridge 25.11, DeepSeek-V3, GB200, BF16", 782e12 / 3139),
        ("Megatron-Bridge 25.11, DeepSeek-V3, GB200, FP8", 1003e12 / 4018),
        ("Automodel, DeepSeek-V3, 256 GPUs", 250e12 / 1002),
        ("Automodel, DeepSeek-V3, 1024 GPUs", 216e12 / 865),
        ("Megatron-Bridge 25.09, DeepSeek-V3", 338e12 / 1297),
        ("Megatron-Bridge 25.11, DeepSeek-V3, B200, FP8", 557e12 / 2139),
    ):
        config = published[name].workload(published[name].phases[0]).config
        assert model_flops(config, 4096, mtp=True) == pytest.approx(flops, rel=6e-3), name


def test_fitted_rows_have_no_error_and_predicted_ones_have() -> None:
    errors = {found.run.name: (found.run.use, found.error) for found in outcomes()}
    assert all(abs(error) < 2e-3 for use, error in errors.values() if use == "fitted")
    assert all(abs(error) > 1e-3 for use, error in errors.values() if use == "predicted")


def test_forecasts_do_not_look_at_what_was_published() -> None:
    """A predicted row's forecast stays as it is if another figure is published."""
    row = next(found for found in outcomes() if found.run.use == "predicted" and not found.searched)
    twice = row.run.model_copy(update={"tokens_per_second_per_gpu": 2 * row.run.throughput, "gpu_hours": None})
    assert outcome(twice, efficiencies()).throughput == row.throughput


def test_a_row_has_one_result() -> None:
    base = runs()[0].model_dump(mode="json", by_alias=True)
    with pytest.raises(ValueError, match="one of gpuHours and tokensPerSecondPerGpu"):
        Run.model_validate(base | {"tokensPerSecondPerGpu": 1.0})
    with pytest.raises(ValueError, match="one of gpuHours and tokensPerSecondPerGpu"):
        Run.model_validate(base | {"gpuHours": None})
