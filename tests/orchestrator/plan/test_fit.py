"""The packaged constants are what the fit gives, and a fit finds constants that made the data."""

from dataclasses import replace

import pytest

from model.presets import preset
from orchestrator.plan.efficiency import Efficiencies, efficiencies
from orchestrator.plan.fit import FITTED, FP8_GAIN, Observation, fit, gpu_hours, observations, packaged
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.published import runs
from orchestrator.plan.step_time import step_time
from orchestrator.plan.workload import Cluster, Parallel, Workload


def test_the_data_file_holds_what_the_fit_gives() -> None:
    assert packaged() == efficiencies()


def test_the_fit_does_not_depend_on_where_it_starts() -> None:
    found = fit(FITTED, observations(), replace(efficiencies(), matrix_fp8=0.9, attention=0.9, matrix_bf16=0.1))
    for name in FITTED:
        assert getattr(found, name) == pytest.approx(getattr(efficiencies(), name), rel=1e-3)


def test_fitted_runs_come_out_as_published() -> None:
    fitted = [run for run in runs() if run.use == "fitted"]
    assert [run.gpu_hours for run in fitted] == [2_664_000, 119_000]
    for run in fitted:
        assert gpu_hours(run, efficiencies()) == pytest.approx(run.gpu_hours, rel=2e-3)
    assert observations()[-1].forecast(efficiencies()) == pytest.approx(FP8_GAIN, rel=2e-3)


def test_only_rows_of_deepseek_v3_are_fitted() -> None:
    assert {run.model for run in runs() if run.use == "fitted"} == {"v3-671b"}
    assert {run.accelerator for run in runs() if run.use == "fitted"} == {"H800"}


def seconds(length: int) -> Observation:
    """A step of V2-Lite on 8 H100, as if it had been measured with other constants."""
    config = preset("v2-lite-16b").replace(yarn=None)
    workload = Workload(config, length, 64 * 4096, "bf16", 10**9)

    def forecast(constants: Efficiencies) -> float:
        return step_time(workload, Cluster(accelerator("H100"), 8), Parallel(8, expert=8), constants).seconds

    truth = replace(efficiencies(), matrix_bf16=0.3, attention=0.15, overhead_seconds=0.0)
    return Observation(f"{length} tokens", forecast, forecast(truth))


def test_a_user_s_own_runs_give_back_what_made_them() -> None:
    found = fit(("matrix_bf16", "attention"), [seconds(length) for length in (1024, 4096, 32_768)], efficiencies())
    assert found.matrix_bf16 == pytest.approx(0.3, rel=1e-5)
    assert found.attention == pytest.approx(0.15, rel=1e-5)
    assert found.matrix_fp8 == efficiencies().matrix_fp8


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(ValueError, match=r"1 observations cannot fix 2 constants \(matrix_bf16, attention\)"):
        fit(("matrix_bf16", "attention"), [seconds(1024)], efficiencies())
    with pytest.raises(ValueError, match="tell the constants apart"):
        fit(("matrix_bf16", "matrix_fp8"), [seconds(1024), seconds(4096)], efficiencies())
    faster = replace(seconds(1024), actual=seconds(1024).actual / 1000)
    with pytest.raises(ValueError, match=r"do not fit the model: matrix_bf16|no fit"):
        fit(("matrix_bf16",), [faster], efficiencies())
