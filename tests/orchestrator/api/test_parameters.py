"""Query parameters that a route does not take are refused, not passed over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from support.api import Service
from support.in_cluster import ClusterService
from support.service import Runs

from orchestrator.api.parameters import parameters, wrong
from orchestrator.store.access import Role


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


@pytest.mark.parametrize("kind", [Service, ClusterService])
def test_they_are_those_of_the_document(kind: type[Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every route: a request with a parameter finds the route, and what the route takes is what is written."""
    asked: list[APIRoute] = []

    def remember(route: APIRoute) -> dict[str, bool]:
        asked.append(route)
        return parameters(route)

    made, compared = kind(tmp_path), 0
    if isinstance(made, ClusterService):
        token = made.known.person("alice", ("get", "list", "create", "update", "delete"))
    else:
        token = made.secrets[Role.ADMIN]
    monkeypatch.setattr("orchestrator.api.parameters.parameters", remember)
    for path, operations in made.app.openapi()["paths"].items():
        for method, operation in operations.items():
            query = [one for one in operation.get("parameters", []) if one["in"] == "query"]
            options = {one["name"]: [one["schema"], *one["schema"].get("anyOf", [])] for one in query}
            lists = {name: any(one.get("type") == "array" for one in of) for name, of in options.items()}
            asked.clear()
            made.client(token).request(method, re.sub(r"{.*?}", "x", path), params={"x": "1"})
            assert [parameters(route) for route in asked] in ([lists], []), (method, path)
            compared += len(asked)
    made.close()
    assert compared > 15


def test_a_request_of_nonsense_is_answered_shortly() -> None:
    assert len(wrong([(f"x{number}", "") for number in range(100_000)], {})) == 10
