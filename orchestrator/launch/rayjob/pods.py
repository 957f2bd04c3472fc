"""The three kinds of pods of an attempt: head with driver, workers, submitter. Pure.

Every container meets Pod Security `restricted` (https://kubernetes.io/docs/concepts/security/pod-security-standards/),
and so does the one that KubeRay adds, which copies its worker. No pod gets a token for the Kubernetes API. No command
but those of the hooks is set here: KubeRay makes it from `rayStartParams`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.launch.rayjob import agreed
from orchestrator.launch.rayjob.hooks import grace_seconds, head_hook, worker_hook
from orchestrator.launch.rayjob.names import Object
from orchestrator.launch.rayjob.placement import Place
from orchestrator.launch.rayjob.settings import ClusterSettings
from orchestrator.launch.rayjob.shape import Shape, head_memory

USER = 1000
"""And group, also of mounted volumes; the image needs no entry for it."""

_SECURE = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsGroup": USER,
    "runAsNonRoot": True,
    "runAsUser": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_STAY = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
"""Autoscalers do not move these pods to save a node: each of them ends the attempt, or its pace."""
_PLAIN_ENV = {"HOME": agreed.HOME, "LOGNAME": "fathom", "USER": "fathom"}
_TRAINING_ENV = {
    "PYTHONUNBUFFERED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's monitor would kill Train's own helpers first, which ends the run for good
    "RAY_memory_monitor_refresh_ms": "0",
}
_NO_GPU_ENV = {"NVIDIA_VISIBLE_DEVICES": "void"}
"""CUDA images say "all", which on a GPU node gives them to a pod that asked for none, where NVIDIA's runtime is the
default (github.com/NVIDIA/k8s-device-plugin, README)."""
_SHARED_MEMORY_OF_HEAD = "256Mi"


@dataclass(frozen=True)
class Common:
    """What pods of an attempt share."""

    name: str
    """Of the attempt's objects."""
    image: str
    labels: Mapping[str, str]
    service_account: str
    secret_ref: str | None
    """With the credentials of an object store."""
    claims: Sequence[str]
    suspects: Sequence[str]
    """Nodes that earlier attempts have failed on: it runs elsewhere if it can."""
    stop_seconds: int
    settings: ClusterSettings


def head_pod(common: Common, shape: Shape) -> Object:
    """Template of the pod with Ray's head and the driver."""
    head = common.settings.head
    memory = head_memory(common.settings, shape.pods)
    container = _ray_container(common, "ray-head", head_hook(common.stop_seconds), _NO_GPU_ENV) | {
        "resources": {
            "limits": {"memory": memory},
            "requests": {"cpu": _cores(head.cpus, common.settings), "memory": memory},
        },
    }
    return _ray_pod(common, container, head.place, _SHARED_MEMORY_OF_HEAD, _STAY)


def worker_pod(common: Common, shape: Shape, annotations: Mapping[str, str]) -> Object:
    """Template of a pod with workers; `annotations` are about its place."""
    env = dict(shape.network.env) if shape.gpus else {**shape.network.env, **_NO_GPU_ENV}
    devices = {name: str(count) for name, count in sorted(shape.devices.items())}
    container = _ray_container(common, "ray-worker", worker_hook(common.stop_seconds), env) | {
        "resources": {
            "limits": {"memory": shape.memory} | devices,
            "requests": {"cpu": _cores(shape.cpus, common.settings), "memory": shape.memory} | devices,
        },
    }
    notes = {**_STAY, **shape.network.annotations, **annotations}
    template = _ray_pod(common, container, shape.place, shape.machine.shared_memory, notes)
    if shape.machine.runtime_class is not None:
        template["spec"]["runtimeClassName"] = shape.machine.runtime_class
    return template


def submitter_pod(common: Common) -> Object:
    """Template of the pod that hands the driver to Ray. It gets no token, no configuration and no credentials."""
    of = common.settings.submitter
    container = {
        "name": "ray-job-submitter",
        **_image(common),
        "env": _variables(_PLAIN_ENV | _NO_GPU_ENV),
        "resources": {
            "limits": {"memory": of.memory},
            "requests": {"cpu": f"{of.cpu_millis}m", "memory": of.memory},
        },
        "securityContext": _SECURE,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {
        **_pod(common, common.settings.head.place),
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
    }
    return {"metadata": {"labels": dict(common.labels), "annotations": dict(_STAY)}, "spec": spec}


# Parts


def _cores(number: int, settings: ClusterSettings) -> str:
    return str(number) if settings.cpu_share == 1 else f"{math.ceil(number * 1000 * settings.cpu_share)}m"


def _ray_pod(common: Common, container: Object, place: Place, shared: str, annotations: Mapping[str, str]) -> Object:
    spec = {
        **_pod(common, place),
        "containers": [container],
        "terminationGracePeriodSeconds": grace_seconds(common.stop_seconds, common.settings.stopping),
        "volumes": _volumes(common, shared),
    }
    return {"metadata": {"labels": dict(common.labels), "annotations": dict(annotations)}, "spec": spec}


def _pod(common: Common, place: Place) -> Object:
    """What every pod has. One that failed is not started again where it is: KubeRay makes another, maybe elsewhere."""
    settings = common.settings
    found: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "securityContext": {
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",  # a claim with a million files is not gone through at each start
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "serviceAccountName": common.service_account,
    }
    if settings.images.pull_secrets:
        found["imagePullSecrets"] = [{"name": name} for name in settings.images.pull_secrets]
    if settings.priority_class is not None:
        found["priorityClassName"] = settings.priority_class
    if place.node_selector:
        found["nodeSelector"] = dict(place.node_selector)
    if place.tolerations:
        found["tolerations"] = [one.document() for one in place.tolerations]
    if common.suspects:
        preferred = [{"weight": 100, "preference": _none_of(common.suspects)}]
        found["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    return found


def _none_of(nodes: Sequence[str]) -> Object:
    """By their names, not by a label that might say something else; a requirement on a field takes one value."""
    return {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]}


def _ray_container(common: Common, name: str, hook: list[str], env: Mapping[str, str]) -> Object:
    found: Object = {
        "name": name,
        **_image(common),
        "env": _variables({**env, **_PLAIN_ENV, **_TRAINING_ENV, **_agreed_env(common)}) + _from_the_pod(),
        "lifecycle": {"preStop": {"exec": {"command": hook}}},
        "securityContext": _SECURE,
        "volumeMounts": _mounts(common),
    }
    if common.secret_ref is not None:
        found["envFrom"] = [{"secretRef": {"name": common.secret_ref}}]  # what stands in `env` wins
    return found


def _image(common: Common) -> Object:
    return {"image": common.image, "imagePullPolicy": common.settings.images.pull_policy}


def _agreed_env(common: Common) -> dict[str, str]:
    controller = common.settings.controller
    found = {
        "FATHOM_CONTROLLER_URL": controller.url,
        "FATHOM_HOME": agreed.RUN,
        "FATHOM_SIGNING_KEY_FILE": f"{agreed.CONFIGURATION}/{agreed.SIGNING_KEY}",
        "FATHOM_STOP_SECONDS": str(common.stop_seconds),
        "FATHOM_TOKEN_FILE": f"{agreed.TOKEN_FOLDER}/{agreed.TOKEN}",
        # Ray Train gives up a group of workers that has not started in a minute; images of 20 GB take longer
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(common.settings.start_seconds),
    }
    if controller.certificate_authority is not None:
        found["FATHOM_CONTROLLER_CA"] = f"{agreed.CONFIGURATION}/{agreed.AUTHORITY}"
    return found


def _variables(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in sorted(values.items())]


def _from_the_pod() -> list[dict[str, Any]]:
    """What is only known when the pod exists."""
    fields = {
        "FATHOM_INCARNATION": "metadata.labels['ray.io/cluster']",
        "FATHOM_NODE": "spec.nodeName",
        "FATHOM_POD": "metadata.name",
    }
    return [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]


def _mounts(common: Common) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "configuration", "mountPath": agreed.CONFIGURATION, "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "token", "mountPath": agreed.TOKEN_FOLDER, "readOnly": True},
    ]
    claims = enumerate(common.claims)
    return mounts + [{"name": f"claim-{n}", "mountPath": f"{agreed.CLAIMS}/{claim}"} for n, claim in claims]


def _volumes(common: Common, shared: str) -> list[dict[str, Any]]:
    settings = common.settings
    sources = [{"configMap": {"name": common.name}}, {"secret": {"name": common.name}}]
    token = {
        "audience": settings.controller.token_audience,
        "expirationSeconds": settings.controller.token_seconds,
        "path": agreed.TOKEN,
    }
    volumes: list[dict[str, Any]] = [
        {"name": "configuration", "projected": {"defaultMode": 0o440, "sources": sources}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": shared}},
        {"name": "tmp", "emptyDir": {"sizeLimit": settings.temporary_storage}},
        {"name": "token", "projected": {"defaultMode": 0o440, "sources": [{"serviceAccountToken": token}]}},
    ]
    claims = enumerate(common.claims)
    return volumes + [{"name": f"claim-{n}", "persistentVolumeClaim": {"claimName": claim}} for n, claim in claims]
