"""What MLflow last said to a run that it did not take: `tracking-trouble.json` in the run's folder, while that is so.

Written by whoever sends, with `tracking.lock` held, and read by whoever shows the run, in another process: so it
outlives both. Invariant: once all is sent it is gone, before the run counts as settled.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from orchestrator.launch.files import replace_file

_OBJECT = re.compile(r"<\S+ object at 0x[0-9a-f]+>:? ?")
"""Says nothing to people, and is another one each time."""
_LONGEST = 700


class Trouble(BaseModel):
    """Of one run with one MLflow."""

    target: str
    """That MLflow, without credentials."""
    since: float = Field(allow_inf_nan=False)
    """Unix time at which it was first met."""
    why: str = Field(max_length=_LONGEST)
    """One line that names the server, without credentials."""


def load(path: Path, target: str) -> Trouble | None:
    """None where there is none, it cannot be read, or it is about another MLflow."""
    try:
        found = Trouble.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.target == target else None


def note(path: Path, target: str, why: str, now: float) -> None:
    """Met (again) now; nothing is written if the same stands there. A disk that is full hides it: it is no reason to
    stop."""
    known, words = load(path, target), _OBJECT.sub("", why)[:_LONGEST]
    if known is not None and known.why == words:
        return
    found = Trouble(target=target, since=now if known is None else known.since, why=words)
    with suppress(OSError):
        replace_file(path, found.model_dump_json())


def forget(path: Path) -> None:
    """MLflow has taken what there was."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
