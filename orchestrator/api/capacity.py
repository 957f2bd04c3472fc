"""What the machine has, what is in use, and by whom: told to the API by whoever runs the controller."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.spec import TrainingJob


@dataclass(frozen=True)
class Slots:
    """Processor cores and GPUs."""

    cpus: int = 0
    gpus: int = 0

    def __str__(self) -> str:
        return f"{self.cpus} cores and {self.gpus} GPUs"


@dataclass(frozen=True)
class Holder:
    """A job that holds some."""

    namespace: str
    name: str
    slots: Slots


@dataclass(frozen=True)
class Capacity:
    """Of the whole machine."""

    total: Slots
    holders: tuple[Holder, ...] = ()

    @property
    def used(self) -> Slots:
        return Slots(sum(one.slots.cpus for one in self.holders), sum(one.slots.gpus for one in self.holders))


def needed(job: TrainingJob) -> Slots:
    """What a job holds while it runs."""
    compute = job.spec.compute
    if compute.accelerator == "cpu":
        return Slots(cpus=compute.world_size * (compute.cpu_per_worker or 1))
    return Slots(gpus=compute.world_size)


def misfit(job: TrainingJob, capacity: Capacity) -> str | None:
    """Why the job could never run on this machine; None if it could."""
    wanted, total = needed(job), capacity.total
    if wanted.cpus > total.cpus:
        return f"needs {wanted.cpus} processor cores, this machine lends {total.cpus}: it would wait for ever"
    if wanted.gpus > total.gpus:
        kind = job.spec.compute.accelerator
        return f"needs {wanted.gpus} GPUs ({kind}), this machine lends {total.gpus}: it would wait for ever"
    return None
