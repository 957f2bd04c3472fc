"""Processes that begin with torch and DeepSpeed in memory: forked from one that has imported both and done nothing.

Each of a test's gloo processes would need seconds of a core to import them. The server of pytest's process is started
by the first test that needs it and ends with pytest.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import torch.multiprocessing as mp

ROOT = Path(__file__).parents[2]
IMPORTED = ["support.plain_loop", "support.engine_worker", "model.engine.zero", "torch._dynamo"]
"""The last by DeepSpeed, for ZeRO-3."""


def in_processes(work: Callable[..., None], world: int, *arguments: object) -> None:
    """`work(rank, *arguments)` in each of `world` new processes, until all have ended; what one raises is raised."""
    _serve()
    mp.start_processes(_as_here, (dict(os.environ), work, arguments), nprocs=world, start_method="forkserver")


def _serve() -> None:
    """Its imports find what ours do; does nothing if it runs already."""
    forkserver.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join((str(ROOT), str(ROOT / "tests")))):
        forkserver.ensure_running()


def _as_here(rank: int, environment: dict[str, str], work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """With the environment of who asked for it: the server has that of its own start."""
    os.environ.clear()
    os.environ.update(environment)
    gc.freeze()  # what is imported stays: to look through it takes a quarter of a second each time
    work(rank, *arguments)
