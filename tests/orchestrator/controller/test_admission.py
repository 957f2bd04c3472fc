from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from support.runs import dataset
from support.store import small_job

from orchestrator.controller.admission import check, units
from orchestrator.errors import InvalidJob, OverBudget, UsageError
from orchestrator.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    dataset(tmp_path / "data")
    return Settings.load({"FATHOM_HOME": str(tmp_path)})


def data(settings: Settings) -> dict[str, object]:
    return {"source": str(settings.home / "data"), "sequenceLength": 32}


def paths(refused: pytest.ExceptionInfo[InvalidJob]) -> list[str]:
    return [problem.path for problem in refused.value.problems]


def test_what_is_possible_is_resolved_and_leaves_nothing(settings: Settings) -> None:
    before = sorted(settings.home.rglob("*"))
    resolved = check(small_job(data=data(settings), suspend=True), settings)
    assert resolved.workers == 2
    assert sorted(settings.home.rglob("*")) == before


def test_all_that_is_wrong_is_said_at_once(settings: Settings) -> None:
    job = small_job(
        data={"source": "s3://bucket/data"},
        checkpoint={"uri": "nosuch://bucket"},
        compute={"accelerator": "cpu", "workers": 2, "priceClass": "stolen"},
    )
    with pytest.raises(InvalidJob) as refused:
        check(job, settings)
    assert paths(refused) == ["spec.data.source", "spec.checkpoint.uri", "spec.compute.priceClass"]


@pytest.mark.parametrize("uri", ["github://c/", "zip://x::http://127.0.0.1:1/", "http://127.0.0.1:1/x", "s3://b/x"])
def test_storage_is_not_connected_to(settings: Settings, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(*_: object, **__: object) -> None:
        raise AssertionError(f"{uri} was opened")

    for name in ("url_to_fs", "filesystem"):
        monkeypatch.setattr(fsspec.core, name, connected)
    try:
        check(small_job(data=data(settings), checkpoint={"uri": uri}), settings)
    except InvalidJob as error:
        assert [problem.path for problem in error.problems] == ["spec.checkpoint.uri"]  # noqa: PT017


def test_a_chain_of_urls_is_refused(settings: Settings) -> None:
    with pytest.raises(InvalidJob, match="a chain of URLs"):
        check(small_job(data=data(settings), checkpoint={"uri": "simplecache::s3://bucket"}), settings)


def test_a_budget_that_pays_for_nothing(settings: Settings) -> None:
    with pytest.raises(OverBudget, match=r"0\.000001 USD"):
        check(small_job(data=data(settings), budget={"limit": "0.000001"}), settings)


def test_a_bad_price_file_is_no_fault_of_the_job(settings: Settings) -> None:
    bad = settings.home / "prices.yaml"
    bad.write_text("nonsense")
    with pytest.raises(UsageError, match="price file"):
        check(small_job(data=data(settings)), settings.model_copy(update={"price_file": bad}))


def test_units_are_what_is_paid_for() -> None:
    assert units(small_job(compute={"accelerator": "cpu", "workers": 3, "cpuPerWorker": 4})) == 12
    assert units(small_job(compute={"accelerator": "H100", "gpus": 8})) == 8
