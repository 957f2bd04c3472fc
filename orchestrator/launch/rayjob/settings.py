"""What the platform team says of its cluster: images, machines, networks, limits. The chart's values become one.

Invariants: what stands here never comes from a job, and what a job says never gets here; a pod that is made of any
valid settings meets Pod Security `restricted`, because nothing here can say otherwise.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from orchestrator.launch.rayjob.machines import ACCELERATORS, NETWORKS
from orchestrator.launch.rayjob.placement import AcceleratorClass, Labels, Network, ObjectName, Place, Quantity
from orchestrator.schema import Part

RESERVED_DOMAINS = ("fathom.dev", "ray.io", "kueue.x-k8s.io", "kubernetes.io", "k8s.io")
"""Labels below these are somebody's language: a cost label there would be an order."""


def _cidr(text: str) -> str:
    ip_network(text)  # ValueError: what is wrong with it
    return text


Cidr = Annotated[str, Field(max_length=49), AfterValidator(_cidr)]
Port = Annotated[int, Field(ge=1, le=65_535)]
Namespace = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


class Images(Part):
    """What pods are made of."""

    train: str | None = Field(None, max_length=512, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")
    """Image of a job that names none."""
    require_digest: bool = True
    """Whether images must be named by digest (NAME@sha256:...): a tag may mean another program at the next attempt."""
    allowed: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = ()
    """Registries, folders or names of which an image must be, e.g. "registry.example.com/ml"; empty: all images."""
    pull_secrets: tuple[ObjectName, ...] = Field((), max_length=16)
    """Secrets of the job's namespace for private registries."""
    pull_policy: Literal["IfNotPresent", "Always"] = "IfNotPresent"
    """When a node pulls an image."""


class Allowed(Part):
    """What of its namespace a job may name. Who may create TrainingJobs there uses it through their pods, whether
    or not Kubernetes lets that person read it."""

    service_accounts: tuple[ObjectName, ...] = Field((), max_length=64)
    """Service accounts; empty: all of its namespace."""
    secrets: tuple[ObjectName, ...] = Field((), max_length=64)
    """Secrets with credentials of an object store; empty: all of its namespace."""
    priority_classes: tuple[ObjectName, ...] = Field((), max_length=64)
    """Kueue's priority classes; empty: all."""


class Head(Part):
    """The pod of Ray's head and of the driver. It has no accelerator and runs no worker."""

    cpus: int = Field(2, ge=1, le=1024)
    """Cores it asks for."""
    memory: Quantity = "4Gi"
    """With the driver it took 2.2 GB for two workers, so that 1 GiB is too little."""
    memory_per_pod: Quantity = "16Mi"
    """On top for each worker pod, of which Ray's control store keeps a record. An estimate: nobody has measured it."""
    place: Place = Place()
    """Where it may run. It should be where nothing is evicted: when it goes, the attempt ends."""


class Submitter(Part):
    """The small pod that hands the driver to Ray and waits. When it goes, KubeRay ends the attempt."""

    cpu_millis: int = Field(100, ge=1, le=100_000)
    """Thousandths of a core that it asks for."""
    memory: Quantity = "512Mi"
    """It took 58 to 115 MB."""


class Controller(Part):
    """How pods reach the controller, which takes their events."""

    url: str = Field("http://fathom-controller.fathom-system.svc:8080", max_length=512, pattern=r"^https?://[!-~]+$")
    """Where events are posted."""
    namespace: Namespace = "fathom-system"
    """Where its pods are."""
    pod_labels: Labels = {"app.kubernetes.io/name": "fathom", "app.kubernetes.io/component": "controller"}
    """Which pods there it is."""
    port: Port = 8080
    """Of its pods."""
    certificate_authority: str | None = Field(None, max_length=65_536)
    """Certificates (PEM) by which pods know it, with https; absent: those of the image."""
    token_audience: str = Field("fathom-controller", max_length=253, pattern=r"^[!-~]+$")
    """Whom the pods' tokens are meant for: they are of no use elsewhere."""
    token_seconds: int = Field(3600, ge=600, le=86_400)
    """How long a token counts; Kubernetes renews it before that."""


class Egress(Part):
    """Addresses outside the job that its pods may call."""

    cidr: Cidr
    """A range of addresses, e.g. 0.0.0.0/0."""
    apart_from: tuple[Cidr, ...] = Field((), max_length=64)
    """Ranges within it that they may not."""
    ports: tuple[Port, ...] = Field((443,), min_length=1, max_length=64)
    """TCP ports."""


class Isolation(Part):
    """The NetworkPolicy of an attempt's pods: nobody else calls them, and they call nobody but these."""

    enabled: bool = True
    """Whether it is made."""
    operator_namespace: Namespace = "kuberay-system"
    """Where KubeRay's operator runs, which asks Ray's dashboard how the job stands."""
    dns_namespace: Namespace = "kube-system"
    """Where the cluster's name service runs."""
    dns_cidrs: tuple[Cidr, ...] = Field((), max_length=16)
    """Its addresses where it runs on the node itself, e.g. 169.254.20.10/32 with NodeLocal DNSCache."""
    egress: tuple[Egress, ...] = Field(
        (
            Egress(
                cidr="0.0.0.0/0",
                apart_from=("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
            ),
        ),
        max_length=64,
    )
    """Object stores and the like. By default every public address on port 443: not the cluster's own network, and not
    169.254.169.254, where a cloud gives each pod the node's credentials."""


class Stopping(Part):
    """Time that pods get to write a last checkpoint when they are told to go."""

    least_seconds: int = Field(60, ge=10, le=3600)
    """Of it, however quick this job saved so far."""
    most_seconds: int = Field(600, ge=10, le=3600)
    """Of it, however slow."""
    end_seconds: int = Field(30, ge=5, le=600)
    """On top of it, for the processes to end: after that they are killed."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.most_seconds < self.least_seconds:
            raise ValueError(f"mostSeconds {self.most_seconds} is less than leastSeconds {self.least_seconds}")
        return self


class Topology(Part):
    """How near each other Kueue shall place the workers (topology-aware scheduling)."""

    level: str = Field(
        max_length=316, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
    )
    """Label of the nodes that names the domain, e.g. cloud.provider.com/topology-block."""
    required: bool = False
    """Whether the job waits until one domain has room for all; otherwise they are only placed as near as can be."""


class ClusterSettings(Part):
    """All of it."""

    images: Images = Images()
    """What pods are made of."""
    allowed: Allowed = Allowed()
    """What a job may name."""
    ray_version: str = Field("2.60.0", pattern=r"^2\.(5[2-9]|[6-9][0-9]|[1-9][0-9]{2})\.[0-9]{1,3}$")
    """Ray's version in the image: 2.52.0 at least, the first that knows tokens."""
    head: Head = Head()
    """The pod of Ray's head and of the driver."""
    submitter: Submitter = Submitter()
    """The small pod that hands the driver to Ray."""
    accelerators: dict[Annotated[str, Field(min_length=1, max_length=40)], AcceleratorClass] = Field(
        ACCELERATORS, max_length=64
    )
    """Machines by `spec.compute.accelerator`. What is given replaces the whole table."""
    price_classes: dict[Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$")], Place] = Field(
        {"on-demand": Place()}, max_length=64
    )
    """Where workers may run, by `spec.compute.priceClass`; added to what the accelerator says."""
    networks: dict[Annotated[str, Field(min_length=1, max_length=40)], Network] = Field(NETWORKS, max_length=64)
    """Networks between machines, by the name that accelerator classes give. What is given replaces the whole table."""
    cpu_share: float = Field(1.0, ge=0.05, le=1.0)
    """Part of the cores of head and workers that their pods ask for. With less than 1 pods share cores: for a cluster
    of a laptop, on which a head and two workers would not fit."""
    temporary_storage: Quantity = "50Gi"
    """Most that a pod may write to /tmp (logs and caches); one that writes more is evicted."""
    controller: Controller = Controller()
    """How pods reach the controller."""
    isolation: Isolation = Isolation()
    """Who may call whom."""
    stopping: Stopping = Stopping()
    """Time for a last checkpoint."""
    topology: Topology | None = None
    """How near each other Kueue shall place workers; absent: it does not care."""
    start_seconds: int = Field(1800, ge=60, le=86_400)
    """Time from the start of an attempt, or from its admission by Kueue, until all its pods are ready; then it has
    failed, and what it holds is free again."""
    finished_seconds: int = Field(30, ge=0, le=3600)
    """Time that pods stay after the end, for their last logs; they are paid for meanwhile."""
    priority_class: ObjectName | None = None
    """Kubernetes' own priority class of the pods; Kueue's comes from the job."""
    labels: Labels = {}
    """Labels of all that is made, e.g. for a bill by cost centre."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, one in self.accelerators.items():
            if one.network is not None and one.network not in self.networks:
                known = ", ".join(self.networks) or "none"
                raise ValueError(f"accelerators.{name}.network is {one.network!r}; known: {known}; add it to networks")
        for key in self.labels:
            domain = key.rpartition("/")[0]
            if any(domain == one or domain.endswith(f".{one}") for one in RESERVED_DOMAINS):
                raise ValueError(f"labels.{key}: labels of {domain} are reserved; use a domain of your own")
        return self
