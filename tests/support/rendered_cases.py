"""The attempts whose rendering is kept under tests/golden, word for word."""

from __future__ import annotations

from typing import Any

from orchestrator.cost.budget import Reserve
from orchestrator.launch.rayjob import ClusterSettings, Rendered
from support.rendering import IMAGE, rendered, resolved
from support.rendering import job as make

BLOCK = "cloud.provider.com/topology-block"
_IMAGES: dict[str, Any] = {"images": {"train": IMAGE}}


def _mini(**spec: Any) -> Rendered:  # noqa: ANN401 - parts of a document
    """On CPUs, with its text and checkpoints on a volume."""
    spec |= {
        "data": {"source": "pvc://team-a-data/web", "sequenceLength": 256},
        "compute": {"accelerator": "cpu", "workers": 2, "cpuPerWorker": 1, "memoryPerWorker": "2Gi"},
        "storage": {"claim": "team-a-data"},
        "checkpoint": {"uri": "pvc://team-a-data/runs/mini"},
    }
    return rendered(make(**spec))


def _small() -> Rendered:
    """On one machine, so that it needs no network between machines."""
    of = make(
        "small-h100",
        model={"preset": "small-h100"},
        training={"tokens": 20_000_000_000},
        compute={"accelerator": "H100", "gpus": 8, "gpusPerNode": 8, "cpuPerWorker": 8, "memoryPerWorker": "64Gi"},
        storage={"secretRef": "s3-credentials"},
        checkpoint={"uri": "s3://checkpoints/small-h100"},
        budget={"limit": "5000.00"},
        tracking={"experiment": "small-h100", "tags": {"cost-center": "research"}},
    )
    return rendered(of)


def _large() -> Rendered:
    """DeepSeek-V3's own size, admitted by Kueue into one block if there is room; its checkpoints take four minutes."""
    settings = ClusterSettings.model_validate(_IMAGES | {"topology": {"level": BLOCK}})
    of = make(
        "v3",
        namespace="pretraining",
        model={"preset": "v3-671b"},
        training={"tokens": 14_800_000_000_000, "precision": "fp8"},
        compute={"accelerator": "H800", "gpus": 2048, "gpusPerNode": 8},
        storage={"secretRef": "s3-credentials"},
        checkpoint={"uri": "s3://checkpoints/v3"},
        queue={"name": "pretraining", "priorityClass": "high"},
    )
    return rendered(of, settings, resolved=resolved(of, 12, reserve=Reserve(heartbeat=20, save=240)))


def _spot() -> Rendered:
    """On spot machines of a cloud, the third attempt after two bad nodes, with an account of the team's own."""
    settings = ClusterSettings.model_validate(
        _IMAGES
        | {
            "accelerators": {
                "H100": {
                    "place": {
                        "nodeSelector": {"node.kubernetes.io/instance-type": "p5.48xlarge"},
                        "tolerations": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
                    },
                    "cpusPerWorker": 22,
                    "memoryPerWorker": "230Gi",
                    "sharedMemory": "64Gi",
                    "network": "efa",
                }
            },
            "priceClasses": {
                "on-demand": {"nodeSelector": {"karpenter.sh/capacity-type": "on-demand"}},
                "spot": {
                    "nodeSelector": {"karpenter.sh/capacity-type": "spot"},
                    "tolerations": [{"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}],
                },
            },
            "head": {"place": {"nodeSelector": {"karpenter.sh/capacity-type": "on-demand"}}},
            "labels": {"example.com/cost-centre": "4711"},
        }
    )
    of = make(
        "v2-lite",
        model={"preset": "v2-lite-16b"},
        training={"tokens": 1_000_000_000_000},
        compute={
            "accelerator": "H100",
            "gpus": 64,
            "gpusPerNode": 8,
            "priceClass": "spot",
            "serviceAccountName": "trainer",
        },
        checkpoint={"uri": "s3://checkpoints/v2-lite"},
    )
    return rendered(of, settings, attempt=3, suspects=("ip-10-0-1-9.ec2.internal", "ip-10-0-3-7.ec2.internal"))


CASES = {
    "mini-cpu": _mini,
    "mini-kueue": lambda: _mini(queue={"name": "team-a", "priorityClass": "normal"}),
    "small-h100": _small,
    "v3-infiniband": _large,
    "v2-lite-efa-spot": _spot,
}
