"""Events of a job as a test tells them."""

from __future__ import annotations

import itertools

from pydantic import TypeAdapter

from orchestrator.launch.events import Event

EVENT: TypeAdapter[Event] = TypeAdapter(Event)


class Story:
    """Events of a job, written down in the order in which they happen."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._seq = itertools.count(1)

    def add(self, kind: str, time: float, attempt: int = 1, incarnation: str = "a", **fields: object) -> None:
        self.events.append(
            EVENT.validate_python(
                {"kind": kind, "time": time, "job": "u", "attempt": attempt, "incarnation": incarnation}
                | {"seq": next(self._seq)}
                | fields
            )
        )

    def started(self, time: float, step: int, attempt: int = 1, incarnation: str = "a") -> None:
        self.add("started", time, attempt, incarnation, step=step, tokens=step * 100, world_size=2)

    def progress(self, time: float, step: int, attempt: int = 1, incarnation: str = "a") -> None:
        self.add("progress", time, attempt, incarnation, step=step, tokens=step * 100, metrics={})

    def saved(self, time: float, step: int, seconds: float, attempt: int = 1) -> None:
        self.add("checkpoint-committed", time, attempt, step=step, uri="x", size_bytes=1, seconds=seconds)

    def ended(self, time: float, outcome: str, attempt: int = 1, **fields: object) -> None:
        self.add("ended", time, attempt, outcome=outcome, **fields)
