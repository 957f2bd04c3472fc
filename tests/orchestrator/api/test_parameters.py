"""Query parameters that a route does not take are refused, not passed over."""

from __future__ import annotations

import pytest
from support.service import Runs

from orchestrator.api.parameters import wrong


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("namspace=default", "query.namspace: unknown: did you mean namespace?"),
        ("zzz=1", "query.zzz: unknown: there are cursor, limit, name, namespace, phase"),
        ("limit=1&limit=2", "query.limit: given 2 times: give it once"),
        ("=1", "query.: unknown"),
    ],
)
def test_parameters_that_are_mistyped_or_repeated_are_refused(runs: Runs, query: str, words: str) -> None:
    answer = runs.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert words in answer.json()["detail"]


def test_lists_may_have_several_values_and_all_others_one(runs: Runs) -> None:
    assert runs.get("/v1/jobs?phase=Running&phase=Failed&limit=1").status_code == 200
    assert runs.get("/livez?x=1").status_code == 422
    assert runs.get("/v1/jobs/default/none?x=1").status_code == 422


def test_a_request_of_nonsense_is_answered_shortly() -> None:
    assert len(wrong([(f"x{number}", "") for number in range(100_000)], {})) == 10
