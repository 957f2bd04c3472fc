"""What our documents are made of, and how they become the schema of a Kubernetes custom resource.

`spec.py` and `status.py` build on `Part`; `structural_schema` turns them into a structural OpenAPI v3 schema
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema):
one type per node, no references, no unions, no closed objects (the API server drops unknown fields itself).
Invariant: what pydantic accepts as a document, the converted schema accepts too.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from model.config import Frozen

Schema = dict[str, Any]


class Part(Frozen):
    """A piece of a document: camelCase outside, snake_case in Python; an absent field is None."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )

    def document(self) -> dict[str, Any]:
        """The JSON form: camelCase names, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


Money = Annotated[str, Field(max_length=19, pattern=r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?$")]
"""An amount as a decimal string, e.g. "5000.00": floating point is no place for money."""

DecimalString = Annotated[str, Field(max_length=30, pattern=r"^-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,9})?$")]
"""A measured number as a decimal string: Kubernetes advises against floating point in resources."""

Currency = Annotated[str, Field(max_length=3, pattern=r"^[A-Z]{3}$")]
"""ISO 4217 code."""

_KEPT = (
    "description", "type", "format", "enum", "default", "pattern", "minLength", "maxLength", "minimum",
    "maximum", "multipleOf", "minItems", "maxItems", "minProperties", "maxProperties", "required", "nullable",
)  # fmt: skip
_DROPPED = {
    "title", "additionalProperties", "patternProperties", "propertyNames", "properties", "items", "anyOf",
    "const", "exclusiveMinimum", "exclusiveMaximum", "$defs", "$ref",
}  # fmt: skip


def structural_schema(model: type[BaseModel]) -> Schema:
    """The structural OpenAPI v3 schema of `model`; ValueError where the model has no such form."""
    document = model.model_json_schema(by_alias=True)
    return _convert(document, document.get("$defs", {}), model.__name__)


def _convert(node: Schema, definitions: Schema, path: str) -> Schema:
    """One node of pydantic's JSON schema; `path` is only for error messages."""
    node = _inline(node, definitions, path)
    unknown = set(node) - set(_KEPT) - _DROPPED
    if unknown:
        raise ValueError(f"{path}: {', '.join(sorted(unknown))} has no place in a structural schema")
    result = {key: node[key] for key in _KEPT if key in node}
    if "const" in node:
        result["enum"] = [node["const"]]
    if "default" in result:
        result["default"] = _without_nulls(result["default"])
        if result["default"] is None:
            del result["default"]
    _exclusive_bounds(node, result)
    if result.get("type") == "integer":
        result["format"] = "int64"
    elif result.get("type") == "number":
        result["format"] = "double"
    if "properties" in node:
        result["properties"] = {
            name: _convert(child, definitions, f"{path}.{name}") for name, child in node["properties"].items()
        }
    elif result.get("type") == "object":
        result["additionalProperties"] = _convert(_map_values(node, path), definitions, f"{path}.*")
    if "items" in node:
        result["items"] = _convert(node["items"], definitions, f"{path}[]")
    if "type" not in result:
        raise ValueError(f"{path}: a structural schema needs one type here")
    return result


def _without_nulls(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A default as a document says it: what is absent is not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    return value


def _inline(node: Schema, definitions: Schema, path: str) -> Schema:
    """Replace a reference or an optional value by what it stands for; the field's own text wins."""
    while "$ref" in node or "anyOf" in node:
        beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
        if "$ref" in node:
            target = definitions[node["$ref"].removeprefix("#/$defs/")]
        else:
            target = _only_option(node["anyOf"], path)
        node = target | beside
    return node


def _only_option(options: list[Schema], path: str) -> Schema:
    """The one form of an optional value; a Decimal (number or string) is a string in a document."""
    real = [option for option in options if option.get("type") != "null"]
    strings = [option for option in real if option.get("type") == "string"]
    if len(real) == 2 and len(strings) == 1 and any(option.get("type") == "number" for option in real):
        return {"maxLength": 40} | strings[0]
    if len(real) != 1:
        raise ValueError(f"{path}: a union of {len(real)} types has no structural form")
    return real[0]


def _exclusive_bounds(node: Schema, result: Schema) -> None:
    """OpenAPI v3.0 has booleans beside `minimum` and `maximum` where JSON Schema has numbers."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in node:
            result[bound] = node[exclusive]
            result[exclusive] = True


def _map_values(node: Schema, path: str) -> Schema:
    """Schema of a map's values; patterns of keys cannot be said, our own validation holds them."""
    values = node.get("additionalProperties")
    if values is None and len(node.get("patternProperties", {})) == 1:
        [values] = node["patternProperties"].values()
    if not isinstance(values, dict):
        raise ValueError(f"{path}: an object needs properties, or values of one type")
    return values
