"""Of what comes to be known of a job the newest counts, in whichever order it comes."""

from __future__ import annotations

import uuid
from itertools import permutations
from typing import Any

import pytest
from support.store import small_document

from orchestrator.kube.cache import version_of as versions_of
from orchestrator.kube.resources import Json
from orchestrator.status import Phase
from orchestrator.store.base import Query
from orchestrator.store.index import Index, Row, version_of
from orchestrator.store.packing import pack, unpack
from orchestrator.store.resource import FINALIZER, document_of

UIDS = [str(uuid.UUID(int=number)) for number in range(9)]


def resource(version: int, uid: int = 0, name: str = "mini", **metadata: Any) -> Json:  # noqa: ANN401
    found = small_document(name)
    found["metadata"] |= {
        "uid": UIDS[uid],
        "resourceVersion": str(version),
        "generation": version,
        "creationTimestamp": f"2026-03-01T12:00:0{uid}Z",
        "finalizers": [FINALIZER],
        **metadata,
    }
    return found


def row(version: int, uid: int = 0, **more: Any) -> Row:  # noqa: ANN401
    return Row.of(resource(version, uid, **more))


def versions(index: Index) -> list[int]:
    return [one.version for one in index.all()]


@pytest.mark.parametrize("order", list(permutations([3, 5, 9])))
def test_the_newest_counts(order: tuple[int, ...]) -> None:
    index = Index()
    news = [index.put(row(version)) for version in order]
    assert news == [version == max(order[: number + 1]) for number, version in enumerate(order)]
    assert versions(index) == [9]


@pytest.mark.parametrize("order", list(permutations([row(3), row(5, 1), row(9, 2)])))
def test_of_jobs_of_one_name_the_last_is_there(order: tuple[Row, ...]) -> None:
    index = Index()
    for one in order:
        index.put(one)
    assert index.get("default/mini") == row(9, 2)
    assert versions(index) == [9]
    assert [one.uid for one in index.open()] == [UIDS[2]]
    assert index.by_uid(UIDS[0]) is None


def test_nothing_comes_back() -> None:
    index = Index()
    index.put(row(3))
    index.absent("default/mini", at=2)
    assert versions(index) == [3], "it was made after that"
    index.absent("default/mini", at=3)
    assert versions(index) == []
    assert index.put(row(4)) is False
    assert versions(index) == []
    index.restart([row(1)])
    assert versions(index) == [1]


def test_one_that_nobody_holds_up_is_gone_when_it_is_deleted() -> None:
    index = Index()
    index.put(row(3))
    assert index.put(row(4, deletionTimestamp="2026-03-01T12:01:00Z", finalizers=["example.com/other"]))
    assert versions(index) == []
    assert index.put(row(3)) is False


def test_a_job_that_changes_its_place_is_there_once() -> None:
    index = Index()
    for number in range(3):
        index.put(row(number + 1, number, name=f"j{number}"))
    index.put(row(9, 1, name="j1", creationTimestamp="2026-03-01T12:00:08Z"))
    rows, more = index.page(Query(limit=2))
    assert ([one.name for one in rows], more) == (["j1", "j2"], True)
    index.gone(UIDS[2])
    index.gone(UIDS[1])
    assert [one.name for one in index.all()] == ["j0"]


def test_what_is_kept_is_small_and_whole() -> None:
    found = resource(3, managedFields=[{"manager": "x" * 10_000}])
    found["status"] = {"phase": "Succeeded", "observedGeneration": 3}
    kept = Index().kept(found)
    assert len(kept["row"].packed) < 400
    del found["metadata"]["managedFields"]
    assert kept["row"].found() == found
    assert document_of(kept["row"].found())["status"]["phase"] == "Succeeded"
    assert kept["row"].cost is None
    assert not kept["row"].open


def test_a_phase_of_another_version_leaves_it_open() -> None:
    found = resource(3) | {"status": {"phase": "Dreaming", "observedGeneration": 3}}
    assert Row.of(found).phase is Phase.PENDING
    assert Row.of(found).open


def test_a_row_that_this_process_has_made_is_there_once() -> None:
    index = Index()
    index.put(row(3))
    assert index.kept(resource(3))["row"] is index.by_uid(UIDS[0])
    assert index.kept(resource(4))["row"] == row(4)
    assert index.kept(resource(3, 1))["row"] == row(3, 1)
    assert version_of(index.kept(resource(4))) == versions_of(resource(4))


@pytest.mark.parametrize("text", ["", "{}", '{"kind":"TrainingJob"}', "x" * 100_000, "\u00e4 \U0001f600"])
def test_what_is_packed_comes_out_again(text: str) -> None:
    assert unpack(pack(text.encode())) == text.encode()
