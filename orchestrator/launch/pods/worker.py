"""What each training process of a pod runs, around `model.train`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.launch.pods.reporter import PodReporter
from orchestrator.launch.pods.shortage import ROOT, shortage
from orchestrator.launch.rayjob import agreed

if TYPE_CHECKING:
    from model.train import Assignment

PIDS = Path(agreed.WORKER_PIDS).name
"""Below the run folder; the pre-stop hook of the pod reads it."""


def work(config: dict[str, Assignment]) -> None:
    """Entry point for Ray Train."""
    from model.train import train_worker  # here, because the driver imports this module, too

    reporter = config["assignment"].reporter
    assert isinstance(reporter, PodReporter), "made by the driver in a pod"
    _say_where(reporter)
    with registered(reporter.run / PIDS):
        try:
            _require_memory(reporter)
            train_worker(config)
        finally:
            reporter.arrive()


def _say_where(reporter: PodReporter) -> None:
    """So that it is known of which machine a rank was that dies."""
    from ray.train import get_context

    if node := os.environ.get("FATHOM_NODE"):
        reporter.here(get_context().get_world_rank(), node)


def _require_memory(reporter: PodReporter, root: Path = ROOT) -> None:
    """MemoryError where a process of this pod was killed for want of it: the next one would be, too. Ray starts the
    workers once more for that, and those end quietly since it is known by then why."""
    words = shortage(f"pod {os.environ.get('FATHOM_POD', 'of this worker')}", root)
    if words is not None and not reporter.has_failed():
        reporter.failed("out-of-memory", words)
        raise MemoryError(words)


@contextmanager
def registered(folder: Path) -> Iterator[None]:
    """While this process trains, a file has its number as name: the pod waits for it when it is told to go. That of a
    process that was killed names nobody who lives."""
    file = folder / str(os.getpid())
    folder.mkdir(parents=True, exist_ok=True)
    file.touch()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
