"""The structural schema of a TrainingJob as Kubernetes wants it: rules in place, defaults where nothing decides them.

Invariant: a document that pydantic accepts is accepted here too, and means the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.crd.fixed import fixed_rules
from orchestrator.crd.rules import ROOT, RULES, Rule
from orchestrator.schema import Schema, structural_schema
from orchestrator.spec import TrainingJob

LIST_KEYS = {"status.conditions": ["type"], "status.attempts": ["number"]}
"""Lists whose entries have an identity, so that each can be applied by itself; all others are replaced as a whole."""


def resource_schema() -> Schema:
    """openAPIV3Schema of the version."""
    root = structural_schema(TrainingJob)
    spec, status = (_tidy(root["properties"][name], name) for name in ("spec", "status"))
    for name, node in (("spec", spec), ("status", status)):
        for path, rules in RULES.items():
            if path.partition(".")[0] == name:
                child(node, path.partition(".")[2])["x-kubernetes-validations"] = [one.document() for one in rules]
    return {
        "description": root["description"],
        "type": "object",
        "required": ["metadata", "spec"],
        "properties": {
            "apiVersion": {"description": "fathom.dev/v1alpha1: the version of this form.", "type": "string"},
            "kind": {"description": "TrainingJob: what this document is.", "type": "string"},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": [one.document() for one in root_rules(spec)],
    }


def root_rules(spec: Schema) -> tuple[Rule, ...]:
    """What only the whole object can say; `spec`: the schema of its spec."""
    return (*ROOT, *fixed_rules(spec))


def child(node: Schema, path: str) -> Schema:
    """The schema at a dotted path below `node`; `[]` stands for the items of a list."""
    for name in path.split(".") if path else ():
        node = node["properties"][name.removesuffix("[]")]
        if name.endswith("[]"):
            node = node["items"]
    return node


def leaves(node: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Whatever holds a value, with its dotted path; a list or a map is one value."""
    for name, one in node.get("properties", {}).items():
        yield from leaves(one, f"{path}.{name}")
    if "properties" not in node:
        yield path, node


def _tidy(node: Schema, path: str) -> Schema:
    """A part as the API server keeps it best."""
    tidy: dict[str, Any] = {key: value for key, value in node.items() if key != "x-kubernetes-validations"}
    if "description" in tidy:
        tidy["description"] = " ".join(tidy["description"].split())
    if isinstance(tidy.get("default"), dict):
        tidy["default"] = {}  # the fields of a group bring their own
    if "properties" in node:
        tidy["properties"] = {name: _tidy(one, f"{path}.{name}") for name, one in node["properties"].items()}
    if "items" in node:
        tidy["items"] = _tidy(node["items"], f"{path}[]")
        keys = LIST_KEYS.get(path)
        tidy["x-kubernetes-list-type"] = "map" if keys else "atomic"
        if keys:
            tidy["x-kubernetes-list-map-keys"] = keys
    return tidy
