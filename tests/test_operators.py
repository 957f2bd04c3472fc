"""The operators' definitions are found, or missed loudly."""

from pathlib import Path

import pytest
import yaml
from support.operators import NOT_RUN, definitions, not_run

NAMES = ["rayjobs.ray.io", "rayclusters.ray.io", "workloads.kueue.x-k8s.io"]


def folder(path: Path, names: list[str]) -> Path:
    versions = [{"name": "v1", "storage": True}, {"name": "v1alpha1", "storage": False}]
    for name in names:
        document = {"metadata": {"name": name}, "spec": {"versions": versions}}
        (path / f"{name}.yaml").write_text("---\n" + yaml.safe_dump(document))
    return path


def test_definitions_are_those_of_the_named_folder(tmp_path: Path) -> None:
    found = definitions({"FATHOM_TEST_CRDS": str(folder(tmp_path, NAMES))})
    assert found is not None
    assert sorted(one["metadata"]["name"] for one in found) == sorted(NAMES)
    assert [[version["name"] for version in one["spec"]["versions"]] for one in found] == [["v1"]] * 3


def test_a_folder_without_them_is_a_mistake_and_none_is_not(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"which lacks rayjobs\.ray\.io"):
        definitions({"FATHOM_TEST_CRDS": str(folder(tmp_path, NAMES[1:]))})
    assert definitions({}) is None
    assert definitions({"FATHOM_TEST_CRDS": ""}) is None


def test_what_did_not_run_is_said_with_its_number() -> None:
    assert not_run([f"Skipped: {NOT_RUN}", "Skipped: no browser"]) == (
        "1 tests of rendered RayJobs did NOT run: set FATHOM_TEST_CRDS"
    )
    assert not_run(["Skipped: no browser"]) == ""
