"""Samples for a cluster are jobs that its launcher renders with the chart's own settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.helm import DIGEST, Helm, the
from support.rendering import KEY, container, resolved, templates

from orchestrator.jobfile import load_job
from orchestrator.launch.rayjob import ClusterSettings, render

SAMPLES = sorted((Path(__file__).parents[2] / "k8s" / "samples").glob("cluster-*.yaml"))


@pytest.fixture(scope="module")
def settings(helm: Helm) -> ClusterSettings:
    """As the chart installs them if one says no more than the images."""
    objects = helm.rendered({"images": {"train": f"registry.example.com/fathom-train{DIGEST}"}})
    return ClusterSettings.model_validate(
        yaml.safe_load(the(objects, "ConfigMap", "fathom-settings")["data"]["cluster.yaml"])
    )


def test_there_are_some() -> None:
    assert [path.stem for path in SAMPLES] == [
        "cluster-first", "cluster-gpu-first", "cluster-gpu-node", "cluster-queue", "cluster-s3",
    ]  # fmt: skip


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_they_are_rendered(settings: ClusterSettings, path: Path) -> None:
    job = load_job(path)
    made = render(job, resolved(job), settings, signing_key=KEY)
    spec = made.ray_job["spec"]["rayClusterSpec"]
    pods = spec["workerGroupSpecs"][0]["replicas"]
    assert pods == (1 if "gpu" in path.stem else 2)
    queue = made.ray_job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
    assert queue == ("team-a" if path.stem == "cluster-queue" else None)
    workers = container(templates(made)["workers"])
    secrets = [one["secretRef"]["name"] for one in workers.get("envFrom", ())]
    assert secrets == (["s3-credentials"] if path.stem == "cluster-s3" else [])
    assert job.spec.budget is not None
    assert (job.spec.data.source.startswith("pvc://"), job.spec.checkpoint.uri is not None) == (True, True)
