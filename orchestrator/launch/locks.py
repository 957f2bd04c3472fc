"""Waiting for a lock on a file, which falls when its last holder closes it, also by a crash."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAUSE = 0.05


def take(descriptor: int, *, patience: float = 0.0, shared: bool = False, pause: float = _PAUSE) -> bool:
    """Whether the lock is ours now, after so many seconds at most."""
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, kind)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(pause)


@contextmanager
def locked(path: Path, *, patience: float = 0.0, pause: float = _PAUSE) -> Iterator[bool]:
    """Whether it is ours, until the block ends."""
    with path.open("a") as file:
        yield take(file.fileno(), patience=patience, pause=pause)


def is_locked(path: Path) -> bool:
    """Whether somebody holds it, other than by looking."""
    try:
        with path.open("r") as file:
            return not take(file.fileno(), shared=True)
    except FileNotFoundError:
        return False
