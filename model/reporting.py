"""What a training run tells the outside, and what it may be told: the only seam between `model` and its caller.

`model` never imports `orchestrator`; whoever starts a run hands in a `Reporter`. Only rank 0 calls it, but for
`failed` and `has_failed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Stop:
    """The order to write a final checkpoint and end."""

    deadline: float
    """Unix time by which the process must have ended."""
    reason: str = ""


class Reporter(Protocol):
    """Handed in by the caller; must be picklable, because it travels to the worker of rank 0."""

    def started(self, *, step: int, tokens: int, world_size: int, resumed_from: str | None) -> None:
        """Workers are up and the model is loaded; training goes on from `step` (0 for a fresh start)."""

    def progress(self, *, step: int, tokens: int, metrics: dict[str, float]) -> None:
        """An optimizer step is done; `metrics` by the names in `model.metrics`."""

    def checkpoint_committed(self, *, step: int, uri: str, size_bytes: int, seconds: float) -> None:
        """A checkpoint's manifest has been written."""

    def warning(self, message: str) -> None:
        """Something that a person should know and that does not end the run."""

    def artifact(self, name: str, data: bytes) -> None:
        """A file to keep beside the run, e.g. `expert_load.json` or `sample.txt`."""

    def stop_requested(self) -> Stop | None:
        """Called before every step: the order to stop, if there is one."""

    def failed(self, kind: str, message: str) -> None:
        """From any rank: an error that trying again cannot cure; `kind` is a failure class of the events."""

    def has_failed(self) -> bool:
        """Whether `failed` was called in this incarnation: restarted workers then end at once."""
