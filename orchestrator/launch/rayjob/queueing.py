"""What makes Kueue take care of an attempt. Pure.

Nothing here says `suspend`: that field is Kueue's, and without a queue the job shall begin.
"""

from __future__ import annotations

from orchestrator.launch.rayjob import agreed
from orchestrator.launch.rayjob.settings import ClusterSettings
from orchestrator.spec import Queue

_PREFIX = "kueue.x-k8s.io"


def queue_labels(queue: Queue) -> dict[str, str]:
    """Of the RayJob."""
    found = {f"{_PREFIX}/queue-name": queue.name, f"{_PREFIX}/priority-class": queue.priority_class}
    return {key: value for key, value in found.items() if value is not None}


def queue_annotations(queue: Queue) -> dict[str, str]:
    """Of the RayJob. The gate cannot be added later, so that it stands there from the beginning."""
    return {} if queue.name is None else {f"{_PREFIX}/admission-gated-by": agreed.GATE}


def topology_annotations(queue: Queue, settings: ClusterSettings) -> dict[str, str]:
    """Of the workers' pods only: the head needs no place in the domain."""
    topology = settings.topology
    if topology is None or queue.name is None:
        return {}
    how = "required" if topology.required else "preferred"
    return {f"{_PREFIX}/podset-{how}-topology": topology.level}
