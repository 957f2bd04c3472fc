"""What MLflow shall show of one TrainingJob, as plain values; imports no mlflow.

Made by `controller.wanted` from the files of a run's folder, and from nothing else: whoever reads the same files
wants the same. `tracking.mlflow` brings a server to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.cost.ledger import Ledger
from orchestrator.cost.meter import Spent
from orchestrator.launch.events import Event

Outcome = Literal["succeeded", "stopped", "failed"]


@dataclass(frozen=True)
class DatasetRef:
    """Data of a run: a name, a digest of its content, where it lies, and what it is for.

    MLflow keeps one input for each (name, digest) of a run: what is to be seen twice needs two names.
    """

    name: str
    digest: str
    source: str
    context: str = "training"


@dataclass(frozen=True)
class Attempt:
    """One attempt; times are unix seconds. Without an outcome it still goes on."""

    number: int
    params: Mapping[str, str]
    flops_per_token: float
    started: float
    outcome: Outcome | None = None
    ended: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Desired:
    """The whole job. Its attempts are in order, and there is at least one."""

    name: str
    namespace: str
    uid: str
    experiment: str
    currency: str
    attempts: tuple[Attempt, ...]
    events: Sequence[Event]
    spent_at: Callable[[float], Spent]
    """Unix time to money spent so far; must depend on nothing but the time."""
    artifacts: Path
    """A folder; all its files are shown."""
    tags: Mapping[str, str]
    """The user's."""
    datasets: tuple[DatasetRef, ...] = ()
    outcome: Outcome | None = None
    """None while the job goes on."""
    budget: str = ""
    """The limit that is in force, e.g. `20.00 USD`."""
    ledger: Ledger | None = None
    """At the end of an attempt that is the last for now."""

    def __post_init__(self) -> None:
        if "'" in self.uid:
            raise ValueError(f"a job's uid has no quotes, got {self.uid!r}")
        if not self.attempts:
            raise ValueError("a job without an attempt has nothing to show")
