"""Results that go into a file of the user's."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from orchestrator.errors import Conflict, UsageError


def require_free(out: Path, *, force: bool) -> None:
    """UsageError or Conflict if nothing can or may be written there."""
    try:
        folder, there, plain = out.is_dir(), out.exists(), out.is_file()
    except OSError as error:  # e.g. a name that is too long
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None
    if folder:
        raise UsageError(f"{out} is a folder: name a file in it")
    if there and not plain:
        raise UsageError(f"{out} is no plain file, and would be replaced by one: name another")
    if there and not force:
        raise Conflict(f"{out} exists already: give --force to replace it")


def write_file(out: Path, data: bytes) -> None:
    """The file is there whole, or not at all."""
    draft = out.with_name(f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        try:
            draft.write_bytes(data)
            draft.replace(out)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror or error}") from None
