"""The values of the chart `helm/fathom`: what a platform team may say when it installs Fathom.

`make docs` writes values.yaml, values.schema.json and the README of the chart from this. Invariants: every field says
what it is; what is written in values.yaml as a default is the default here; the settings of the cluster are
`ClusterSettings`, word for word, without what the chart itself knows.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.cost.teams import TeamLimit
from orchestrator.launch.rayjob.placement import LabelKey, Labels, ObjectName, Place
from orchestrator.launch.rayjob.settings import Cidr, ClusterSettings, Egress, Images, Namespace, Port
from orchestrator.plan.hardware import HardwareRow
from orchestrator.plan.prices import Price
from orchestrator.schema import Part

Amount = Annotated[str, Field(max_length=20, pattern=r"^[1-9][0-9]*(\.[0-9]+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?$")]
"""A quantity of Kubernetes that may be a part of one, as of a core: "500m"."""
Reference = Annotated[str, Field(max_length=512, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")]
Variable = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class AllImages(Images):
    """What pods are made of; none has a default, because none is published. `k8s/images` makes them."""

    controller: Reference | None = None
    """The controller's image: required. Made by k8s/images/controller.Dockerfile."""
    tracking: Reference | None = None
    """MLflow's server: required unless mlflow.trackingUri is given. Made by k8s/images/tracking.Dockerfile."""
    pull_secrets: tuple[ObjectName, ...] = Field((), max_length=16)
    """Secrets for private registries, of that name in the release's namespace and in those of jobs."""


class Crds(Part):
    """The definition of TrainingJobs."""

    install: bool = True
    """Whether this release installs it, and upgrades it. One release of a cluster does."""
    keep: bool = True
    """Whether it stays when the release is uninstalled. With false everybody's TrainingJobs go with it."""


class Rbac(Part):
    """Roles."""

    create: bool = True
    """Whether the controller's roles and their bindings are made. With false you make them: see templates/rbac.yaml."""
    aggregate: bool = True
    """Whether Kubernetes' own roles view, edit and admin learn of TrainingJobs."""


class ServiceAccount(Part):
    """Who the controller is."""

    create: bool = True
    """Whether it is made."""
    name: ObjectName | None = None
    """Its name; absent: RELEASE-controller. Required where it is not made."""
    annotations: dict[LabelKey, str] = {}
    """E.g. of a cloud that gives service accounts an identity."""


class Volume(Part):
    """A volume that outlives pods."""

    existing_claim: ObjectName | None = None
    """Of yours, in the release's namespace; absent: one is made."""
    size: Amount = "20Gi"
    """Of the claim that is made."""
    storage_class: ObjectName | None = None
    """Of it; absent: the cluster's default."""
    keep: bool = True
    """Whether it stays when the release is uninstalled. With false what it holds goes with it."""


class Home(Volume):
    """FATHOM_HOME: events, ledgers and logs of all jobs, and the key that signs their checkpoints."""

    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] = "ReadWriteOnce"
    """More than one replica needs ReadWriteMany. Replicas take turns, they never write at the same time."""


class Service(Part):
    """How the controller is reached."""

    port: Port = 8080
    """Of service and pods."""
    annotations: dict[LabelKey, str] = {}
    """Of the service."""


class Tls(Part):
    """Transport security of the controller. Without it tokens travel in plain text within the cluster."""

    secret_name: ObjectName | None = None
    """A Secret of type kubernetes.io/tls for RELEASE-controller.NAMESPACE.svc (of cert-manager, say); absent: plain
    HTTP. It is read anew when it changes. Pods know it by cluster.controller.certificateAuthority."""


class Amounts(Part):
    """Cores and memory."""

    cpu: Amount | None = None
    """Cores."""
    memory: Amount | None = None
    """Main memory."""


class Resources(Part):
    """What a container asks for, and what it may take."""

    requests: Amounts = Amounts(cpu="250m", memory="512Mi")
    """What is kept free for it."""
    limits: Amounts = Amounts(memory="1Gi")
    """What it may take at most. A limit of cores is left out: it would slow the controller down when it is needed."""


class TrackingVolume(Volume):
    """MLflow's database and the files of runs."""


class Mlflow(Part):
    """Where runs are shown: a small server of its own with a volume, or yours."""

    tracking_uri: Annotated[str, Field(max_length=512, pattern=r"^https?://[!-~]+$")] | None = None
    """Your own server (MLflow 3.15 or newer); absent: one is made."""
    credentials_secret: ObjectName | None = None
    """A Secret whose keys are variables for it: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or
    MLFLOW_TRACKING_TOKEN."""
    allowed_hosts: tuple[Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z0-9.-]+(:[0-9]{1,5})?$")], ...] = ()
    """More names by which the server is called, as a browser sends them (with the port, unless it is the usual one),
    e.g. of an ingress. The names of its service, and localhost:5000 for a forwarded port, are known."""
    volume: TrackingVolume = TrackingVolume()
    """Of the server."""
    resources: Resources = Resources(
        requests=Amounts(cpu="100m", memory="768Mi"),
        limits=Amounts(memory="2Gi"),
    )
    """Of the server: one without work took 375 MB."""


class NetworkPolicy(Part):
    """Who may call controller and MLflow, and whom they may call. Holds where the cluster's network enforces it."""

    enabled: bool = True
    """Whether it is made."""
    namespaces: tuple[Namespace, ...] = Field((), max_length=64)
    """Whose pods may call both: your ingress controller's, your Prometheus'. Pods of attempts may call the controller
    anyway, and nobody but the controller MLflow."""
    cidrs: tuple[Cidr, ...] = Field((), max_length=64)
    """Addresses that may call both, e.g. those of the API server's machines for its service proxy."""
    egress: tuple[Egress, ...] = Field(
        (
            Egress(cidr="0.0.0.0/0", apart_from=("169.254.0.0/16",), ports=(443, 6443)),
            Egress(cidr="::/0", apart_from=("fe80::/10",), ports=(443, 6443)),
        ),
        max_length=64,
    )
    """Whom the controller may call beside the name service and this chart's MLflow: the API server, teams' webhooks,
    your own MLflow. The API server's address is not known when this is written: narrow it if you know yours."""


class PodDisruptionBudget(Part):
    """With more than one replica: nodes are drained one after the other."""

    enabled: bool = True
    """Whether it is made. Pods may be evicted while a replica leads, and none while none does. Evictions wait for ever
    if no replica can lead: delete it then."""


class ServiceMonitor(Part):
    """For the Prometheus operator (monitoring.coreos.com/v1)."""

    enabled: bool = False
    """Whether it is made; the operator's definitions have to be there."""
    interval: Annotated[str, Field(pattern=r"^[1-9][0-9]*(ms|s|m)$")] = "30s"
    """Between two scrapes."""
    labels: Labels = {}
    """By which your Prometheus chooses its monitors."""
    token_secret: ObjectName | None = None
    """A Secret of the release's namespace whose key `token` may read metrics, which are not for everybody: made for the
    audience `fathom`, of an account that is bound to fathom-viewer in the whole cluster. Required."""


class Dashboard(Part):
    """For Grafana: a ConfigMap that its sidecar finds."""

    enabled: bool = False
    """Whether it is made."""
    labels: Labels = {"grafana_dashboard": "1"}
    """By which the sidecar finds it."""


class Metrics(Part):
    """Of the controller."""

    service_monitor: ServiceMonitor = ServiceMonitor()
    """For the Prometheus operator."""
    dashboard: Dashboard = Dashboard()
    """For Grafana."""


class ChartValues(Part):
    """All values of the chart."""

    name_override: ObjectName | None = None
    """Instead of the chart's name in names and labels."""
    fullname_override: Annotated[str, Field(max_length=40, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")] | None = None
    """Instead of RELEASE-fathom in names."""
    images: AllImages = AllImages()
    """What pods are made of. For images of jobs, see docs/kubernetes.md."""
    replicas: int = Field(1, ge=1, le=5)
    """Controllers. One works, the others wait to take over; see persistence.accessMode. Only the one that works is
    ready, so `helm --wait` and `kubectl rollout status` do not end with more than one."""
    watch_namespaces: tuple[Namespace, ...] = Field((), max_length=256)
    """Namespaces whose jobs are run, with roles in each of them; empty: all of the cluster, with one cluster role."""
    crds: Crds = Crds()
    """The definition of TrainingJobs."""
    rbac: Rbac = Rbac()
    """Roles."""
    service_account: ServiceAccount = ServiceAccount()
    """Who the controller is."""
    persistence: Home = Home()
    """FATHOM_HOME."""
    service: Service = Service()
    """How the controller is reached."""
    tls: Tls = Tls()
    """Transport security of the controller."""
    resources: Resources = Resources()
    """Of the controller."""
    place: Place = Place()
    """Nodes on which controller and MLflow run."""
    priority_class: ObjectName | None = None
    """PriorityClass of the controller's pods."""
    env: dict[Variable, str] = {}
    """More variables of the controller, e.g. HTTPS_PROXY and NO_PROXY. Nothing secret: it can be read in the pod."""
    signing_key_secret: ObjectName | None = None
    """A Secret whose key `signing.key` (32 bytes or more) signs checkpoints; absent: one is made on the volume. Without
    the key of a checkpoint no job goes on from it."""
    webhooks_secret: ObjectName | None = None
    """A Secret whose key `webhooks.yaml` says where teams want to hear of their jobs; see docs/webhooks.md."""
    webhook_hosts: tuple[Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z0-9.-]+$")], ...] = ()
    """The only hosts that a job may name for that; empty: every public one."""
    prices: tuple[Price, ...] = ()
    """Your prices; they replace those that come with Fathom for the same accelerator and price class. Read anew while
    the controller runs. Write amounts as text, e.g. "2.95"."""
    budgets: tuple[TeamLimit, ...] = ()
    """What teams (namespaces) may spend, all their jobs together. Read anew while the controller runs."""
    hardware: tuple[HardwareRow, ...] = ()
    """Your accelerators, for the planner; they replace those that come with Fathom."""
    mlflow: Mlflow = Mlflow()
    """Where runs are shown."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Who may call whom."""
    pod_disruption_budget: PodDisruptionBudget = PodDisruptionBudget()
    """For nodes that are drained."""
    metrics: Metrics = Metrics()
    """Of the controller."""
    cluster: ClusterSettings = ClusterSettings()
    """How jobs are run here: machines, networks, limits. `images` stands above, and the chart knows the controller's
    namespace, labels and port itself. Whatever is left out has the default of its comment; a table that is given
    (accelerators, priceClasses, networks) replaces the whole table."""


DERIVED = ("cluster.images", "cluster.controller.namespace", "cluster.controller.podLabels", "cluster.controller.port")
"""Parts of the cluster's settings that the chart knows itself, and that values may not say."""
