"""What a training run tells the outside, and what it may be told: the only seam between `model` and its caller.

`model` never imports `orchestrator`; whoever starts a run hands in a `Reporter`. Only rank 0 calls it, but for
`failed`, `has_failed` and `stack_file`. Rank 0 may call it from another thread than the main one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from model.anomaly import Incident


@dataclass(frozen=True)
class Stop:
    """The order to write a final checkpoint and end."""

    deadline: float
    """Unix time by which the process must have ended."""
    reason: str = ""


class Reporter(Protocol):
    """Handed in by the caller; must be picklable, because it travels to the worker of rank 0."""

    def started(self, *, step: int, tokens: int, world_size: int, resumed_from: str | None, arithmetic: str) -> None:
        """Workers are up and the model is loaded; training goes on from `step` (0 for a fresh start). `arithmetic` says
        what matrix products run on, and why."""

    def progress(self, *, step: int, tokens: int, metrics: dict[str, float], samples: int) -> None:
        """An optimizer step is done; `metrics` by the names in `model.metrics`, `samples` by
        `model.data.sample_checksum` over all sequences of the step: equal sequences, equal number."""

    def checkpoint_committed(self, *, step: int, uri: str, size_bytes: int, seconds: float) -> None:
        """A checkpoint's manifest has been written."""

    def warning(self, message: str) -> None:
        """Something that a person should know and that does not end the run."""

    def anomaly(self, incident: Incident, message: str) -> None:
        """A step's loss is not finite or far above those before it; `message` says so, and what happens now."""

    def artifact(self, name: str, data: bytes) -> None:
        """A file to keep beside the run, e.g. `expert_load.json` or `sample.txt`."""

    def stop_requested(self) -> Stop | None:
        """Called before every step: the order to stop, if there is one."""

    def failed(self, kind: str, message: str) -> None:
        """From any rank: an error that trying again cannot cure; `kind` is a failure class of the events."""

    def has_failed(self) -> bool:
        """Whether `failed` was called in this incarnation: restarted workers then end at once."""

    def stack_file(self, rank: int) -> Path | None:
        """Where this rank writes its stacks should it stall; None where there is no such place."""
