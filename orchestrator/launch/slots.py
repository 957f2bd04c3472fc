"""Who may start on a machine that not all jobs fit on at once. Pure, but for looking at the machine.

The oldest job comes first. A smaller one may pass it while it waits, but not for ever: after `PATIENCE_SECONDS` nobody
takes what it waits for. A job that needs more CPUs than there are runs alone; one that needs more GPUs can never run.
Each job is given GPUs of its own, the lowest that are free (`launch.devices` has their names). Invariant: none is given
to two at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Holding:
    """What a job that runs has."""

    cpus: int
    gpus: tuple[str, ...] | None = ()
    """Their names; None: it has some, and nobody knows which, since an earlier version started it."""


@dataclass(frozen=True)
class Place:
    """Of a job that would start."""

    why: str = ""
    """What it waits for; empty if it may start now."""
    gpus: tuple[str, ...] = ()
    """Given to it if it may."""


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


def places(cpus: int, gpus: Sequence[str], used: Sequence[Holding], waiting: Sequence[Waiting]) -> dict[str, Place]:
    """By key. `cpus`, `gpus`: of the whole machine, those in the order in which they are given; `waiting`: the oldest
    first."""
    machine = Capacity(cpus, len(gpus))
    cores, free = cpus - sum(min(one.cpus, cpus) for one in used), _free(gpus, used)
    found: dict[str, Place] = {}
    for job in waiting:
        need = Capacity(min(job.need.cpus, cpus), job.need.gpus)  # one that is larger than the machine takes all of it
        if never := refusal(need, machine):  # it had more GPUs when the job was accepted; nobody waits for this one
            found[job.key] = Place(never)
        elif need.cpus <= cores and need.gpus <= len(free):
            found[job.key] = Place(gpus=tuple(free[: need.gpus]))
            cores, free = cores - need.cpus, free[need.gpus :]
        else:
            found[job.key] = Place(_words(job.need, machine, max(0, cores), len(free)))
            if job.seconds >= PATIENCE_SECONDS:  # what it lacks is kept for it from now on
                cores, free = max(0, cores - need.cpus), free[need.gpus :]
    return found


def _free(gpus: Sequence[str], used: Sequence[Holding]) -> list[str]:
    """In their order; none while somebody has any that nobody knows."""
    if any(one.gpus is None for one in used):
        return []
    taken = {name for one in used for name in one.gpus or ()}
    return [name for name in gpus if name not in taken]


def _words(need: Capacity, machine: Capacity, cpus: int, gpus: int) -> str:
    asked, free = [f"{need.cpus} CPUs"], [f"{cpus} of {machine.cpus} CPUs"]
    if need.gpus:
        asked, free = [*asked, f"{need.gpus} GPUs"], [*free, f"{gpus} of {machine.gpus} GPUs"]
    return f"it needs {' and '.join(asked)}; {' and '.join(free)} are free for it"


def usable_cores() -> int:
    """Those of this machine that this process may use."""
    try:
        return len(os.sched_getaffinity(0)) or 1
    except (AttributeError, OSError):
        return os.cpu_count() or 1
