"""values.schema.json: what Helm holds values against before anything is rendered. Pure.

Pydantic's own schema, flattened: no references and no choices, so that an error names the value's path and nothing of
ours. Invariant: what the models accept, this
accepts; what it accepts is refused by the models only for what takes more than one field to see.
"""

from __future__ import annotations

import json
from typing import Any

from orchestrator.chart.values import DERIVED, ChartValues
from orchestrator.schema import Schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_AMOUNT = r"^[0-9]{1,18}(\.[0-9]{1,12})?$"


def values_schema() -> Schema:
    """For helm/fathom/values.schema.json."""
    document = ChartValues.model_json_schema(by_alias=True)
    flat = _flat(document, document["$defs"], "values")
    for path in DERIVED:
        _remove(flat, path.split("."))
    url = flat["properties"]["cluster"]["properties"]["controller"]["properties"]["url"]
    del url["default"]
    url["description"] += " Absent: at the service of this release."
    flat["properties"]["global"] = {"type": "object", "description": "Of the chart that has this one as a part."}
    return {"$schema": DIALECT, "title": "Values of the chart fathom"} | flat


def text() -> str:
    """As it stands in the chart."""
    return json.dumps(values_schema(), indent=1, ensure_ascii=False) + "\n"


def _remove(node: Schema, names: list[str]) -> None:
    for name in names[:-1]:
        node = node["properties"][name]
    del node["properties"][names[-1]]


def _flat(node: Schema, definitions: Schema, path: str) -> Schema:
    """One node; `path` is only for error messages."""
    absent = False
    while "$ref" in node or "anyOf" in node:
        absent = absent or {"type": "null"} in node.get("anyOf", ())
        beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
        if "$ref" in node:
            node = definitions[node["$ref"].removeprefix("#/$defs/")] | beside
        else:
            node = _only(node["anyOf"], path) | beside
    kept = {key: value for key, value in node.items() if key not in ("title", "$defs", "default")}
    default = _given(node.get("default"))
    if "properties" in kept:  # the default of a group is that of its fields
        told = {key: {"default": value} for key, value in (default or {}).items()}
        kept["properties"] = {
            key: _flat(child | told.get(key, {}), definitions, f"{path}.{key}")
            for key, child in kept["properties"].items()
        }
    elif default is not None:
        kept["default"] = default
    if "patternProperties" in kept:
        patterns = kept["patternProperties"].items()
        kept["patternProperties"] = {key: _flat(child, definitions, f"{path}.*") for key, child in patterns}
        kept["additionalProperties"] = False
    elif isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = _flat(kept["additionalProperties"], definitions, f"{path}.*")
    if "items" in kept:
        kept["items"] = _flat(kept["items"], definitions, f"{path}[]")
    if "description" in kept:
        kept["description"] = " ".join(kept["description"].split())
    return _or_null(kept) if absent else kept


def _or_null(node: Schema) -> Schema:
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    choices = {"enum": [*node["enum"], None]} if "enum" in node else {}
    return node | {"type": [*kinds, "null"]} | choices


def _only(options: list[Schema], path: str) -> Schema:
    """The one form of a value; a Decimal is a number or text."""
    real = [option for option in options if option.get("type") != "null"]
    if [one.get("type") for one in real] == ["number", "string"]:
        return real[0] | {"type": ["number", "string"], "pattern": _AMOUNT}
    if len(real) != 1:
        raise ValueError(f"{path}: a union of {len(real)} types has no form here")
    return real[0]


def _given(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A default as a document says it: what is absent is not there."""
    if isinstance(value, dict):
        return {key: _given(child) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [_given(child) for child in value]
    return value
