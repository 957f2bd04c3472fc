"""What the machine has, what is in use, and by whom: told to the API by whoever runs the controller."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.launch.base import Capacity as Slots
from orchestrator.launch.slots import need_of, oversubscribed, refusal
from orchestrator.spec import TrainingJob

__all__ = ["Capacity", "Holder", "Slots", "in_words", "never", "slowly"]


@dataclass(frozen=True)
class Holder:
    """A job that holds some."""

    namespace: str
    name: str
    slots: Slots


@dataclass(frozen=True)
class Capacity:
    """Of the whole machine, or of a cluster."""

    total: Slots | None
    """None: others share out what there is, and know how much that is."""
    holders: tuple[Holder, ...] = ()

    @property
    def used(self) -> Slots:
        return Slots(sum(one.slots.cpus for one in self.holders), sum(one.slots.gpus for one in self.holders))


def never(job: TrainingJob, capacity: Capacity) -> str:
    """Why the job can never run on this machine; empty if it can."""
    return "" if capacity.total is None else refusal(need_of(job), capacity.total)


def slowly(job: TrainingJob, capacity: Capacity) -> str:
    """What to know of a job that runs alone, since it is larger than the machine; empty if it is not."""
    return "" if capacity.total is None else oversubscribed(need_of(job), capacity.total)


def in_words(slots: Slots | None) -> str:
    """E.g. 8 CPUs and 0 GPUs."""
    if slots is None:
        return "what the cluster has"
    return f"{slots.cpus} CPUs and {slots.gpus} GPUs"
