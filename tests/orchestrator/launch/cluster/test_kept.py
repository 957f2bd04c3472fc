"""What caches keep of objects of attempts: all that is read, and little else."""

from __future__ import annotations

import json

from support.kuberay_objects import pod, ray_cluster, workload
from support.rendering import job, rendered, templates

from orchestrator.kube.resources import Json, Target
from orchestrator.launch.cluster.kinds import PODS, RAY_CLUSTERS, RAY_JOBS, WORKLOADS, kept
from orchestrator.launch.cluster.sight import wanted


def size(found: Json) -> int:
    return len(json.dumps(found))


def test_templates_of_pods_are_not_kept() -> None:
    made = rendered(job())
    found = made.ray_job | {"status": {"jobDeploymentStatus": "Running"}}
    small = kept(RAY_JOBS, found)
    assert size(found) > 4 * size(small)
    assert wanted(small) == wanted(found) == 2
    assert (small["metadata"], small["status"]) == (found["metadata"], found["status"])
    cluster = ray_cluster() | {"spec": made.ray_job["spec"]["rayClusterSpec"]}
    assert kept(RAY_CLUSTERS, cluster) == ray_cluster() | {"spec": {}}
    queued = workload()
    queued["spec"] |= {"podSets": [{"template": one} for one in templates(made).values()]}
    assert kept(WORKLOADS, queued) == workload()


def test_of_a_pod_its_limits_and_its_node_are_kept() -> None:
    found = pod()
    found["metadata"]["managedFields"] = [{"manager": "kubelet"}]
    found["spec"]["containers"][0] |= {"env": [{"name": "A", "value": "B"}], "image": "x"}
    found["spec"]["containers"][0]["resources"]["requests"] = {"cpu": "1"}
    assert kept(PODS, found) == pod()


def test_what_is_strange_does_not_break_it() -> None:
    for target in (RAY_JOBS, RAY_CLUSTERS, PODS, WORKLOADS):
        for spec in ({}, {"containers": None}, {"rayClusterSpec": None}, {"containers": [None, "x"]}):
            strange(target, spec)


def strange(target: Target, spec: Json) -> None:
    found = {"metadata": {"name": "x"}, "spec": spec}
    assert kept(target, found)["metadata"] == {"name": "x"}
    assert kept(target, {"metadata": {"name": "x"}}) == {"metadata": {"name": "x"}}
