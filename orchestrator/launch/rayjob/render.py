"""A decided attempt, and a cluster's settings -> the objects that run it. Pure; knows neither the client nor Ray.

Called by the controller, which creates the objects once, in their order, and never applies them again: KubeRay and
Kueue write into a RayJob, too. Invariants: the same arguments give the same objects; names say job and attempt; no text
of a user is part of a command, all of it is in the mounted configuration.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import InvalidJob, Problem
from orchestrator.launch.rayjob import agreed
from orchestrator.launch.rayjob.claims import for_pods
from orchestrator.launch.rayjob.hooks import stop_seconds
from orchestrator.launch.rayjob.isolation import network_policy
from orchestrator.launch.rayjob.names import Object, attempt_name, content_hash, labels, owner
from orchestrator.launch.rayjob.pods import Common, head_pod, submitter_pod, worker_pod
from orchestrator.launch.rayjob.queueing import queue_annotations, queue_labels, topology_annotations
from orchestrator.launch.rayjob.settings import Allowed, ClusterSettings
from orchestrator.launch.rayjob.shape import Shape, worker_shape
from orchestrator.launch.resolve import Resolved
from orchestrator.spec import TrainingJob

MAX_CONFIGURATION_BYTES = 2**20
"""Of a ConfigMap: https://kubernetes.io/docs/concepts/configuration/configmap/."""
OBJECT_STORE_BYTES = 100_000_000
"""Training moves nothing through Ray's object store."""
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Rendered:
    """What runs an attempt."""

    namespace: str
    name: str
    """Of each object."""
    content_hash: str
    """Label of each object: of everything in them."""
    supporting: tuple[Object, ...]
    """What has to be there before."""
    ray_job: Object

    @property
    def objects(self) -> tuple[Object, ...]:
        """All, in the order in which they are created."""
        return (*self.supporting, self.ray_job)


def render(
    job: TrainingJob,
    resolved: Resolved,
    settings: ClusterSettings,
    *,
    signing_key: bytes,
    suspects: Sequence[str] = (),
) -> Rendered:
    """The objects of one attempt. `signing_key` is the job's, the same for all its attempts; `suspects` are nodes
    on which it does not run if it can run elsewhere.

    InvalidJob for what this cluster's settings do not allow: every reason, each with its field.
    """
    name = attempt_name(resolved.job.name, resolved.attempt)
    inside, claims, problems = for_pods(job, resolved)
    shape = worker_shape(job, resolved, settings)
    image, refused = _image(job, settings)
    problems = [*problems, *refused, *_queue(job), *_not_allowed(job, settings.allowed)]
    if not isinstance(shape, Shape):
        raise InvalidJob([*problems, *shape])
    if problems:
        raise InvalidJob(problems)
    common = Common(
        name=name,
        image=image,
        labels=labels(job, resolved, settings.labels),
        service_account=job.spec.compute.service_account_name or name,
        secret_ref=job.spec.storage.secret_ref,
        claims=claims,
        suspects=suspects,
        stop_seconds=stop_seconds(resolved.reserve, settings.stopping),
        settings=settings,
    )
    metadata = {
        "name": name,
        "namespace": resolved.job.namespace,
        "labels": dict(common.labels),
        "ownerReferences": [owner(resolved)],
    }
    supporting = _supporting(job, metadata, common, inside, signing_key)
    ray_job = _ray_job(job, metadata, common, shape)
    digest = content_hash([*supporting, ray_job])
    for one in (*supporting, ray_job):
        one["metadata"] = one["metadata"] | {"labels": one["metadata"]["labels"] | {agreed.CONTENT_HASH: digest}}
    return Rendered(resolved.job.namespace, name, digest, tuple(supporting), ray_job)


def _ray_job(job: TrainingJob, metadata: Object, common: Common, shape: Shape) -> Object:
    """One that KubeRay tries once: attempts are ours to count, and to tell apart."""
    queue, settings = job.spec.queue, common.settings
    annotations = {"ray.io/disable-provisioned-head-restart": "true"} | queue_annotations(queue)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata | {"annotations": annotations, "labels": metadata["labels"] | queue_labels(queue)},
        "spec": {
            "backoffLimit": 0,
            "entrypoint": agreed.ENTRYPOINT,  # without resources of its own, so that Ray runs it on the head
            "preRunningDeadlineSeconds": settings.start_seconds,  # begins anew at each admission
            "rayClusterSpec": {
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    "rayStartParams": _start(0, 0) | {"dashboard-host": "0.0.0.0"},
                    "template": head_pod(common, shape),
                },
                "rayVersion": settings.ray_version,
                "workerGroupSpecs": [_workers(job, common, shape)],
            },
            "shutdownAfterJobFinishes": True,
            "submissionMode": "K8sJobMode",
            "submitterConfig": {"backoffLimit": 0},
            "submitterPodTemplate": submitter_pod(common),
            "ttlSecondsAfterFinished": settings.finished_seconds,
        },
    }


def _workers(job: TrainingJob, common: Common, shape: Shape) -> Object:
    return {
        "groupName": "workers",
        "maxReplicas": shape.pods,
        "minReplicas": shape.pods,
        "rayStartParams": _start(shape.ray_cpus, shape.gpus),
        "replicas": shape.pods,
        "template": worker_pod(common, shape, topology_annotations(job.spec.queue, common.settings)),
    }


def _start(cpus: int, gpus: int) -> dict[str, str]:
    return {"num-cpus": str(cpus), "num-gpus": str(gpus), "object-store-memory": str(OBJECT_STORE_BYTES)}


def _supporting(
    job: TrainingJob, metadata: Object, common: Common, resolved: Resolved, signing_key: bytes
) -> list[Object]:
    """In the order of their creation. A service account where the job names none: with it the attempt's tokens go."""
    settings = common.settings
    found: list[Object] = []
    if job.spec.compute.service_account_name is None:
        found.append(
            {
                "apiVersion": "v1",
                "automountServiceAccountToken": False,
                "kind": "ServiceAccount",
                "metadata": dict(metadata),
            }
        )
    if settings.isolation.enabled:
        pods = {key: common.labels[key] for key in (agreed.JOB_UID, agreed.ATTEMPT)}
        found.append(network_policy(dict(metadata), pods, settings))
    key = base64.b64encode(signing_key).decode()
    secret = {"apiVersion": "v1", "data": {agreed.SIGNING_KEY: key}, "immutable": True, "kind": "Secret"}
    configuration = {
        "apiVersion": "v1",
        "data": _configuration(job, resolved, settings),
        "immutable": True,
        "kind": "ConfigMap",
        "metadata": dict(metadata),
    }
    return [*found, secret | {"metadata": dict(metadata), "type": "Opaque"}, configuration]


def _configuration(job: TrainingJob, resolved: Resolved, settings: ClusterSettings) -> dict[str, str]:
    document = json.dumps(job.document(), indent=1, sort_keys=True)
    data = {agreed.JOB_DOCUMENT: document, agreed.RESOLVED: resolved.model_dump_json(indent=1)}
    if settings.controller.certificate_authority is not None:
        data[agreed.AUTHORITY] = settings.controller.certificate_authority
    size = sum(len(name) + len(text.encode()) for name, text in data.items())
    if size > MAX_CONFIGURATION_BYTES:
        message = (
            f"decided in full it takes {size} bytes, and a ConfigMap holds {MAX_CONFIGURATION_BYTES}: shorten "
            "tracking.tags, data.mixture or training.evaluation.tasks, or the history of prices"
        )
        raise InvalidJob([Problem("spec", message)])
    return data


def _image(job: TrainingJob, settings: ClusterSettings) -> tuple[str, list[Problem]]:
    """-> the image of all pods, and what is wrong with it."""
    images, field = settings.images, "spec.compute.image"
    image = job.spec.compute.image or images.train
    if image is None:
        return "", [Problem(field, "is absent, and this cluster's settings have none (images.train): name an image")]
    problems = []
    if images.require_digest and not _DIGEST.search(image):
        message = (
            f"{image!r} is not named by digest, which this cluster requires: write NAME@sha256:..., with 64 digits"
        )
        problems.append(Problem(field, message))
    if images.allowed and not any(_begins(image, one) for one in images.allowed):
        message = f"{image!r} is not allowed on this cluster: names are those of {' or '.join(images.allowed)}"
        problems.append(Problem(field, message))
    return image, problems


def _begins(image: str, allowed: str) -> bool:
    """Up to a border of its parts: registry.example.com is not registry.example.com.elsewhere.org."""
    rest = image.removeprefix(allowed)
    return image.startswith(allowed) and (allowed[-1] == "/" or rest[:1] in ("", "/", ":", "@"))


def _not_allowed(job: TrainingJob, allowed: Allowed) -> list[Problem]:
    """What it names that pods of this cluster may not use."""
    named = (
        ("compute.serviceAccountName", job.spec.compute.service_account_name, allowed.service_accounts),
        ("storage.secretRef", job.spec.storage.secret_ref, allowed.secrets),
        ("queue.priorityClass", job.spec.queue.priority_class, allowed.priority_classes),
    )
    return [
        Problem(f"spec.{field}", f"is {name!r}, which jobs of this cluster may not name: use {' or '.join(names)}")
        for field, name, names in named
        if name is not None and names and name not in names
    ]


def _queue(job: TrainingJob) -> list[Problem]:
    queue = job.spec.queue
    if queue.priority_class is None:
        return []
    if queue.name is None:
        message = f"is {queue.priority_class!r}, but the job waits in no queue: name one in queue.name, or remove it"
        return [Problem("spec.queue.priorityClass", message)]
    if len(queue.priority_class) > 63:
        message = (
            f"has {len(queue.priority_class)} characters, a label of Kueue takes 63: use a class with a shorter name"
        )
        return [Problem("spec.queue.priorityClass", message)]
    return []
