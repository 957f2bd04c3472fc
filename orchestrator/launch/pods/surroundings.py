"""What a pod is told by its environment; `rayjob.pods` sets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.errors import UsageError
from orchestrator.launch.rayjob import agreed


@dataclass(frozen=True)
class Surroundings:
    """Of a driver."""

    run: Path
    """Folder of the run in this pod, and in each pod of its workers (FATHOM_HOME)."""
    incarnation: str
    """The RayCluster (FATHOM_INCARNATION)."""
    controller: str
    """Its address (FATHOM_CONTROLLER_URL)."""
    token_file: Path
    """With what this pod is known to it, read anew each time (FATHOM_TOKEN_FILE)."""
    authority: Path | None
    """By which the controller is known (FATHOM_CONTROLLER_CA); None: by those that the image trusts."""
    stop_seconds: float
    """From SIGTERM on, for a last checkpoint (FATHOM_STOP_SECONDS)."""
    node: str | None
    """FATHOM_NODE."""

    @classmethod
    def load(cls, env: Mapping[str, str]) -> Self:
        """UsageError for what is absent, or no number."""

        def value(name: str) -> str:
            if not env.get(name):
                raise UsageError(f"{name} is not set: --cluster is for pods that Fathom has rendered")
            return env[name]

        seconds = value("FATHOM_STOP_SECONDS")
        if not seconds.isdecimal():
            raise UsageError(f"FATHOM_STOP_SECONDS is {seconds!r}: give whole seconds")
        authority = env.get("FATHOM_CONTROLLER_CA")
        return cls(
            run=Path(env.get("FATHOM_HOME") or agreed.RUN),
            incarnation=value("FATHOM_INCARNATION"),
            controller=value("FATHOM_CONTROLLER_URL"),
            token_file=Path(value("FATHOM_TOKEN_FILE")),
            authority=Path(authority) if authority else None,
            stop_seconds=float(seconds),
            node=env.get("FATHOM_NODE") or None,
        )
