from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from support.api import Service
from support.store import in_phase

from orchestrator.api.documents import EXAMPLE
from orchestrator.jobfile import make_job
from orchestrator.spec import TrainingJob
from orchestrator.status import Phase

Json = dict[str, Any]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """Of one API for all tests here, which only read it: making it takes a second."""
    service = Service(tmp_path_factory.mktemp("document"))
    answer = service.reader.get("/openapi.json")
    service.close()
    assert answer.status_code == 200
    found: Json = answer.json()
    return found


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def validator(document: Json, name: str) -> jsonschema.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema.Draft202012Validator(schema)


def test_every_operation_says_what_it_is_takes_and_answers(document: Json) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"], where
        success = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
        assert success, where
        assert all(answer["content"] for answer in success), where
        if path in ("/livez", "/readyz"):
            assert "security" not in operation
            continue
        assert operation["security"] == [{"token": []}], where
        for status in ("400", "401", "403", "421", "422", "429", "500", "503"):
            [(kind, content)] = operation["responses"][status]["content"].items()
            assert kind == "application/problem+json", where
            assert content["schema"] == {"$ref": "#/components/schemas/ProblemDocument"}, where
        for parameter in operation.get("parameters", []):
            assert parameter.get("description") or parameter["schema"].get("description"), (where, parameter["name"])


def test_errors_have_one_media_type_only(document: Json) -> None:
    for path, method, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status >= "400" and path not in ("/livez", "/readyz"):
                assert list(answer["content"]) == ["application/problem+json"], (method, path, status)


def test_a_patch_is_a_merge_patch(document: Json) -> None:
    content = document["paths"]["/v1/jobs/{namespace}/{name}"]["patch"]["requestBody"]["content"]
    assert set(content) == {"application/json", "application/merge-patch+json"}


def test_the_constraints_are_those_of_the_models(document: Json) -> None:
    ours = TrainingJob.model_json_schema(by_alias=True)["$defs"]
    for name in ("Training", "Compute", "Budget", "Retry", "Metadata", "Data"):
        theirs = document["components"]["schemas"][name]
        assert theirs["additionalProperties"] is False
        for field, schema in ours[name]["properties"].items():
            said = json.loads(json.dumps(schema).replace("#/$defs/", "#/components/schemas/"))
            found = theirs["properties"][field]
            assert {**found, "default": 0} == {**said, "default": 0}, (name, field)  # FastAPI leaves nulls out of those


def test_a_submitted_job_has_no_status(document: Json) -> None:
    assert set(document["components"]["schemas"]["JobInput"]["properties"]) == {
        "apiVersion",
        "kind",
        "metadata",
        "spec",
    }


def test_the_example_is_a_job(document: Json) -> None:
    validator(document, "JobInput").validate(EXAMPLE)
    assert make_job(json.loads(json.dumps(EXAMPLE))).metadata.name == "mini"


def test_answers_are_as_they_are_said_to_be(service: Service, document: Json) -> None:
    service.create(budget={"limit": "2.00"})
    service.set_status(in_phase(Phase.RUNNING))
    service.runner.delete("/v1/jobs/default/none")
    answers = {
        "JobDocument": service.reader.get("/v1/jobs/default/mini"),
        "JobList": service.reader.get("/v1/jobs"),
        "PlanDocument": service.reader.post("/v1/plans", json={"job": service.document()}),
        "ProblemDocument": service.runner.post("/v1/jobs", json={"job": service.document(x=1)}),
        "Me": service.reader.get("/v1/me"),
        "TokenList": service.admin.get("/v1/tokens"),
        "NewToken": service.admin.post("/v1/tokens", json={"name": "t", "role": "reader", "days": 1, "team": "a"}),
        "AuditList": service.admin.get("/v1/audit"),
        "CapacityDocument": service.reader.get("/v1/capacity"),
    }
    for name, answer in answers.items():
        validator(document, name).validate(answer.json())
    assert answers["AuditList"].json()["items"], "not an empty one"
