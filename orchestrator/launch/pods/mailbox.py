"""The actor through which workers of other pods reach the run folder of the head's pod.

Ray runs it on the driver's node and starts it again if its process dies; all that it knows stands in the folder.
Invariant: nothing that a worker says ends it.
"""

from __future__ import annotations

import os
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from model.reporting import Stop
from orchestrator.launch.base import RunFolder
from orchestrator.launch.files import replace_file
from orchestrator.launch.reporter import FileReporter

MOST_WAITING = 10_000
"""Calls of one process that the actor has not done yet; more are dropped, so that training does not run out of
memory."""
_TRIES = 3
"""A call is made again when the actor has died over it."""


class MailBox:
    """Writes what it is told. One call after the other, those of each process in their order."""

    def __init__(self, reporter: FileReporter) -> None:
        self._reporter = reporter
        own = psutil.Process()
        replace_file(_holder(reporter.root), f"{own.pid} {own.create_time()}")

    def tell(self, kind: str, fields: dict[str, Any]) -> None:
        """One of the reporter's methods that answer nothing."""
        try:
            getattr(self._reporter, kind)(**fields)
        except Exception:  # noqa: BLE001 - e.g. nonsense, or a disk that fails: nobody waits for an answer
            traceback.print_exc()

    def stop_requested(self) -> Stop | None:
        """See `model.reporting.Reporter`."""
        return self._reporter.stop_requested()

    def failed(self, kind: str, message: str) -> None:
        """See `model.reporting.Reporter`."""
        self._reporter.failed(kind, message)

    def has_failed(self) -> bool:
        """See `model.reporting.Reporter`."""
        return self._reporter.has_failed()

    def stacks(self, rank: int, text: str) -> None:
        """What a rank that stalled was doing: where it would lie on a laptop, so that the guard finds it."""
        with self._reporter.stack_file(rank).open("a") as file:
            file.write(text)


def open_mailbox(reporter: FileReporter) -> Any:  # noqa: ANN401 - Ray has no types
    """The handle of a new one on this node, on the Ray that this process is connected to. It lives as long as that."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(MailBox).options(
        num_cpus=0,  # the head counts none
        max_restarts=-1,
        max_task_retries=_TRIES,
        max_pending_calls=MOST_WAITING,
        scheduling_strategy=here,
    )
    return actor.remote(reporter)


def kill_mailbox(folder: RunFolder) -> None:
    """End its process, which is of another session than the driver's and may hold the event file's lock."""
    with suppress(OSError, ValueError, psutil.Error):
        pid, created = _holder(folder.root).read_text().split()
        process = psutil.Process(int(pid))
        if process.create_time() == float(created) and process.pid != os.getpid():
            process.kill()
            process.wait(1.0)


def _holder(run: Path) -> Path:
    return run / "mailbox.pid"
