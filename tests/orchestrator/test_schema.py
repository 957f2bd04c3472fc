from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, Field

from orchestrator.schema import Part, Schema, structural_schema
from orchestrator.spec import JobSpec, TrainingJob
from orchestrator.status import JobStatus

SAMPLES = Path(__file__).parents[2] / "k8s" / "samples"
DOCUMENTS = [TrainingJob, JobSpec, JobStatus]
FORBIDDEN = {
    "$ref", "$defs", "definitions", "anyOf", "oneOf", "allOf", "not", "const", "title", "discriminator",
    "patternProperties", "propertyNames", "dependencies", "uniqueItems", "prefixItems", "examples",
}  # fmt: skip
TYPES = {"object", "array", "string", "integer", "number", "boolean"}


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}.{key}")


def _check(node: Schema) -> None:
    assert not FORBIDDEN & set(node)
    assert node["type"] in TYPES
    assert not ("properties" in node and "additionalProperties" in node)
    assert isinstance(node.get("additionalProperties", {}), dict)
    assert "default" not in node or node["default"] is not None
    if node["type"] == "string":
        assert "maxLength" in node or "enum" in node or node.get("format") == "date-time"
    if node["type"] == "array":
        assert "maxItems" in node
        assert "items" in node
    if node["type"] == "object":
        assert "properties" in node or "maxProperties" in node
    if node["type"] in ("integer", "number") and "enum" not in node:
        assert "minimum" in node
        assert "maximum" in node
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        assert node.get(key, True) is True


@pytest.mark.parametrize("model", DOCUMENTS)
def test_documents_are_structural_and_bounded(model: type[BaseModel]) -> None:
    schema = structural_schema(model)
    for path, node in nodes(schema):
        try:
            _check(node)
        except AssertionError as error:
            raise AssertionError(f"{path}: {node}") from error


@pytest.mark.parametrize("model", DOCUMENTS)
def test_every_field_is_documented(model: type[BaseModel]) -> None:
    bare = [
        f"{path}.{name}"
        for path, node in nodes(structural_schema(model))
        for name, child in node.get("properties", {}).items()
        if not child.get("description", "").endswith((".", ")"))
    ]
    assert bare == []


def test_a_document_is_small_enough_for_kubernetes() -> None:
    assert len(str(structural_schema(TrainingJob))) < 100_000


def _property(schema: Schema, path: str) -> Any:  # noqa: ANN401 - a node
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema


def test_details_survive() -> None:
    schema = structural_schema(JobSpec)
    assert _property(schema, "training.tokens") == {
        "description": "Tokens of the whole run, rounded up to whole optimizer steps.",
        "type": "integer",
        "format": "int64",
        "minimum": 1,
        "maximum": 10**15,
    }
    assert _property(schema, "parallelism.zeroStage")["enum"] == [0, 1, 2, 3]
    assert _property(schema, "training.precision")["enum"] == ["fp32", "bf16", "fp8"]
    clipping = _property(schema, "training.optimizer.gradientClipping")
    assert (clipping["minimum"], clipping["exclusiveMinimum"], clipping["default"]) == (0, True, 1.0)
    assert _property(schema, "training.optimizer")["default"]["weightDecay"] == 0.1
    assert _property(schema, "tracking.tags")["additionalProperties"] == {"type": "string", "maxLength": 500}
    assert _property(schema, "model.overrides")["default"] == {}
    assert schema["required"] == ["model", "data", "training", "compute"]
    assert _property(structural_schema(TrainingJob), "apiVersion")["enum"] == ["fathom.dev/v1alpha1"]


def _json_schema(node: Schema) -> Schema:
    """Back to a closed JSON Schema that jsonschema understands (exclusive bounds are numbers there)."""
    result = {key: value for key, value in node.items() if key not in ("exclusiveMinimum", "exclusiveMaximum")}
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if node.get(exclusive):
            result[exclusive] = node[bound]
    if "properties" in node:
        result["properties"] = {name: _json_schema(child) for name, child in node["properties"].items()}
        result["additionalProperties"] = False
    if "items" in node:
        result["items"] = _json_schema(node["items"])
    return result


VALIDATOR = jsonschema.Draft202012Validator(_json_schema(structural_schema(TrainingJob)))


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_samples_validate(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    VALIDATOR.validate(document)
    VALIDATOR.validate(TrainingJob.model_validate(document).document())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.tokens", "2M"),
        ("training.tokens", 0),
        ("training.tokens", 10**16),
        ("training.precision", "fp4"),
        ("training.optimizer", {"gradientClipping": 0}),
        ("budget.limit", 1.0),
        ("budget.limit", "1e3"),
        ("compute.accelerator", "TPU"),
        ("tracking", {"tags": {"a": 1}}),
        ("data.source", "x" * 2000),
        ("training", None),
    ],
)
def test_bad_documents_do_not_validate(path: str, value: object) -> None:
    document = yaml.safe_load((SAMPLES / "mini.yaml").read_text())
    *parents, last = path.split(".")
    node = document["spec"]
    for name in parents:
        node = node[name]
    node[last] = value
    assert not VALIDATOR.is_valid(document)
    with pytest.raises(ValueError, match=last):
        TrainingJob.model_validate(document)


def test_decimals_are_strings() -> None:
    class Bill(Part):
        amount: Decimal = Field(description="Sum.")

    amount = _property(structural_schema(Bill), "amount")
    assert amount["type"] == "string"
    assert "maxLength" in amount


def test_what_has_no_structural_form_is_refused() -> None:
    class Union(BaseModel):
        value: int | str

    class Anything(BaseModel):
        value: Any

    class Free(BaseModel):
        value: dict[str, Any]

    class Pair(BaseModel):
        value: tuple[int, str]

    for model in (Union, Anything, Free, Pair):
        with pytest.raises(ValueError, match=r"\.value"):
            structural_schema(model)
