"""The merge patch that makes one document of another (RFC 7386). Pure."""

from __future__ import annotations

from typing import Any

from orchestrator.kube.resources import Json


def merge_patch(found: Json, wanted: Json) -> Json:
    """Empty if nothing is to change. Lists are replaced whole; a field of `wanted` that is None counts as absent."""
    patch: Json = {}
    for key in found.keys() - wanted.keys():
        if found[key] is not None:
            patch[key] = None
    for key, value in wanted.items():
        old = found.get(key)
        if value is None:
            if old is not None:
                patch[key] = None
        elif isinstance(value, dict) and isinstance(old, dict):
            if inner := merge_patch(old, value):
                patch[key] = inner
        elif value != old or type(value) is not type(old):
            patch[key] = _without_none(value) if isinstance(value, dict) else value
    return patch


def _without_none(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if not isinstance(value, dict):
        return value
    return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
