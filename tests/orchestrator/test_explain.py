from __future__ import annotations

import pytest

from orchestrator.errors import NotFound
from orchestrator.explain import EXAMPLES, all_fields, explain, walk
from orchestrator.spec import TrainingJob


@pytest.mark.parametrize("document", EXAMPLES, ids=["gpu", "cpu"])
def test_the_examples_are_valid_jobs(document: dict[str, object]) -> None:
    TrainingJob.model_validate(document)


def test_every_field_that_a_person_writes_has_an_example() -> None:
    missing = [
        one.path
        for one in walk(all_fields())
        if one.path.startswith(("spec.", "metadata.")) and not one.fields and one.example is None
    ]
    assert missing == []


def test_every_field_is_explained_and_found_by_its_path() -> None:
    for one in walk(all_fields()):
        assert one.text, one.path
        assert explain(one.path) is one


@pytest.mark.parametrize(
    "written", ["spec.compute.gpusPerNode", "compute.gpusPerNode", "compute.gpus_per_node", ".spec.compute.gpusPerNode"]
)
def test_a_field_is_found_however_it_is_written(written: str) -> None:
    assert explain(written).path == "spec.compute.gpusPerNode"


def test_items_of_lists_are_found_with_and_without_brackets() -> None:
    for written in ("spec.data.mixture.weight", "data.mixture[].weight", "data.mixture[3].weight"):
        assert explain(written).path == "spec.data.mixture[].weight"


def test_bounds_default_and_choices() -> None:
    found = explain("spec.data.mixture.weight")
    assert (found.bounds, found.required, found.default) == ("more than 0, at most 1e+09", True, None)
    assert explain("parallelism.zeroStage").choices == (0, 1, 2, 3)
    assert explain("budget.warnAt").bounds == "more than 0, less than 1"
    assert explain("training.seed").default == 1
    assert explain("spec.suspend").default is False
    assert explain("budget.limit").pattern


def test_an_object_lists_its_fields() -> None:
    assert [one.path.rpartition(".")[2] for one in explain("storage").fields] == ["secretRef", "claim"]
    assert "spec.training" in [one.path for one in explain("spec").fields]
    assert "status.attempts[].cost" in [one.path for one in explain("status.attempts").fields]


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("spec.compute.gpu", "spec.compute.gpus"),
        ("compute.gpuss", "spec.compute.gpus"),
        ("spec.trainin.tokens", "spec.training.tokens"),
        ("spec.learningRate", "spec.training.schedule.learningRate"),
        ("status.progres", "status.progress"),
    ],
)
def test_a_typo_brings_a_suggestion(typo: str, meant: str) -> None:
    with pytest.raises(NotFound) as refused:
        explain(typo)
    assert meant in str(refused.value).partition("did you mean")[2]


def test_without_anything_close_the_neighbours_are_named() -> None:
    with pytest.raises(NotFound, match=r"there is no field storage.zzzzqqq; spec.storage has: secretRef, claim$"):
        explain("storage.zzzzqqq")
