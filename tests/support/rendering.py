"""Attempts to render, what is asked of their pods, and the parts of what came out."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from model.presets import preset
from model.recipe import Checkpointing, Layout
from orchestrator.cost.meter import Rate
from orchestrator.launch.rayjob import ClusterSettings, Rendered, render
from orchestrator.launch.resolve import JobRef, Resolved, TrackingTarget, quantity_bytes
from orchestrator.spec import TrainingJob
from support.recipes import tiny_recipe

Object = dict[str, Any]

UID = "0b3f2c54-6a0e-4d3b-9a55-2f7f6f1f9c11"
DIGEST = "@sha256:" + "5f" * 32
IMAGE = "registry.example.com/ml/fathom-train" + DIGEST
KEY = bytes(range(32))
SETTINGS = ClusterSettings.model_validate({"images": {"train": IMAGE}})


def job(name: str = "mini", namespace: str = "team-a", **spec: Any) -> TrainingJob:  # noqa: ANN401 - parts of a document
    """Two CPU workers that save to a bucket; `spec` replaces whole parts."""
    base: dict[str, Any] = {
        "model": {"preset": "mini"},
        "data": {"source": "s3://data/web"},
        "training": {"tokens": 450_000},
        "compute": {"accelerator": "cpu", "workers": 2, "cpuPerWorker": 1},
        "checkpoint": {"uri": "s3://checkpoints/mini"},
    }
    return TrainingJob.model_validate({"metadata": {"name": name, "namespace": namespace}, "spec": base | spec})


def resolved(of: TrainingJob, attempt: int = 1, **changes: Any) -> Resolved:  # noqa: ANN401 - fields of Resolved
    """As `launch.resolve` would decide it, but for what comes from data, prices and the planner."""
    spec = of.spec
    on_cpu, world = spec.compute.accelerator == "cpu", spec.compute.world_size
    cores = spec.compute.cpu_per_worker or 1
    uri = spec.checkpoint.uri or f"/runs/{of.metadata.name}"
    memory = spec.compute.memory_per_worker
    recipe = tiny_recipe(
        model=preset(spec.model.preset or "mini"),
        data=spec.data.source,
        eval_tasks=tuple(spec.training.evaluation.tasks),
        layout=Layout(world_size=world, expert_parallel=1, micro_batch=4, accumulation=1),
        checkpoint=Checkpointing(uri=uri, interval_seconds=120, keep=3),
        precision="fp32" if on_cpu else "bf16",
        device="cpu" if on_cpu else "cuda",
    )
    rate = Rate(
        per_hour=Decimal(world * 2),
        currency="USD",
        units=world * (cores if on_cpu else 1),
        unit="cpu-hour" if on_cpu else "gpu-hour",
        source="a list",
        date=datetime.date(2026, 6, 1),
    )
    values: dict[str, Any] = {
        "job": JobRef(namespace=of.metadata.namespace, name=of.metadata.name, uid=UID),
        "attempt": attempt,
        "incarnation": f"a{attempt}",
        "recipe": recipe,
        "workers": world,
        "cpus_per_worker": cores,
        "gpus_per_worker": 0 if on_cpu else 1,
        "memory_bytes_per_worker": None if memory is None else quantity_bytes(memory),
        "rate": rate,
        "restarts_without_progress": 2,
        "stall_seconds": 300.0,
        "tracking": TrackingTarget(experiment=spec.tracking.experiment or of.metadata.name, tags=spec.tracking.tags),
        "storage_uri": uri,
        "chosen": (),
    }
    return Resolved.model_validate(values | changes)


def rendered(of: TrainingJob, settings: ClusterSettings = SETTINGS, **arguments: Any) -> Rendered:  # noqa: ANN401
    """The objects of its first attempt, unless `resolved` or `attempt` is given."""
    attempt = arguments.pop("attempt", 1)
    decided = arguments.pop("resolved", None) or resolved(of, attempt)
    return render(of, decided, settings, **({"signing_key": KEY} | arguments))


# Parts


def find(made: Rendered, kind: str) -> Object:
    """The one object of that kind."""
    [found] = [one for one in made.objects if one["kind"] == kind]
    return found


def templates(made: Rendered) -> dict[str, Object]:
    """Pod templates: head, workers, submitter."""
    spec = made.ray_job["spec"]
    cluster = spec["rayClusterSpec"]
    [workers] = cluster["workerGroupSpecs"]
    return {
        "head": cluster["headGroupSpec"]["template"],
        "workers": workers["template"],
        "submitter": spec["submitterPodTemplate"],
    }


def container(template: Object) -> Object:
    """The only one of a pod."""
    [found] = template["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(template: Object) -> dict[str, str]:
    """Of its container, what is written there."""
    return {one["name"]: one["value"] for one in container(template)["env"] if "value" in one}


def as_pod(template: Object, name: str, namespace: str) -> Object:
    """The pod that KubeRay makes of a template; only its command is missing."""
    metadata = template["metadata"] | {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def values(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any JSON value
    """Every leaf with its path."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield from values(child, f"{path}/{key}")
    elif isinstance(node, (list, tuple)):
        for number, child in enumerate(node):
            yield from values(child, f"{path}/{number}")
    else:
        yield path, node


def commands(node: Any) -> Iterator[Any]:  # noqa: ANN401 - any JSON value
    """All that a pod or Ray would execute, or hand to a shell."""
    shells = ("command", "args", "entrypoint", "runtimeEnvYAML", "entrypointResources", "rayStartParams")
    if isinstance(node, dict):
        for key, child in node.items():
            if key in shells:
                yield child
            else:
                yield from commands(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from commands(child)


def restricted(spec: Object) -> list[str]:
    """What Pod Security `restricted` has against a pod, by its published table; the API server has the last word."""
    wrong = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    wrong += [f"volume {v['name']}" for v in spec.get("volumes", []) if not set(v) - {"name"} <= _VOLUMES]
    for one in [*spec["containers"], *spec.get("initContainers", [])]:
        security = one.get("securityContext", {})
        expected = {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
        wrong += [f"{one['name']}.{key}" for key, value in expected.items() if security.get(key) != value]
        wrong += [f"{one['name']}.user"] if security.get("runAsUser", 0) == 0 else []
        wrong += [f"{one['name']}.seccomp"] if security.get("seccompProfile") != {"type": "RuntimeDefault"} else []
        wrong += [f"{one['name']}.privileged"] if security.get("privileged") else []
        wrong += [f"{one['name']}.hostPort" for port in one.get("ports", []) if port.get("hostPort")]
    return wrong


_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
