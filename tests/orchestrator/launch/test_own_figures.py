"""The user's own hardware and efficiencies decide the layout of a run, as they decide that of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs import dataset

from orchestrator.errors import UsageError
from orchestrator.launch.resolve import Resolved, resolve
from orchestrator.plan.basis import Basis
from orchestrator.plan.efficiency import efficiencies
from orchestrator.plan.estimate import estimate
from orchestrator.plan.hardware import DATA
from orchestrator.plan.request import request_of
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

Patch = dict[str, dict[str, Any]]
USUAL = Settings.load({"FATHOM_HOME": "/nowhere"})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return dataset(tmp_path / "data")


def job_of(data: Path, patch: Patch) -> TrainingJob:
    """16B on 16 H100, with parts of its groups of fields replaced."""
    spec: Patch = {
        "model": {"preset": "v2-lite-16b"},
        "data": {"source": str(data), "sequenceLength": 4096},
        "training": {"tokens": 10**12, "globalBatchTokens": 1 << 20},
        "compute": {"accelerator": "H100", "gpus": 16, "gpusPerNode": 8},
    }
    spec |= {group: spec.get(group, {}) | fields for group, fields in patch.items()}
    return TrainingJob.model_validate({"metadata": {"name": "own"}, "spec": spec})


def run(data: Path, patch: Patch, settings: Settings = USUAL, earlier: Resolved | None = None) -> Resolved:
    return resolve(
        job_of(data, patch),
        uid="u1",
        attempt=1 if earlier is None else 2,
        incarnation="i1",
        settings=settings,
        storage_uri="/nowhere/run",
        earlier=earlier,
    )


def own(folder: Path, **changes: float) -> Settings:
    """An H100 with other figures, and matrix products at half the usual rate."""
    usual = next(row for row in yaml.safe_load(DATA.read_text()) if row["name"] == "H100")
    (folder / "hardware.yaml").write_text(yaml.safe_dump([usual | changes]))
    halved = [{"name": "matrix_bf16", "value": efficiencies().matrix_bf16 / 2, "origin": "a test"}]
    (folder / "efficiencies.yaml").write_text(yaml.safe_dump(halved))
    names = {"FATHOM_HARDWARE": "hardware.yaml", "FATHOM_EFFICIENCIES": "efficiencies.yaml"}
    return Settings.load({"FATHOM_HOME": "/nowhere"} | {key: str(folder / name) for key, name in names.items()})


def shape(resolved: Resolved) -> tuple[int, int, int, str]:
    of = resolved.recipe.layout
    return of.expert_parallel, of.zero_stage, of.micro_batch, of.recompute


def test_own_figures_change_what_is_chosen_and_how_it_is_measured(data: Path, tmp_path: Path) -> None:
    usual = run(data, {})
    narrow = own(tmp_path, networkGigabytesPerSecond=1, memoryGigabytes=96, bf16Teraflops=700, fp8Teraflops=1400)
    mine = run(data, {}, narrow)
    assert (shape(usual), shape(mine)) == ((1, 3, 2, "none"), (8, 1, 2, "none")), "weights no longer cross the network"
    assert mine.recipe.peak_flops == 700e12
    reason = {choice.path: choice.reason for choice in mine.chosen}["spec.parallelism.zeroStage"]
    assert " of 96 GB by the plan" in reason
    slower = run(data, {}, narrow.model_copy(update={"hardware_file": None}))
    reasons = [{choice.path: choice.reason for choice in one.chosen} for one in (usual, slower)]
    before, after = (float(one["spec.parallelism.expert"].split(": ")[1].split(" s a step")[0]) for one in reasons)
    assert after > 1.3 * before, "matrix products take twice as long"


@pytest.mark.parametrize("own_figures", [False, True])
@pytest.mark.parametrize(
    "patch",
    [
        {},
        {"parallelism": {"expert": 4}},
        {"parallelism": {"recompute": "full"}},
        {"training": {"precision": "fp8", "globalBatchTokens": None}},
        {"compute": {"gpus": 64}, "training": {"globalBatchTokens": 1 << 22}},
    ],
)
def test_plan_and_launch_choose_alike(data: Path, tmp_path: Path, patch: Patch, own_figures: bool) -> None:
    changes = {"memoryGigabytes": 64, "nvlinkGigabytesPerSecond": 30}
    settings = own(tmp_path, **changes) if own_figures else USUAL
    job = job_of(data, patch)
    plan = estimate(request_of(job, hardware=settings.hardware_file), Basis.load(settings))
    resolved = run(data, patch, settings)
    assert plan.layout is not None
    assert plan.step is not None
    planned = plan.layout
    assert (planned.expert, planned.zero_stage, planned.micro_batch, planned.recompute) == shape(resolved)
    assert plan.request.batch_tokens == resolved.recipe.batch_tokens


def test_a_bad_file_of_hardware_or_efficiencies_is_named(data: Path, tmp_path: Path) -> None:
    settings = own(tmp_path, bf16Teraflops=1979)
    with pytest.raises(UsageError, match=r"hardware\.yaml: row 1: H100: .* sparse figure"):
        run(data, {}, settings)
    (tmp_path / "efficiencies.yaml").write_text("[{name: magic, value: 1, origin: x}]")
    with pytest.raises(UsageError, match=r"efficiencies\.yaml: unknown magic"):
        run(data, {}, settings.model_copy(update={"hardware_file": None}))


def test_another_file_does_not_move_a_run_that_has_begun(data: Path, tmp_path: Path) -> None:
    """ZeRO-3's checkpoints cannot be read on ZeRO-1."""
    first, narrow = run(data, {}), own(tmp_path, networkGigabytesPerSecond=5)
    assert shape(run(data, {}, narrow)) != shape(first)
    later = run(data, {}, narrow, earlier=first)
    assert later.recipe.layout == first.recipe.layout
    assert {choice.path: choice.reason for choice in later.chosen}["spec.parallelism.expert"].startswith(
        "as in the att"
    )
    asked = {"parallelism": {"microBatch": 2 * first.recipe.layout.micro_batch}}
    assert shape(run(data, asked, narrow, earlier=first)) == shape(run(data, asked, narrow))
    small = own(tmp_path, memoryGigabytes=64)
    anew = run(data, {}, small)
    assert shape(anew) != shape(first)
    assert shape(run(data, {}, small, first)) == shape(anew), "the layout before does not fit into 64 GB"
