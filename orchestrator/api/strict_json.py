"""Bodies read as JSON and nothing else: Python's own reader takes NaN, doubled fields and half characters. Pure."""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 20
MAX_VALUES = 10_000
"""As in a job file."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class NotJson(Exception):
    """What is wrong with the body, in words."""


def read(body: bytes, values: int = MAX_VALUES) -> Any:  # noqa: ANN401 - any JSON value
    """The value, of so many parts at most; NotJson says what is wrong."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJson(f"the body is not UTF-8 text (byte {error.start})") from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    except RecursionError:
        raise NotJson(f"the body is nested more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except ValueError as error:  # numbers that Python refuses, e.g. of 5000 digits
        raise NotJson(f"the body holds a number that cannot be read: {error}") from None
    _require_small(value, values)
    if _HALF.search(text):
        _require_whole(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NotJson(f"field {twice[:80]!r} is given twice")
    return found


def _constant(name: str) -> Any:  # noqa: ANN401 - never returns
    raise NotJson(f"{name} is no JSON: numbers are finite")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(f"the number {text[:40]} is too large")
    return value


def _require_small(value: Any, most: int) -> None:  # noqa: ANN401 - any JSON value
    level, depth, count = [value], 0, 0
    while level:
        count += len(level)
        if count > most:
            raise NotJson(f"the body holds more than {most} values")
        containers = [one for one in level if isinstance(one, dict | list)]
        depth += bool(containers)
        if depth > MAX_DEPTH:
            raise NotJson(f"the body is nested more than {MAX_DEPTH} levels deep")
        level = [child for one in containers for child in (one.values() if isinstance(one, dict) else one)]


def _require_whole(value: Any) -> None:  # noqa: ANN401 - any JSON value
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise NotJson("the body holds half a character (a lone surrogate): write the whole one") from None
