"""Where a team wants to hear of its jobs, from the operator's own file (FATHOM_WEBHOOKS): rows of team, url and secret.

Invariant: no error names a secret or an address, which may hold one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from model.config import Frozen
from orchestrator.controller.notes import Kind
from orchestrator.errors import UsageError
from orchestrator.plan.files import read_yaml

_HINT = "check FATHOM_WEBHOOKS"


class TeamHook(Frozen):
    """One row of the file."""

    team: str = Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    """A namespace, as in `metadata.namespace`."""
    url: str = Field(max_length=2048, pattern=r"^https?://[^\s@]+$", repr=False)
    """The operator's word: any host, also a private one."""
    secret: str = Field(max_length=200, pattern=r"^whsec_[A-Za-z0-9+/=]+$", repr=False)
    """"whsec_" and 24 to 64 random bytes in base64: what is posted is signed with it, also by a job's own webhook."""
    when: tuple[Kind, ...] = Field(("failed", "budget-warning", "ended"), min_length=1)

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, value: str) -> str:
        try:
            size = len(_key(value))
        except binascii.Error:
            raise ValueError("what follows whsec_ must be base64") from None
        if not 24 <= size <= 64:
            raise ValueError(f"must hold 24 to 64 bytes, holds {size}")
        return value


def read_hooks(path: Path) -> dict[str, TeamHook]:
    """By team; UsageError says which row is wrong, and what is wrong with it."""
    rows = read_yaml(path, "webhooks", _HINT)
    if not isinstance(rows, list):
        raise UsageError(f"webhooks {path}: must be a list of rows, got {type(rows).__name__}")
    found: dict[str, TeamHook] = {}
    for number, row in enumerate(rows, start=1):
        one = _row(f"webhooks {path}: row {number}", row)
        if one.team in found:
            raise UsageError(f"webhooks {path}: row {number}: a second webhook for {one.team}; keep one")
        found[one.team] = one
    return found


def signature(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """By Standard Webhooks 1.0: `v1,` and the base64 of HMAC-SHA256 over id.timestamp.body."""
    digest = hmac.new(_key(secret), f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


def _row(where: str, row: object) -> TeamHook:
    """Pydantic's own message would name the value."""
    if not isinstance(row, dict):
        raise UsageError(f"{where}: must be team, url and secret, got {type(row).__name__}")
    try:
        return TeamHook.model_validate(row)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise UsageError(
            "\n".join(f"{where}: {one['loc'][0] if one['loc'] else 'row'}: {one['msg']}" for one in found)
        ) from None
