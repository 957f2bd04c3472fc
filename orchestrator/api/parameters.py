"""Query parameters are those of the route, each once unless it is a list: a name that is mistyped would ask for
something else than was meant, and be answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from fastapi import FastAPI, Request

from orchestrator.api.problems import Fault, Refusal, printable

_SHOWN = 10


async def require_known(request: Request) -> None:
    """Dependency of all routes: Refusal for parameters that this one does not take."""
    if not request.query_params:
        return
    taken = _parameters(request.app, request.method, request.scope["route"].path)
    if faults := wrong(request.query_params.multi_items(), taken):
        detail = "; ".join(f"{fault.parameter}: {fault.detail}" for fault in faults)
        raise Refusal("invalid-request", detail, errors=faults)


def wrong(given: Sequence[tuple[str, str]], taken: dict[str, bool]) -> list[Fault]:
    """What is wrong with the parameters of a request; `taken`: those of the route, and whether each is a list."""
    faults = []
    for name, times in list(Counter(name for name, _ in given).items())[:_SHOWN]:
        if name not in taken:
            near = get_close_matches(name, taken, n=1)
            other = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(taken)) or 'none'}"
            faults.append(Fault(pointer="", parameter=f"query.{printable(name, 80)}", detail=f"unknown: {other}"))
        elif times > 1 and not taken[name]:
            faults.append(Fault(pointer="", parameter=f"query.{name}", detail=f"given {times} times: give it once"))
    return faults


@lru_cache(maxsize=1024)
def _parameters(app: FastAPI, method: str, path: str) -> dict[str, bool]:
    """As the OpenAPI document has them."""
    operation: dict[str, Any] = app.openapi()["paths"].get(path, {}).get(method.lower(), {})
    query = [one for one in operation.get("parameters", []) if one["in"] == "query"]
    return {one["name"]: _is_list(one["schema"]) for one in query}


def _is_list(schema: dict[str, Any]) -> bool:
    return any(option.get("type") == "array" for option in (schema, *schema.get("anyOf", [])))
