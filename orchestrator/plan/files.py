"""Reads the planner's data files: lists of rows, packaged or the user's own. Imports no torch.

Invariant: whatever a file holds, the error is a UsageError that names file, row and field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.errors import UsageError

MAX_FILE_BYTES = 1_000_000
Row = TypeVar("Row", bound=BaseModel)


def read_rows(path: Path, kind: str, hint: str, row_type: type[Row]) -> list[Row]:
    """All rows; `kind` names the file in errors, `hint` what to check if it cannot be read."""
    data = read_yaml(path, kind, hint)
    if not isinstance(data, list):
        raise UsageError(f"{kind} {path}: must be a list of rows, got {type(data).__name__}")
    return [_row(path, kind, number, row, row_type) for number, row in enumerate(data, start=1)]


def read_yaml(path: Path, kind: str, hint: str) -> Any:  # noqa: ANN401 - what YAML holds
    """The file's contents; UsageError if it is too large, unreadable or not YAML."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{kind} {path}: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES}")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{kind} {path}: {error.strerror or error}; {hint}") from error
    # ValueError: PyYAML lets that of a date such as 2026-13-45 through; text that is not UTF-8 is one, too.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{kind} {path}: not valid YAML: {error}") from error


def _row(path: Path, kind: str, number: int, row: object, row_type: type[Row]) -> Row:
    try:
        return row_type.model_validate(row)
    except ValidationError as error:
        problems = "\n".join(
            f"{kind} {path}: row {number}: {'.'.join(map(str, found['loc'])) or 'row'}: {found['msg']}"
            for found in error.errors(include_url=False)
        )
        raise UsageError(problems) from error
