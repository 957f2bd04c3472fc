"""What is left of a stalled attempt to see: states of its processes, and the stacks that its ranks wrote."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

from orchestrator.launch.base import RunFolder
from orchestrator.launch.resolve import Resolved

_WORKER = "RayTrainWorker"
"""In the title that Ray gives to a worker."""
_SHOWN = 16
PATIENCE_SECONDS = 2.0


def describe(folder: RunFolder, resolved: Resolved, processes: Callable[[], Iterable[psutil.Process]]) -> str:
    """`worker processes: 4711 stopped, 4712 sleeping; stacks in .../logs of rank 1, none of rank 0`."""
    return f"{_in_time(lambda: workers_state(processes()))}; {stacks(folder, resolved)}"


def _in_time(look: Callable[[], str]) -> str:
    """Whoever asks is about to end what is stuck, and must not get stuck there: a process whose memory cannot be had
    keeps him waiting who reads its command line, too."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(look()), name="evidence", daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    return found[0] if found else f"its processes could not be looked at in {PATIENCE_SECONDS:g} s"


def workers_state(processes: Iterable[psutil.Process]) -> str:
    """What the workers among the processes of a session are doing; of the others, how many are stopped."""
    states, stopped = [], 0
    for process in processes:
        with suppress(psutil.Error):
            status = process.status()
            if _WORKER in " ".join(process.cmdline()):
                states.append(f"{process.pid} {status}")
            else:
                stopped += status == psutil.STATUS_STOPPED
    said = f"worker processes: {_some(states)}" if states else "no worker process lives"
    return f"{said}; {stopped} others are stopped" if stopped else said


def stacks(folder: RunFolder, resolved: Resolved, where: str | None = None) -> str:
    """Which ranks have left their stacks, and where: in the run's folder, unless people find them elsewhere."""
    paths = {rank: folder.stacks(resolved.attempt, resolved.incarnation, rank) for rank in range(resolved.workers)}
    left = [rank for rank, path in paths.items() if path.exists() and path.stat().st_size]
    if not left:
        return "no rank left its stacks"
    said = f"stacks in {where or paths[left[0]].parent} of rank {_some(left)}"
    silent = [rank for rank in paths if rank not in left]
    return f"{said}, none of rank {_some(silent)}" if silent else said


def _some(values: list[str] | list[int]) -> str:
    rest = len(values) - _SHOWN
    return ", ".join(map(str, values[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")
