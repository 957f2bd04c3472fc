"""How operations follow each other, for the OpenAPI document: what was made can be read, changed and ended. Pure."""

from __future__ import annotations

from typing import Any

_JOB = {"namespace": "$response.body#/metadata/namespace", "name": "$response.body#/metadata/name"}
_MADE = {("createJob", "201"): _JOB, ("createToken", "201"): {"name": "$response.body#/name"}}
"""Answers that name what was made, and where its path parameters stand in them."""


def add_links(document: dict[str, Any]) -> None:
    """From each of those answers to all operations on what it names."""
    operations = [one for path in document["paths"].values() for one in path.values()]
    for operation in operations:
        for status, answer in operation["responses"].items():
            if (parameters := _MADE.get((operation["operationId"], status))) is not None:
                answer["links"] = {
                    other["operationId"]: {"operationId": other["operationId"], "parameters": parameters}
                    for other in operations
                    if _path_parameters(other) == set(parameters)
                }


def _path_parameters(operation: dict[str, Any]) -> set[str]:
    return {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
