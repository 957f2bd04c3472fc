"""Where this installation keeps its things: read from the environment once, at the edge, and handed down.

The command line and the services call `Settings.load()`; nothing else reads the environment.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field

from model.config import Frozen
from orchestrator.errors import UsageError

_KEY_BYTES = 32


class Settings(Frozen):
    """Paths are absolute, so that a process with another working directory means the same files."""

    home: Path
    """Folder of runs, the local MLflow database and the signing key (FATHOM_HOME, default ./runs)."""
    tracking_uri: str
    """MLflow (MLFLOW_TRACKING_URI or FATHOM_TRACKING_URI); by default a SQLite file in `home`."""
    price_file: Path | None
    """The user's own prices (FATHOM_PRICES); without it those that ship with Fathom."""
    hardware_file: Path | None
    """The user's own accelerators (FATHOM_HARDWARE); their rows replace those that ship with Fathom."""
    efficiencies_file: Path | None
    """The user's own constants of the planner (FATHOM_EFFICIENCIES), as `fathom calibrate --write` makes them; their
    rows replace those that ship with Fathom."""
    budgets_file: Path | None = None
    """What teams may spend (FATHOM_BUDGETS); without it only a job's own budget holds it."""
    webhooks_file: Path | None = None
    """Where teams want to hear of their jobs (FATHOM_WEBHOOKS); see docs/webhooks.md."""
    webhook_hosts: tuple[str, ...] = ()
    """The only hosts that a job may name for that (FATHOM_WEBHOOK_HOSTS, with commas between), private ones too;
    without it every public host may be named."""
    signing_key_file: Path
    """Key that checkpoint manifests are signed with (FATHOM_SIGNING_KEY_FILE, default <home>/signing.key)."""
    cpus: int | None = Field(None, ge=1, le=100_000)
    """Cores of this machine that jobs may hold together (FATHOM_CPUS); by default all."""

    @classmethod
    def load(cls, env: Mapping[str, str] | None = None) -> Self:
        """Settings from `env` (the process environment by default); an empty variable counts as absent."""
        values = os.environ if env is None else env

        def path(name: str) -> Path | None:
            return _absolute(values[name]) if values.get(name) else None

        home = path("FATHOM_HOME") or _absolute("runs")
        tracking = values.get("MLFLOW_TRACKING_URI") or values.get("FATHOM_TRACKING_URI")
        return cls(
            home=home,
            tracking_uri=tracking or f"sqlite:///{home / 'mlflow.db'}",
            price_file=path("FATHOM_PRICES"),
            hardware_file=path("FATHOM_HARDWARE"),
            efficiencies_file=path("FATHOM_EFFICIENCIES"),
            budgets_file=path("FATHOM_BUDGETS"),
            webhooks_file=path("FATHOM_WEBHOOKS"),
            webhook_hosts=_listed(values.get("FATHOM_WEBHOOK_HOSTS", "")),
            signing_key_file=path("FATHOM_SIGNING_KEY_FILE") or home / "signing.key",
            cpus=_cores(values.get("FATHOM_CPUS", "")),
        )

    def signing_key(self) -> bytes:
        """The signing key; made on first use (mode 0600). UsageError if the file holds no usable key."""
        file = self.signing_key_file
        if not file.exists():
            _create_key(file)
        key = file.read_bytes()
        if len(key) < _KEY_BYTES:
            raise UsageError(
                f"{file} holds {len(key)} bytes, a signing key needs at least {_KEY_BYTES}: put the right "
                "key there, or delete the file to get a new one (which refuses checkpoints of the old)"
            )
        return key


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def _absolute(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _cores(text: str) -> int | None:
    if not text.strip():
        return None
    if not text.strip().isdecimal() or not 1 <= int(text) <= 100_000:
        raise UsageError(
            f"FATHOM_CPUS is {text!r}: give the number of cores that jobs may hold together, or leave it out"
        )
    return int(text)


def _create_key(file: Path) -> None:
    """Write a key beside the target and link it there: nobody ever reads half a key, the first one wins."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(_KEY_BYTES))
        try:
            os.link(draft, file)  # exclusive: fails where another process was first
        except FileExistsError:
            return
    finally:
        draft.unlink()
