"""Bounded reading of task files: local paths or any URL of fsspec. Every refusal names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from model.files import local_path

MAX_LINE_BYTES = 16 * 2**20
MAX_YAML_BYTES = 2**20


@dataclass(frozen=True)
class Row:
    """One document of a JSONL file."""

    where: str
    """`file:line`, for messages and for the table of results."""
    fields: dict[str, Any]


def read_rows(uri: str) -> list[Row]:
    """All documents of a JSONL file; blank lines are no documents. ValueError if there are none."""
    rows = []
    with _opened(uri) as file:
        for number, line in _lines(file, uri):
            if line.strip():
                rows.append(_row(line, f"{uri}:{number}"))
    if not rows:
        raise ValueError(f"{uri} is empty: a task needs at least one line with a JSON object")
    return rows


def read_yaml_text(uri: str) -> str:
    """The text of a task's YAML."""
    with _opened(uri) as file:
        raw = file.read(MAX_YAML_BYTES + 1)
    if len(raw) > MAX_YAML_BYTES:
        raise ValueError(f"{uri} is larger than {MAX_YAML_BYTES} bytes: not the YAML of a task")
    return _text(raw, uri)


@contextmanager
def _opened(uri: str) -> Iterator[IO[bytes]]:
    path = local_path(uri)
    try:
        if path is not None:
            with path.open("rb") as file:
                yield file
        else:
            import fsspec  # late: only remote tasks need it

            with fsspec.open(uri, "rb") as remote:
                yield remote
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no task file {uri}") from None
    except IsADirectoryError:
        raise ValueError(f"{uri} is a folder: name the .jsonl or .yaml files in it") from None


def _lines(file: IO[bytes], uri: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, none of which is read further than the limit."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"{uri}:{number}: the line is longer than {MAX_LINE_BYTES} bytes: no document")
        yield number, line


def _row(line: bytes, where: str) -> Row:
    text = _text(line, where)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {kind_of(value)}, wanted a JSON object")
    return Row(where, value)


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8: byte {raw[error.start]:#04x} at position {error.start}") from None


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    names = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
