"""Doing what only some ranks can do so that all ranks know how it went: no rank waits for one that has failed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def together(action: Callable[[], T]) -> list[T]:
    """Run `action` on every rank; -> the results of all ranks. If it raised on any, every rank raises that error."""
    outcome: tuple[T | None, Exception | None]
    try:
        outcome = (action(), None)
        pickle.dumps(outcome)  # what cannot travel must fail before the others wait for it
    except Exception as error:  # noqa: BLE001 - it is raised again, everywhere
        outcome = (None, _portable(error))
    outcomes: list[tuple[T | None, Exception | None]] = [(None, None)] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome)
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [result for result, _ in outcomes]  # type: ignore[misc]


def on_first(action: Callable[[], T]) -> T:
    """Run `action` on rank 0; every rank gets its result, or raises its error."""
    return together(lambda: action() if dist.get_rank() == 0 else None)[0]  # type: ignore[return-value]


def _portable(error: Exception) -> Exception:
    """The error itself if it survives pickling, else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - any class may fail in any way here
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
