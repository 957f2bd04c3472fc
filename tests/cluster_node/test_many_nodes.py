"""2,048 GPUs on pretended nodes, placed by the real scheduler. KubeRay is not there: its pods are made here, of the
RayJob's templates, as many of each group as it asks for; all else of a pod is as our renderer has it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.installed import HEADS, PATIENCE, PLANE, Fathom, Jobs, Team
from support.kube_home import Json, KubeHome
from support.rendering import as_pod, rendered
from support.rendering import job as make
from support.shooting import wait_until

from orchestrator.launch.rayjob import ClusterSettings

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
WORKERS, GPUS = 256, 8
HEAD_NODE = "heads-0"
AVOIDED = "fake-0007"
CLAIM = "data"


@pytest.fixture(scope="module")
def heads(plane: KubeHome) -> str:
    """A node without GPUs, for heads and submitters; -> its name."""
    capacity = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}
    plane.kubectl("apply", "-f", "-", given={
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": HEAD_NODE, "labels": HEADS, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": capacity, "allocatable": capacity},
    })  # fmt: skip
    plane.kubectl("wait", "--for=condition=Ready", f"node/{HEAD_NODE}", "--timeout=300s")
    return HEAD_NODE


V3: Json = {
    "model": {"preset": "v3-671b"},
    "data": {"source": f"pvc://{CLAIM}/web", "sequenceLength": 4096},
    "training": {"tokens": 14_800_000_000_000, "precision": "fp8"},
    "compute": {"accelerator": "H800", "gpus": WORKERS * GPUS, "gpusPerNode": GPUS},
    "storage": {"secretRef": "s3-credentials"},
    "checkpoint": {"uri": "s3://checkpoints/v3"},
}


@pytest.fixture
def emptied(plane: KubeHome) -> Iterator[list[str]]:
    """Namespaces of which all pods are gone when the test ends, however it does."""
    found: list[str] = []
    yield found
    for namespace in found:
        plane.kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=0", "--force", "--wait=false")
        wait_until(lambda: not nodes_of(plane, namespace), lambda: nodes_of(plane, namespace), PATIENCE)  # noqa: B023 - called here


def test_a_job_for_2048_gpus_has_a_node_for_each_worker_pod_and_another_for_its_head(
    on_plane: Fathom, heads: str, emptied: list[str]
) -> None:
    """From the submission to the last pod's end, through the controller."""
    jobs = Jobs(on_plane, Team.of(on_plane.cluster))
    submitted = jobs.submit(jobs.document("v3", **V3))
    assert submitted.status_code == 201, submitted.text
    jobs.wait(lambda: jobs.ray_job("v3"), "v3")
    made = jobs.ray_job("v3")
    assert made is not None
    namespace = jobs.team.namespace
    emptied.append(namespace)
    claim(on_plane.cluster, namespace)
    pods = pods_of(made, owners=True)
    asked = [one["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for one in pods]
    assert Counter(asked) == {str(GPUS): WORKERS, None: 1}
    create(on_plane.cluster, namespace, pods)
    jobs.wait(lambda: placed(on_plane.cluster, namespace), "v3")
    require_spread(on_plane.cluster, namespace, heads)

    # at once: no driver is there that could save
    assert jobs.do("POST", "v3", verb="cancel?force=true").status_code == 200
    jobs.wait(lambda: jobs.of_attempt("v3") == [], "v3")
    jobs.wait(lambda: not nodes_of(on_plane.cluster, namespace), "v3")


def test_a_later_attempt_keeps_away_from_the_node_that_failed(plane: KubeHome, heads: str, emptied: list[str]) -> None:
    """As rendered for its third attempt, which takes all nodes but one: any might be the one, were it not for that."""
    namespace = plane.namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    settings = ClusterSettings.model_validate(PLANE["cluster"] | {"images": PLANE["images"]})
    made = rendered(make("v3", namespace, **V3), settings, attempt=3, suspects=(AVOIDED,))
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": made.name}}
    plane.kubectl("apply", "-n", namespace, "-f", "-", given=account)
    emptied.append(namespace)
    claim(plane, namespace)
    create(plane, namespace, pods_of(made.ray_job, owners=False))
    wait_until(lambda: placed(plane, namespace), lambda: nodes_of(plane, namespace), PATIENCE)
    require_spread(plane, namespace, heads)
    assert AVOIDED not in nodes_of(plane, namespace)["worker"]


def pods_of(ray_job: Json, *, owners: bool) -> list[Json]:
    """As KubeRay makes them, but that the RayJob itself owns them, for there is no RayCluster here."""
    metadata, cluster = ray_job["metadata"], ray_job["spec"]["rayClusterSpec"]
    [workers] = cluster["workerGroupSpecs"]
    groups = [("head", 1, cluster["headGroupSpec"]["template"]), ("worker", workers["replicas"], workers["template"])]
    found = []
    for kind, count, template in groups:
        for number in range(count):
            pod = as_pod(template, f"{metadata['name']}-{kind}-{number}", metadata["namespace"])
            pod["metadata"] |= {"labels": pod["metadata"]["labels"] | {"ray.io/node-type": kind}}
            if owners:
                owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": metadata["name"], "uid": metadata["uid"]}
                pod["metadata"] |= {"ownerReferences": [owner]}
            found.append(pod)
    return found


def claim(cluster: KubeHome, namespace: str) -> None:
    """With the text, bound to a volume that all nodes can mount: the scheduler waits for one that is not."""
    size, modes = {"storage": "1Ti"}, ["ReadWriteMany"]
    volume = {
        "capacity": size, "accessModes": modes, "storageClassName": "", "nfs": {"server": "nfs.invalid", "path": "/"},
        "claimRef": {"namespace": namespace, "name": CLAIM},
    }  # fmt: skip
    own = {"accessModes": modes, "storageClassName": "", "resources": {"requests": size}}
    for kind, metadata, spec in (
        ("PersistentVolume", {"name": f"{namespace}-{CLAIM}"}, volume),
        ("PersistentVolumeClaim", {"name": CLAIM, "namespace": namespace}, own),
    ):
        body = {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}
        cluster.kubectl("apply", "-f", "-", given=body)


def create(cluster: KubeHome, namespace: str, pods: list[Json]) -> None:
    def post(pod: Json) -> int:
        return cluster.client().post(f"/api/v1/namespaces/{namespace}/pods", json=pod).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(post, pods)) == {201}


def nodes_of(cluster: KubeHome, namespace: str) -> dict[str, list[str]]:
    """Where pods of each kind are; of those that have a node."""
    found: dict[str, list[str]] = {}
    for pod in cluster.items(f"/api/v1/namespaces/{namespace}/pods"):
        if node := pod["spec"].get("nodeName"):
            found.setdefault(pod["metadata"]["labels"]["ray.io/node-type"], []).append(node)
    return found


def placed(cluster: KubeHome, namespace: str) -> bool:
    """Whether all have a node."""
    return {kind: len(nodes) for kind, nodes in nodes_of(cluster, namespace).items()} == {"head": 1, "worker": WORKERS}


def require_spread(cluster: KubeHome, namespace: str, heads: str) -> None:
    """One worker pod on a node, all on nodes with GPUs, the head elsewhere."""
    found = nodes_of(cluster, namespace)
    assert found["head"] == [heads]
    assert max(Counter(found["worker"]).values()) == 1
    assert all(re.fullmatch(r"fake-\d{4}", name) for name in found["worker"])
