"""Every job that is wrong is refused by the API; tests/orchestrator/crd sends the same ones to Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.api import Service, pointers, problem
from support.bad_documents import COMBINATIONS, NAMES, NEEDS_MORE, NOT_JSON, TAG_NAMES, VALUES, Bad

DRY = "/v1/jobs?dryRun=true"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Nothing is written here."""
    made = Service(tmp_path_factory.mktemp("shared"))
    yield made
    made.close()


@pytest.mark.parametrize(
    "bad", [bad for bad in (*VALUES, *COMBINATIONS) if bad.kind != NOT_JSON], ids=lambda bad: bad.path
)
def test_bad_jobs_are_refused_at_their_field(shared: Service, bad: Bad) -> None:
    found = problem(shared.runner.post(DRY, json={"job": bad.document}), 422, "invalid-job")
    assert f"/{bad.path.replace('.', '/')}" in [pointer.replace(".", "/") for pointer in pointers(found)]
    assert all(word in found["detail"] for word in bad.words)


@pytest.mark.parametrize("name", NAMES)
def test_bad_names_are_refused(shared: Service, name: str) -> None:
    found = problem(shared.runner.post(DRY, json={"job": shared.document(name)}), 422, "invalid-job")
    assert pointers(found) == ["/metadata/name"]


@pytest.mark.parametrize("name", TAG_NAMES)
def test_bad_names_of_tags_are_refused(shared: Service, name: str) -> None:
    document = shared.document(tracking={"tags": {name: "x"}})
    found = problem(shared.runner.post(DRY, json={"job": document}), 422, "invalid-job")
    assert pointers(found)[0].startswith("/spec/tracking/tags")


@pytest.mark.parametrize("what", NEEDS_MORE)
def test_jobs_that_cannot_run_here_are_refused(shared: Service, what: str) -> None:
    answer = shared.runner.post(DRY, json={"job": shared.document(**NEEDS_MORE[what])})
    assert (answer.status_code, answer.json()["code"]) in [(422, "invalid-job"), (402, "over-budget")]
