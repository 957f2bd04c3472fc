"""Plays KubeRay, Kueue, scheduler, kubelet and garbage collection on an API server that has none of them.

It writes what they were seen to write (docs/kubernetes.md), in that order, and nothing else; each step when a test asks
for it, but for what happens by itself when something is deleted.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from support.kuberay_objects import stamp

Json = dict[str, Any]

RAY_JOBS = "/apis/ray.io/v1/namespaces/{}/rayjobs"
RAY_CLUSTERS = "/apis/ray.io/v1/namespaces/{}/rayclusters"
WORKLOADS = "/apis/kueue.x-k8s.io/v1beta2/namespaces/{}/workloads"
PODS = "/api/v1/namespaces/{}/pods"
SUPPORTING = (
    "/api/v1/namespaces/{}/serviceaccounts",
    "/api/v1/namespaces/{}/secrets",
    "/api/v1/namespaces/{}/configmaps",
    "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
)
FLICKERS = ("Initializing", "Suspending")
"""States of a RayJob that is suspended from its first moment, before it is said to be."""
_NOBODY = "none"
"""An owner that is always gone."""
_GATE = "kueue.x-k8s.io/admission-gated-by"


class Player:
    """Of one namespace."""

    def __init__(self, client: httpx2.Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self.lingering = 0.0
        """Seconds for which a pod that is deleted goes on; may be changed meanwhile."""
        self.made: dict[str, set[str]] = {}
        """Uids of all RayJobs that there ever were, by name."""
        self._stop = threading.Event()
        self._leaving: dict[str, float] = {}
        self._cleaned = ""
        """The state of the whole server of which everything is cleaned up."""
        self._owners = {_NOBODY}
        """Uids of the RayJobs that there were then; while none of them is gone, nor another owner, nothing is due."""

    # ------------------------------------------------------------------ what there is
    def all(self, path: str) -> list[Json]:
        found: list[Json] = self.client.get(path.format(self.namespace)).json()["items"]
        return found

    def ray_jobs(self) -> list[Json]:
        return self.all(RAY_JOBS)

    def pods(self) -> list[Json]:
        return self.all(PODS)

    def ray_job(self, name: str) -> Json:
        found: Json = self.client.get(f"{RAY_JOBS.format(self.namespace)}/{name}").json()
        return found

    def supporting(self) -> list[str]:
        """Names of what belongs to attempts, beside RayJobs."""
        return [one["metadata"]["name"] for path in SUPPORTING for one in self.all(path)]

    def uids(self) -> set[str]:
        """Of the same, and of RayJobs."""
        return {one["metadata"]["uid"] for path in (*SUPPORTING, RAY_JOBS) for one in self.all(path)}

    # ------------------------------------------------------------------ Kueue
    def queues(
        self, name: str, reason: str = "WaitingForQuota", message: str = "", *, flickers: tuple[str, ...] = FLICKERS
    ) -> None:
        """Its webhook has stored `suspend`; KubeRay flickers, and a cluster name is thrown away."""
        job = self.ray_job(name)
        self._patch(RAY_JOBS, name, {"spec": {"suspend": True}})
        for state in flickers:
            self.says(name, state, rayClusterName=f"{name}-thrown", jobId="thrown")
        self.says(name, "Suspended", rayClusterName=None, jobId=None)
        owner = self._owner(job, "RayJob", "ray.io/v1")
        pod_set = {"name": "head", "count": 1, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}
        body = {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "Workload",
            "metadata": {"name": f"rayjob-{name}-{secrets.token_hex(3)}", "ownerReferences": [owner]},
            "spec": {"active": True, "podSets": [pod_set], "queueName": "q"},
        }
        self._post(WORKLOADS, body)
        why = "AdmissionGated" if self.is_gated(name) else reason
        self.kueue_says(name, "QuotaReserved", "False", why, message)

    def is_gated(self, name: str) -> bool:
        """Whether Kueue would not admit it."""
        return _GATE in (self.ray_job(name)["metadata"].get("annotations") or {})

    def kueue_says(self, name: str, kind: str, status: str, reason: str, message: str = "") -> None:
        """A condition of the RayJob's Workload."""
        [found] = [one for one in self.all(WORKLOADS) if one["metadata"]["name"].startswith(f"rayjob-{name}-")]
        old = [one for one in (found.get("status") or {}).get("conditions") or [] if one["type"] != kind]
        new = {"type": kind, "status": status, "reason": reason, "message": message}
        conditions = [*old, new | {"lastTransitionTime": stamp(time.time())}]
        self._patch(WORKLOADS, found["metadata"]["name"], {"status": {"conditions": conditions}}, "/status")

    def admits(self, name: str) -> None:
        self.kueue_says(name, "QuotaReserved", "True", "QuotaReserved")
        self.kueue_says(name, "Admitted", "True", "Admitted")
        self._patch(RAY_JOBS, name, {"spec": {"suspend": False}})

    def preempts(self, name: str) -> None:
        """The RayJob is Suspended at once; its pods end in their own time."""
        self.kueue_says(name, "Evicted", "True", "Preempted", "Preempted to accommodate a workload (UID: u)")
        self._patch(RAY_JOBS, name, {"spec": {"suspend": True}})
        cluster = self.ray_job(name)["status"]["rayClusterName"]
        self.says(name, "Suspending")
        self._delete(RAY_CLUSTERS, cluster)
        self._owners = {_NOBODY}
        self.says(name, "Suspended", rayClusterName=None, jobId=None, jobStatus=None, message=None)

    # ------------------------------------------------------------------ KubeRay, the scheduler and the kubelet
    def delete_ray_job(self, name: str) -> None:
        """As a person does."""
        self._delete(RAY_JOBS, name)

    def says(self, name: str, state: str, **status: Any) -> None:  # noqa: ANN401 - fields of a status
        self._patch(RAY_JOBS, name, {"status": {"jobDeploymentStatus": state} | status}, "/status")

    def begins(self, name: str) -> str:
        """A Ray cluster whose pods have no node yet; -> its name."""
        job = self.ray_job(name)
        cluster = f"{name}-{secrets.token_hex(3)[:5]}"
        body = {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {"name": cluster, "ownerReferences": [self._owner(job, "RayJob", "ray.io/v1")]},
            "spec": job["spec"]["rayClusterSpec"],
        }
        made = self._post(RAY_CLUSTERS, body)
        self.says(name, "Initializing", rayClusterName=cluster, jobId=cluster, startTime=stamp(time.time()))
        owner, spec = self._owner(made, "RayCluster", "ray.io/v1"), job["spec"]["rayClusterSpec"]
        self._pod(f"{cluster}-head", spec["headGroupSpec"]["template"], owner, cluster, "head")
        group = spec["workerGroupSpecs"][0]
        for number in range(group["replicas"]):
            self._pod(f"{cluster}-worker-{number}", group["template"], owner, cluster, "worker")
        return cluster

    def runs(self, name: str, since: float | None = None) -> str:
        """All pods get their nodes and are ready, the submitter starts, and Ray the driver; -> the Ray cluster.
        `since`: when they got them, unix time; it is now that they do."""
        job = self.ray_job(name)
        cluster = (job.get("status") or {}).get("rayClusterName") or self.begins(name)
        for pod in self.pods():
            if pod["metadata"]["labels"].get("ray.io/cluster") == cluster:
                self.places(pod["metadata"]["name"], since)
        owner = self._owner(job, "RayJob", "ray.io/v1")
        self._pod(f"{name}-submitter", job["spec"]["submitterPodTemplate"], owner, "", "")
        self.places(f"{name}-submitter")
        self.says(name, "Running", jobStatus="RUNNING")
        return str(cluster)

    def places(self, pod: str, since: float | None = None) -> None:
        """It gets a node, and is ready."""
        target = {"apiVersion": "v1", "kind": "Node", "name": "node-1"}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
        answer = self.client.post(f"{PODS.format(self.namespace)}/{pod}/binding", json=body)
        assert answer.status_code == 201, answer.text
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(time.time())}
        placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(since or time.time())}
        self.kubelet_says(pod, {"phase": "Running", "conditions": [ready, placed]})

    def kubelet_says(self, pod: str, status: Json) -> None:
        headers = {"Content-Type": "application/strategic-merge-patch+json"}
        url = f"{PODS.format(self.namespace)}/{pod}/status"
        answer = self.client.patch(url, json={"status": status}, headers=headers)
        assert answer.status_code in (200, 404), answer.text

    def let_go(self, cluster: str, at: float) -> None:
        """Its workers have ended by themselves, at this unix time."""
        state = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": stamp(at)}}
        for pod in self.pods():
            if pod["metadata"]["name"].startswith(f"{cluster}-worker-"):
                name = pod["spec"]["containers"][0]["name"]
                one = {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
                self.kubelet_says(pod["metadata"]["name"], {"phase": "Succeeded", "containerStatuses": [one]})

    def kills_for_memory(self, pod: str) -> None:
        """By the kernel, at the container's limit."""
        [found] = [one for one in self.pods() if one["metadata"]["name"] == pod]
        name = found["spec"]["containers"][0]["name"]
        ended = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": stamp(time.time())}
        status = {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        self.kubelet_says(pod, {"phase": "Failed", "containerStatuses": [status | {"state": {"terminated": ended}}]})

    def ends(self, name: str, job_status: str, reason: str = "", message: str = "") -> None:
        """The driver has ended."""
        state = "Complete" if job_status == "SUCCEEDED" else "Failed"
        self.says(name, state, jobStatus=job_status, endTime=stamp(time.time()), reason=reason, message=message)

    # ------------------------------------------------------------------ what happens by itself
    @contextmanager
    def playing(self) -> Iterator[Player]:
        """What is deleted takes along what it owned; pods end."""
        thread = threading.Thread(target=self._clean, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _clean(self) -> None:
        while not self._stop.wait(0.05):
            self.clean()

    def clean(self) -> list[Json]:
        """What is due of that now, once; -> the RayJobs that there were before."""
        found = self.client.get(RAY_JOBS.format(self.namespace)).json()
        jobs: list[Json] = found["items"]
        for one in jobs:
            self.made.setdefault(one["metadata"]["name"], set()).add(one["metadata"]["uid"])
        if found["metadata"]["resourceVersion"] == self._cleaned:
            return jobs  # nothing was written since, of whatever kind
        there_now = {one["metadata"]["uid"] for one in jobs}
        if self._owners <= there_now and not any(pod["metadata"].get("deletionTimestamp") for pod in self.pods()):
            self._owners, self._cleaned = there_now, str(found["metadata"]["resourceVersion"])
            return jobs  # nobody has lost an owner
        # what is owned, before its owners are asked for
        there = {path: self.all(path) for path in (WORKLOADS, PODS, RAY_CLUSTERS, RAY_JOBS)}
        owners = {one["metadata"]["uid"] for path in (RAY_JOBS, RAY_CLUSTERS) for one in there[path]}
        deleted = False
        for path in (RAY_CLUSTERS, WORKLOADS, PODS):
            for metadata in (one["metadata"] for one in there[path]):
                orphan = all(owner["uid"] not in owners for owner in metadata.get("ownerReferences") or [])
                if orphan and not metadata.get("deletionTimestamp"):
                    self._delete(path, metadata["name"])
                    deleted = True
        for pod in self.pods() if deleted else there[PODS]:
            if pod["metadata"].get("deletionTimestamp"):
                self._end(pod)
        self._cleaned = "" if self._leaving else str(found["metadata"]["resourceVersion"])
        self._owners = {_NOBODY} if deleted else {one["metadata"]["uid"] for one in there[RAY_JOBS]}
        return jobs

    def _end(self, pod: Json) -> None:
        name = pod["metadata"]["name"]
        since = self._leaving.setdefault(name, time.monotonic())
        if time.monotonic() >= since + self.lingering:
            self.client.request("DELETE", f"{PODS.format(self.namespace)}/{name}", json={"gracePeriodSeconds": 0})
            del self._leaving[name]

    # ------------------------------------------------------------------ requests
    def _owner(self, found: Json, kind: str, version: str) -> Json:
        metadata = found["metadata"]
        owner = {"apiVersion": version, "kind": kind, "name": metadata["name"], "uid": metadata["uid"]}
        return owner | {"controller": True}

    def _pod(self, name: str, template: Json, owner: Json, cluster: str, part: str) -> None:
        labels = {"ray.io/cluster": cluster, "ray.io/node-type": part} if cluster else {}
        metadata = template["metadata"] | {"name": name, "ownerReferences": [owner]}
        metadata["labels"] = template["metadata"]["labels"] | labels
        self._post(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})

    def _post(self, path: str, body: Json) -> Json:
        answer = self.client.post(path.format(self.namespace), json=body)
        assert answer.status_code == 201, answer.text
        found: Json = answer.json()
        return found

    def _patch(self, path: str, name: str, change: Json, subresource: str = "") -> None:
        headers = {"Content-Type": "application/merge-patch+json"}
        url = f"{path.format(self.namespace)}/{name}{subresource}"
        answer = self.client.patch(url, json=change, headers=headers)
        assert answer.status_code == 200, answer.text

    def _delete(self, path: str, name: str) -> None:
        answer = self.client.delete(f"{path.format(self.namespace)}/{name}")
        assert answer.status_code in (200, 202, 404), answer.text
