"""`fathom serve` whose drivers train nothing, in a process that can be told to die: `python -m support.serving ...`.

TEST_DIE_AT names the place where it kills itself, the first time that it gets there; see `_PLACES`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from orchestrator.cli.main import main
from orchestrator.controller import keeping
from orchestrator.launch import local, removing
from orchestrator.launch.local import LocalLauncher
from support.stand_in import COMMAND


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _prepared() -> None:
    """The attempt is written down, and nothing was done to start its driver."""
    local.start = _die  # type: ignore[assignment]


def _locked() -> None:
    """The driver's lock is taken for it, and there is no driver."""
    local.subprocess = SimpleNamespace(Popen=_die, STDOUT=None, DEVNULL=None)  # type: ignore[assignment]


def _spawned() -> None:
    """There is a driver, and its name is not on the lock."""
    name: Callable[..., None] = local._name
    local._name = lambda fd, pid, attempt: _die() if pid != os.getpid() else name(fd, pid, attempt)


def _started() -> None:
    """There is a driver with all that belongs to it, and the store knows nothing of it."""
    keep: Any = keeping.Keeper.keep
    keeping.Keeper.keep = lambda self, job, one: _die() if one.alive else keep(self, job, one)  # type: ignore[method-assign]


def _ordered() -> None:
    """The driver was told to stop, and nobody knows why."""
    order: Callable[..., None] = local.order_stop
    local.order_stop = lambda *told: (order(*told), _die())  # type: ignore[assignment]


def _removing() -> None:
    """A run's folder is out of the way, and still there."""
    removing.shutil = SimpleNamespace(rmtree=_die)  # type: ignore[assignment]


def _removed() -> None:
    """A run's folder is gone, and the store has the job still."""
    remove: Any = LocalLauncher.remove
    LocalLauncher.remove = lambda self, folder: (remove(self, folder), _die())  # type: ignore[method-assign, assignment, return-value]


_PLACES = (_prepared, _locked, _spawned, _started, _ordered, _removing, _removed)
PLACES = tuple(place.__name__.strip("_") for place in _PLACES)


if __name__ == "__main__":
    for place in _PLACES:
        if place.__name__.strip("_") == os.environ.get("TEST_DIE_AT"):
            place()
    local.LocalLauncher = partial(LocalLauncher, command=COMMAND)  # type: ignore[misc, assignment]
    sys.argv = ["fathom", "serve", *sys.argv[1:]]
    main()
