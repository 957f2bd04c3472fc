"""Who may start on a machine that not all jobs fit on at once. Pure, but for looking at the machine.

The oldest job comes first. A smaller one may pass it while it waits, but not for ever: after `PATIENCE_SECONDS` nobody
takes what it waits for. A job that needs more CPUs than there are runs alone; one that needs more GPUs can never run.
Jobs with GPUs run one at a time.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.launch.base import Capacity
from orchestrator.spec import TrainingJob

PATIENCE_SECONDS = 600.0
"""So long smaller jobs may pass one that waits."""


@dataclass(frozen=True)
class Waiting:
    """A job that would start now."""

    key: str
    need: Capacity
    seconds: float
    """Since it was submitted."""


def need_of(job: TrainingJob) -> Capacity:
    """What a job holds while it runs; a worker on a GPU has a core of its own, too."""
    compute = job.spec.compute
    workers = compute.world_size
    return Capacity(workers * (compute.cpu_per_worker or 1), 0 if compute.accelerator == "cpu" else workers)


def refusal(need: Capacity, machine: Capacity) -> str:
    """Why the job can never run on this machine; empty if it can."""
    if need.gpus <= machine.gpus:
        return ""
    return f"the job asks for {need.gpus} GPUs, and this machine has {machine.gpus}: give it fewer, or a larger machine"


def oversubscribed(need: Capacity, machine: Capacity) -> str:
    """What to know of a job that runs alone because it asks for more cores than there are; empty if it does not."""
    if need.cpus <= machine.cpus:
        return ""
    return f"the job asks for {need.cpus} CPUs, and this machine has {machine.cpus}: it runs alone, and more slowly"


def places(machine: Capacity, used: Sequence[Capacity], waiting: Sequence[Waiting]) -> dict[str, str]:
    """By key: empty if the job may start now, or else what it waits for. `waiting`: the oldest first."""
    cpus = machine.cpus - sum(_held(one, machine).cpus for one in used)
    gpus = machine.gpus - sum(_held(one, machine).gpus for one in used)
    found: dict[str, str] = {}
    for job in waiting:
        need = _held(job.need, machine)
        if need.cpus <= cpus and need.gpus <= gpus:
            found[job.key] = ""
            cpus, gpus = cpus - need.cpus, gpus - need.gpus
            continue
        found[job.key] = _words(job.need, machine, max(0, cpus), max(0, gpus))
        if job.seconds >= PATIENCE_SECONDS:  # what it lacks is kept for it from now on
            cpus = 0 if need.cpus > cpus else cpus - need.cpus
            gpus = 0 if need.gpus > gpus else gpus - need.gpus
    return found


def _held(need: Capacity, machine: Capacity) -> Capacity:
    """A job that is larger than the machine takes all of it. One with GPUs takes all of those: drivers are not told
    which are theirs, and two of them would begin with the same."""
    return Capacity(min(need.cpus, machine.cpus), machine.gpus if need.gpus else 0)


def _words(need: Capacity, machine: Capacity, cpus: int, gpus: int) -> str:
    asked, free = [f"{need.cpus} CPUs"], [f"{cpus} of {machine.cpus} CPUs"]
    if need.gpus:
        asked, free = [*asked, f"{need.gpus} GPUs"], [*free, f"{gpus} of {machine.gpus} GPUs"]
    return f"it needs {' and '.join(asked)}; {' and '.join(free)} are free for it"


def machine_capacity(cpus: int | None = None) -> Capacity:
    """Of this machine; `cpus`: to offer so many instead of all of its cores (FATHOM_CPUS)."""
    return Capacity(cpus or _cores(), _gpus())


def _cores() -> int:
    """Those that this process may use."""
    try:
        return len(os.sched_getaffinity(0)) or 1
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def _gpus() -> int:
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        try:
            return int(nvml.nvmlDeviceGetCount())
        finally:
            nvml.nvmlShutdown()
    except Exception:  # noqa: BLE001 - no package, no driver, or a broken one: no GPU to give out
        return 0
