"""How many worker pods a job has, what each asks for, and on which nodes. Pure.

A pod is a machine, or the part of one that the job takes: all workers of a node are in one pod, so that they share
/dev/shm and the fast links between devices. A job on CPUs has a pod for each worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.errors import Problem
from orchestrator.launch.rayjob.placement import AcceleratorClass, Network, Place
from orchestrator.launch.rayjob.settings import ClusterSettings
from orchestrator.launch.resolve import Resolved, quantity_bytes
from orchestrator.plan.defaults import fill_nodes, gpus_per_node
from orchestrator.spec import Compute, TrainingJob

_MIB = 2**20
_NONE = Network()


@dataclass(frozen=True)
class Shape:
    """Of the workers."""

    pods: int
    workers: int
    """In each pod."""
    gpus: int
    """In each pod: none, or one for each worker."""
    machine: AcceleratorClass
    network: Network
    place: Place
    cpus: int
    """Cores that a pod asks for."""
    ray_cpus: int
    """CPUs that Ray counts in a pod: exactly what its workers take, so that they spread over the pods as meant."""
    memory: str
    """Of a pod, /dev/shm included."""

    @property
    def devices(self) -> dict[str, int]:
        """What else a pod asks for."""
        found = {self.machine.resource: self.gpus} if self.gpus else {}
        for name, count in self.network.resources.items():
            found[name] = -(-count * self.workers // self.machine.per_node)
        return found


def worker_shape(job: TrainingJob, resolved: Resolved, settings: ClusterSettings) -> Shape | list[Problem]:
    """Or what is wrong: the job asks for what the cluster's settings do not have."""
    compute = job.spec.compute
    machine = settings.accelerators.get(compute.accelerator)
    place = settings.price_classes.get(compute.price_class)
    problems = []
    if machine is None:
        problems.append(_unknown("accelerator", compute.accelerator, settings.accelerators, "accelerators"))
    if place is None:
        problems.append(_unknown("priceClass", compute.price_class, settings.price_classes, "priceClasses"))
    workers = 1 if compute.accelerator == "cpu" else _per_pod(compute)
    if machine is not None and workers > machine.per_node:
        message = (
            f"{workers} GPUs of one machine are asked for, machines with {compute.accelerator} have {machine.per_node} "
            f"here: give {machine.per_node} or fewer"
        )
        problems.append(Problem("spec.compute.gpusPerNode", message))
    if complaint := fill_nodes(compute.world_size, workers):
        problems.append(Problem("spec.compute.gpus", complaint))
    if machine is None or place is None or problems:
        return problems
    pods = compute.world_size // workers
    cores = compute.cpu_per_worker or machine.cpus_per_worker or resolved.cpus_per_worker
    memory = resolved.memory_bytes_per_worker or quantity_bytes(machine.memory_per_worker)
    network = settings.networks[machine.network] if machine.network is not None and pods > 1 else _NONE
    return Shape(
        pods=pods,
        workers=workers,
        gpus=workers * resolved.gpus_per_worker,
        machine=machine,
        network=network,
        place=Place(
            node_selector=machine.place.node_selector | place.node_selector,
            tolerations=tuple(dict.fromkeys(machine.place.tolerations + place.tolerations)),
        ),
        cpus=workers * cores,
        ray_cpus=workers * resolved.cpus_per_worker,
        memory=quantity(workers * memory + quantity_bytes(machine.shared_memory)),
    )


def head_memory(settings: ClusterSettings, pods: int) -> str:
    """Of the head's pod."""
    return quantity(quantity_bytes(settings.head.memory) + pods * quantity_bytes(settings.head.memory_per_pod))


def quantity(size: int) -> str:
    """Bytes in Kubernetes' form."""
    return str(size) if size % _MIB else f"{size // _MIB}Mi"


def _per_pod(compute: Compute) -> int:
    return min(compute.gpus_per_node or gpus_per_node(compute.world_size)[0], compute.world_size)


def _unknown(field: str, value: str, known: Iterable[str], table: str) -> Problem:
    names = ", ".join(known) or "none"
    return Problem(
        f"spec.compute.{field}",
        f"{value!r} is not in this cluster's settings, they have {names}: use one of them, or ask for a row in {table}",
    )
