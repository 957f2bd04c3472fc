"""Where pods may run and what they get there: the words of which settings are made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.schema import Part

_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
LabelKey = Annotated[str, Field(max_length=317, pattern=rf"^({_DOMAIN}/)?{_LABEL}$")]
LabelValue = Annotated[str, Field(max_length=63, pattern=rf"^({_LABEL})?$")]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")]
Quantity = Annotated[str, Field(max_length=20, pattern=r"^[1-9][0-9]{0,14}(Ki|Mi|Gi|Ti|k|M|G|T)?$")]
EnvName = Annotated[str, Field(max_length=100, pattern=r"^(NCCL|FI|OFI|UCX|GLOO)_[A-Z0-9_]+$")]
EnvValue = Annotated[str, Field(max_length=1024)]
ResourceName = Annotated[str, Field(max_length=317, pattern=rf"^{_DOMAIN}/{_LABEL}$")]


class Toleration(Part):
    """A taint of nodes that pods put up with."""

    key: LabelKey | None = None
    """Of the taint; absent: of all taints."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether any value of the taint is meant, or this one."""
    value: LabelValue | None = None
    """With Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Of the taint; absent: all."""


class Place(Part):
    """Nodes on which pods may run."""

    node_selector: Labels = {}
    """Labels that a node must have."""
    tolerations: tuple[Toleration, ...] = Field((), max_length=32)
    """Taints that it may have."""


class Network(Part):
    """What pods of several machines need to reach each other fast. A job on one machine gets none of it."""

    env: dict[EnvName, EnvValue] = Field({}, max_length=64)
    """Environment of the workers."""
    resources: dict[ResourceName, Annotated[int, Field(ge=1, le=1000)]] = Field({}, max_length=16)
    """Devices of a whole machine; a pod that takes part of the machine takes that part of them."""
    annotations: dict[LabelKey, Annotated[str, Field(max_length=4096)]] = Field({}, max_length=16)
    """Of the workers' pods, e.g. k8s.v1.cni.cncf.io/networks where Multus attaches the fast network."""


class AcceleratorClass(Part):
    """Machines of one kind, as this cluster has them."""

    place: Place = Place()
    """How the nodes are known."""
    resource: ResourceName = "nvidia.com/gpu"
    """What a node calls the device; means nothing for `cpu`."""
    per_node: int = Field(8, ge=1, le=72)
    """Devices of a machine, each with one worker; a job on CPUs has a pod for each worker."""
    cpus_per_worker: int | None = Field(None, ge=1, le=1024)
    """Cores for each, unless the job says so; absent: one."""
    memory_per_worker: Quantity = "4Gi"
    """Main memory for each, unless the job says so. It is a limit."""
    shared_memory: Quantity = "1Gi"
    """/dev/shm of a pod, on top of that: through it workers of a machine and their data loaders talk."""
    network: str | None = Field(None, max_length=40)
    """To other machines, one of `networks`; absent: whatever pods have."""
    runtime_class: ObjectName | None = None
    """RuntimeClass of the pods, where the container runtime needs one for the device."""
