"""What is trained, and what stands around it."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
CLAIM = "storage"
TOKENS, BATCH, SEQUENCE = 409_600, 2_048, 256
STEPS = TOKENS // BATCH


def training_job(name: str, namespace: str, image: str) -> Json:
    """The mini preset on two workers, saved often. All jobs are the same but for their names."""
    return {
        "apiVersion": "fathom.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"preset": "mini", "overrides": {"mtpDepth": 0}},
            "data": {"source": f"pvc://{CLAIM}/data", "sequenceLength": SEQUENCE},
            "training": {
                "tokens": TOKENS,
                "globalBatchTokens": BATCH,
                "precision": "fp32",
                "sampleTokens": 0,
                "evaluation": {"everySteps": STEPS, "tokens": 16_384},
            },
            "parallelism": {"expert": 2},
            "compute": {
                "accelerator": "cpu", "workers": 2, "cpuPerWorker": 1, "memoryPerWorker": "2Gi", "image": image,
            },
            "checkpoint": {"uri": f"pvc://{CLAIM}/runs/{name}", "intervalMinutes": 0.25},
            "budget": {"limit": "5.00", "currency": "USD"},
            "tracking": {"experiment": "e2e"},
        },
    }  # fmt: skip


def preparing(namespace: str, image: str) -> Json:
    """The dataset: the standard library of the image's Python, as `make demo` takes it."""
    source = "$(python3 -c 'import sysconfig; print(sysconfig.get_path(\"stdlib\"))')"
    prepare = (
        f"exec python3 -m orchestrator.cli data prepare {source} /data/data --vocab-size 4096 --heldout-share 0.03 "
        "--force --license PSF-2.0 --provenance 'standard library of Python' --include '*.py' "
        "--exclude '*/test/*' --exclude '*/tests/*' --exclude 'site-packages/*' --exclude 'dist-packages/*'"
    )
    secure = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "prepare",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", prepare],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "securityContext": secure,
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "prepare", "namespace": namespace},
        "spec": {
            "backoffLimit": 1,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "securityContext": {"fsGroup": 1000},
                    "containers": [container],
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}}],
                }
            },
        },
    }


def namespace_of(name: str) -> Json:
    """In which only restricted pods are admitted."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def claim(namespace: str, name: str, storage_class: str | None, volume: str | None = None) -> Json:
    """Of 5 GiB; bound to a volume that was made for it, where one is named."""
    spec: Json = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}}
    if volume is not None:
        spec |= {"storageClassName": "", "volumeName": volume}
    elif storage_class is not None:
        spec["storageClassName"] = storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def local_volume(name: str, path: str, node: str, namespace: str, of: str) -> Json:
    """A folder of a node, for a cluster that makes no volumes."""
    matches = [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "5Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": namespace, "name": of},
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": matches}]}},
        },
    }
