"""Reads the planner's data files: lists of rows, packaged or the user's own. Imports no torch.

Invariant: whatever a file holds, the error is a UsageError that names file, row and field.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from model.files import read_file
from orchestrator.errors import UsageError

MAX_FILE_BYTES = 1_000_000
Row = TypeVar("Row", bound=BaseModel)


def read_rows(path: Path, kind: str, hint: str, row_type: type[Row]) -> list[Row]:
    """All rows; `kind` names the file in errors, `hint` what to check if it cannot be read. The rows themselves are
    shared: `row_type` is frozen."""
    return list(_rows(read_text(path, kind, hint), path, kind, row_type))


@lru_cache(maxsize=16)  # a controller asks for the same few files again with each job, and parsing one takes 25 ms
def _rows(text: str, path: Path, kind: str, row_type: type[Row]) -> tuple[Row, ...]:
    assert row_type.model_config.get("frozen"), f"rows of {row_type.__name__} are shared, and could be changed"
    data = _parsed(text, path, kind)
    if not isinstance(data, list):
        raise UsageError(f"{kind} {path}: must be a list of rows, got {type(data).__name__}")
    return tuple(_row(path, kind, number, row, row_type) for number, row in enumerate(data, start=1))


def read_yaml(path: Path, kind: str, hint: str) -> Any:  # noqa: ANN401 - what YAML holds
    """The file's contents; UsageError if it is too large, no file, unreadable or not YAML."""
    return _parsed(read_text(path, kind, hint), path, kind)


def _parsed(text: str, path: Path, kind: str) -> Any:  # noqa: ANN401 - what YAML holds
    try:
        return yaml.load(text, _Loader)
    # ValueError: numbers of thousands of digits
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{kind} {path}: not valid YAML: {error}") from error


def read_text(path: Path, kind: str, hint: str) -> str:
    """Of a file of bounded size; UsageError for what is none, such as a pipe, which might never end."""
    try:
        return read_file(path, MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{kind} {path}: not UTF-8 text (byte {error.start}); {hint}") from error
    except ValueError as error:
        raise UsageError(f"{kind} {error}; {hint}") from error
    except OSError as error:
        raise UsageError(f"{kind} {path}: {error.strerror or 'No such file or directory'}; {hint}") from error


class _Loader(yaml.SafeLoader):
    """The Python one: libyaml crashes on a million brackets. A field stands once in a row; `<<` is not known, since
    merges of merges grow without bounds; dates stay text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_LEFT_OUT = {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _LEFT_OUT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _row(path: Path, kind: str, number: int, row: object, row_type: type[Row]) -> Row:
    where = f"{kind} {path}: row {number}"
    if not isinstance(row, dict):
        raise UsageError(f"{where}: must be fields with values, got {type(row).__name__}")
    for field, value in row.items():
        if isinstance(value, bool):  # pydantic would take it for 1 or 0
            raise UsageError(f"{where}: {field}: must not be {str(value).lower()}; a text that reads so needs quotes")
    try:
        return row_type.model_validate(row)
    except ValidationError as error:
        problems = "\n".join(
            f"{where}: {'.'.join(map(str, found['loc'])) or 'row'}: {found['msg']}"
            for found in error.errors(include_url=False)
        )
        raise UsageError(problems) from error
