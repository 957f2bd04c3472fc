"""Fathom in a whole cluster: installed by its chart, and asked as people ask it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2

from support.chart_process import ChartProcess
from support.controller_process import PRICES
from support.helm import IMAGES, Helm, merged
from support.kube_home import Json, KubeHome
from support.kube_people import KubePeople
from support.kuberay_player import RAY_JOBS, SUPPORTING
from support.shooting import wait_until
from support.store import small_document

SYSTEM = "fathom-system"
PATIENCE = 600.0
"""Seconds: a whole Kubernetes on two cores that others use, too, takes its time."""
DIGEST = "@sha256:" + "5f" * 32
_FAKE = [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]
HEADS = {"type": "kwok", "heads": "here"}
"""Labels of the pretended node on which heads run."""
PLANE: Json = {
    "images": {"train": f"registry.example.com/fathom-train{DIGEST}"},
    "cluster": {
        "accelerators": {
            "cpu": {"perNode": 1, "place": {"nodeSelector": {"type": "kwok"}, "tolerations": _FAKE}},
            "H800": {
                "cpusPerWorker": 11, "memoryPerWorker": "100Gi",
                "place": {"nodeSelector": {"type": "kwok"}, "tolerations": _FAKE},
            },
        },
        "head": {"place": {"nodeSelector": HEADS, "tolerations": _FAKE}},
        "isolation": {"enabled": True},
    },
}  # fmt: skip
"""Values for a control plane with pretended nodes, which have no fast network."""
LOST_LEASE = 75
"""Exit status of a controller that does not lead any more."""
GPU_PRICES = """
- {accelerator: H800, priceClass: on-demand, amount: "2.00", currency: USD,
   unit: gpu-hour, source: test, date: 2026-01-01}
"""


class Fathom(Protocol):
    """A release, wherever its controller runs."""

    cluster: KubeHome

    def ask(self, method: str, path: str, token: str = "", body: Any = None) -> httpx2.Response:  # noqa: ANN401
        """Its REST API, with the token of a person."""


class AsProcess:
    """Beside a control plane on which no pod runs in truth."""

    def __init__(self, cluster: KubeHome, helm: Helm, folder: Path) -> None:
        self.cluster = cluster
        _namespace(cluster)
        values = merged(IMAGES, PLANE)
        folder.mkdir()
        self.process = ChartProcess(cluster, folder, helm, SYSTEM, values, PRICES + GPU_PRICES)

    def wait_ready(self) -> None:
        wait_until(self.process.ready, self.process.log, PATIENCE)

    def ask(self, method: str, path: str, token: str = "", body: Any = None) -> httpx2.Response:  # noqa: ANN401
        return patiently(lambda: self._once_more(method, path, token, body))

    def _once_more(self, method: str, path: str, token: str, body: Any) -> httpx2.Response:  # noqa: ANN401
        try:
            return self._asked(method, path, token, body)
        except httpx2.TransportError:
            # on a machine that is too busy to renew a lease in time it ends, and is started again
            if self.process.process.wait(30) != LOST_LEASE:
                raise
            self.process.start()
            self.wait_ready()
            return self._asked(method, path, token, body)

    def _asked(self, method: str, path: str, token: str, body: Any) -> httpx2.Response:  # noqa: ANN401
        url = self.process.url() + path
        return httpx2.request(method, url, headers=_bearer(token), json=body, timeout=60, trust_env=False)


class AsPods:
    """On a node, reached as from outside: by the API server's proxy to its service."""

    def __init__(self, cluster: KubeHome, helm: Helm, image: str, home: Path) -> None:
        self.cluster, self.helm, self._image, self._home = cluster, helm, image, home
        self._path = f"/api/v1/namespaces/{SYSTEM}/services/http:fathom-controller:8080/proxy"

    def values(self, **more: Any) -> Json:  # noqa: ANN401 - of the chart
        """Without MLflow's server: its image is not made here."""
        own: Json = {
            "images": {
                "controller": self._image,
                "train": "docker.io/library/fathom-train:none",
                "requireDigest": False,
            },
            "mlflow": {"trackingUri": "http://mlflow.invalid:5000"},
            "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
            "prices": [],
        }
        own["images"]["requireDigest"] = False
        return merged(own, more)

    def install(self, **more: Any) -> None:  # noqa: ANN401 - values of the chart
        """Or upgrade."""
        _namespace(self.cluster)
        self._volume()
        self.helm.done("upgrade", "--install", "fathom", "{}", "--namespace", SYSTEM, values=self.values(**more))

    def wait_ready(self) -> None:
        words = ("rollout", "status", "deployment/fathom-controller", "-n", SYSTEM, f"--timeout={PATIENCE:.0f}s")
        self.cluster.kubectl(*words)
        assert self.ask("GET", "/readyz").status_code == 200

    def ask(self, method: str, path: str, token: str = "", body: Any = None) -> httpx2.Response:  # noqa: ANN401
        client, headers = self.cluster.client(), _bearer(token)
        return patiently(lambda: client.request(method, self._path + path, headers=headers, json=body))

    def pods(self) -> list[Json]:
        """The controller's, but for those that are ending."""
        labels = "app.kubernetes.io/component=controller"
        found = self.cluster.items(f"/api/v1/namespaces/{SYSTEM}/pods", labelSelector=labels)
        return [one for one in found if "deletionTimestamp" not in one["metadata"]]

    def leave_nothing(self) -> None:
        """What the chart keeps on purpose goes, too: the cluster may be somebody's. Jobs first, while somebody is there
        who takes his finalizer off them."""
        if self.cluster.found("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingjobs.fathom.dev"):
            self.cluster.kubectl("delete", "trainingjobs", "--all", "--all-namespaces", "--timeout=300s")
        self.helm.run("uninstall", "fathom", "--namespace", SYSTEM)
        for kind in ("namespace/" + SYSTEM, "crd/trainingjobs.fathom.dev", "persistentvolume/fathom-test-home"):
            self.cluster.kubectl("delete", kind, "--ignore-not-found", "--timeout=300s")

    def _volume(self) -> None:
        """A folder of the node, where the cluster makes no volumes."""
        if self.cluster.items("/apis/storage.k8s.io/v1/storageclasses"):
            return
        self._home.mkdir(exist_ok=True)
        self._home.chmod(0o777)
        self.cluster.kubectl("apply", "-f", "-", given={
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "fathom-test-home"},
            "spec": {
                "capacity": {"storage": "20Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": str(self._home)},
                "claimRef": {"namespace": SYSTEM, "name": "fathom-home"},
            },
        })  # fmt: skip


@dataclass(frozen=True)
class Team:
    """A namespace with its people, each known by the token of a service account."""

    namespace: str
    editor: str
    reader: str
    stranger: str
    """Of another namespace, with no role anywhere."""

    @classmethod
    def of(cls, cluster: KubeHome) -> Team:
        """With the chart's own roles."""
        people, namespace, elsewhere = KubePeople(cluster), _restricted(cluster), _restricted(cluster)
        for name, role in {"editor": "fathom-editor", "reader": "fathom-viewer"}.items():
            people.account(namespace, name)
            reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
            subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
            body = {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}
            path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"
            answer = cluster.client().post(path, json=body)
            assert answer.status_code == 201, answer.text
        people.account(elsewhere, "stranger")
        tokens = [people.token(namespace, name, "fathom") for name in ("editor", "reader")]
        return cls(namespace, *tokens, people.token(elsewhere, "stranger", "fathom"))


class Jobs:
    """A team's, through the API; and what becomes of them in the cluster."""

    def __init__(self, fathom: Fathom, team: Team) -> None:
        self.fathom, self.team = fathom, team

    def document(self, name: str, **spec: Any) -> Json:  # noqa: ANN401 - parts of a job
        """Two CPU workers; data and checkpoints in claims of the namespace."""
        data = {"source": "pvc://data/corpus", "sequenceLength": 32}
        return small_document(
            name, self.team.namespace, **{"data": data, "checkpoint": {"uri": "pvc://runs/one"}} | spec
        )

    def submit(self, document: Json, token: str | None = None) -> httpx2.Response:
        token = self.team.editor if token is None else token
        return self.fathom.ask("POST", "/v1/jobs", token, {"job": document})

    def do(self, method: str, name: str, token: str | None = None, verb: str = "") -> httpx2.Response:
        token = self.team.editor if token is None else token
        path = f"/v1/jobs/{self.team.namespace}/{name}{verb and ':' + verb}"
        return self.fathom.ask(method, path, token)

    def ray_job(self, name: str) -> Json | None:
        return self.fathom.cluster.found(f"{RAY_JOBS.format(self.team.namespace)}/{name}-a1")

    def resource(self, name: str) -> Json | None:
        """The TrainingJob itself."""
        path = f"/apis/fathom.dev/v1alpha1/namespaces/{self.team.namespace}/trainingjobs/{name}"
        return self.fathom.cluster.found(path)

    def of_attempt(self, name: str) -> list[str]:
        """Kinds of all that its first attempt is made of, and is still there."""
        paths = (*SUPPORTING, RAY_JOBS)
        found = self.fathom.cluster.found
        return [p.rsplit("/", 1)[1] for p in paths if found(f"{p.format(self.team.namespace)}/{name}-a1") is not None]

    def wait(self, true: Any, name: str) -> None:  # noqa: ANN401 - anything to call
        """Until it is so; or say how the job stands."""
        wait_until(true, lambda: self.do("GET", name).text, PATIENCE)


def patiently(ask: Callable[[], httpx2.Response]) -> httpx2.Response:
    """Again while the service is not there: its own API server may be slow to answer, or another replica begins."""
    until = time.monotonic() + PATIENCE
    while (answer := ask()).status_code == 503 and time.monotonic() < until:
        time.sleep(0.5)
    return answer


def _restricted(cluster: KubeHome) -> str:
    return cluster.namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})


def _namespace(cluster: KubeHome) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": labels}}
    answer = cluster.client().post("/api/v1/namespaces", json=body)
    assert answer.status_code in (201, 409), answer.text


def _bearer(token: str) -> dict[str, str]:
    """In a header of its own: the API server's proxy takes the usual one away."""
    return {"X-Fathom-Authorization": f"Bearer {token}"} if token else {}
