"""Query parameters are those of the route, each once unless it is a list: a name that is mistyped would ask for
something else than was meant, and be answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import get_args, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from orchestrator.api.problems import Fault, Refusal, printable

_SHOWN = 10


async def require_known(request: Request) -> None:
    """Dependency of all routes: Refusal for parameters that this one does not take."""
    if not request.query_params:
        return
    taken = parameters(request.scope["route"])
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


def parameters(route: APIRoute) -> dict[str, bool]:
    """Query parameters that it takes, and whether each is a list: as the OpenAPI document has them, which would take a
    second to be made."""
    return _of(route.dependant)


def _of(dependant: Dependant) -> dict[str, bool]:
    found = {one.alias: _is_list(one.field_info.annotation) for one in dependant.query_params}
    for below in dependant.dependencies:
        found |= _of(below)
    return found


def _is_list(annotation: object) -> bool:
    return any(list in (option, get_origin(option)) for option in (annotation, *get_args(annotation)))
