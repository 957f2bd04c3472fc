"""Files that are replaced as a whole, so that a crash leaves the old or the new one; and what is wrong with one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from model.files import make_durable


def replace_file(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a file whole or not at all; `durable`: it stands even if the machine loses its power now."""
    replace_bytes(path, text.encode(), durable=durable)


def replace_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """The same of bytes."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # of its own: others may write the same file now
    try:
        with _begun(draft) as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        make_durable(path.parent)


def _begun(draft: Path) -> BinaryIO:
    """The folder is nearly always there: a controller writes some ten files for each job that begins."""
    try:
        return draft.open("xb")
    except FileNotFoundError:
        draft.parent.mkdir(parents=True, exist_ok=True)
        return draft.open("xb")


def in_short(error: Exception) -> str:
    """One line of an error that says why a file cannot be read."""
    if isinstance(error, ValidationError):
        first, *others = error.errors(include_url=False)
        path = ".".join(str(part) for part in first["loc"])
        more = f" (and {len(others)} more)" if others else ""
        return f"{path}: {first['msg']}{more}" if path else f"{first['msg']}{more}"
    return " ".join(str(error).split())
