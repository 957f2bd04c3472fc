"""The processes of a session: who lives, and their end.

Ray gives workers process groups of their own, and its agents outlive a killed driver: what they share is the session.
"""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

MARK = "FATHOM_RUN_FOLDER"
"""In the environment of a driver, and so of everything that it starts."""
_TRIES, _PAUSE = 20, 0.05
"""How often, and seconds in between."""


def session(number: int) -> list[psutil.Process]:
    """Living processes of a session."""
    return [process for process in psutil.process_iter() if _lives_in(process, number)]


def _lives_in(process: psutil.Process, number: int) -> bool:
    try:
        return os.getsid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
        return False


def kill_session(number: int, *, spare: int | None = None) -> None:
    """End all processes of a session at once, but for the one to spare."""
    for _ in range(_TRIES):  # again, because what is not dead yet may start more
        found = [process for process in session(number) if process.pid != spare]
        if not found:
            return
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=_PAUSE)
