"""What Kueue says of a RayJob: whether it is admitted, and why not. Pure.

Reasons that a newer Kueue may have are passed on as text: only those are told apart that ask for something else.
"""

from __future__ import annotations

from orchestrator.kube.resources import Json
from orchestrator.launch.base import Told
from orchestrator.launch.cluster.kinds import condition, first_line, labels_of, seconds_of
from orchestrator.status import Reason

QUEUE, PRIORITY_CLASS = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
PATIENCE_SECONDS = 15.0
"""For an operator to begin with a RayJob: KubeRay and Kueue took 0.1 s."""
_FOR_QUOTA = ("WaitingForQuota", "NoMatchingFlavor", "ExceedsMaxQuota", "TopologyPlacementFailed",
              "WaitingForPreemptedWorkloads", "Pending")  # fmt: skip


def admission_of(ray_job: Json, workload: Json | None, now: float) -> Told:
    """Whether it may have machines. One that stands in no queue may."""
    queue = labels_of(ray_job).get(QUEUE)
    if queue is None:
        return admission_at_first(None)
    if workload is None:
        return _unseen(ray_job, queue, now)
    if (workload.get("spec") or {}).get("active") is False:
        evicted = condition(workload, "Evicted")
        return Told(False, Reason.DEACTIVATED, _said(evicted) or f"Workload {workload['metadata']['name']}")
    if condition(workload, "Admitted").get("status") == "True":
        return Told(True, Reason.QUEUE_ADMITTED, f"by queue {queue}")
    quota = condition(workload, "QuotaReserved")
    if quota.get("status") == "True":
        said = _said(condition(workload, "Admitted")) or "its admission checks are not done"
        return Told(False, Reason.WAITING_FOR_QUEUE, f"queue {queue} has room for it, and {said}")
    return Told(False, _reason(quota.get("reason", "")), _said(quota) or f"it stands in queue {queue}")


def admission_at_first(queue: str | None) -> Told:
    """Of one that is being made."""
    if queue is None:
        return Told(True, Reason.NO_QUEUE)
    return Told(False, Reason.WAITING_FOR_QUEUE, f"it was put into queue {queue} just now")


def _reason(word: str) -> Reason:
    if word in _FOR_QUOTA:
        return Reason.WAITING_FOR_QUOTA
    told_apart = {"Misconfigured": Reason.QUEUE_MISSING, "Deactivated": Reason.DEACTIVATED}
    return told_apart.get(word, Reason.WAITING_FOR_QUEUE)


def _unseen(ray_job: Json, queue: str, now: float) -> Told:
    """Kueue has made no Workload of it (yet)."""
    created = seconds_of(ray_job["metadata"].get("creationTimestamp"))
    waited = 0.0 if created is None else now - created
    if waited <= PATIENCE_SECONDS:
        return admission_at_first(queue)
    priority = labels_of(ray_job).get(PRIORITY_CLASS)
    mostly = f"mostly because there is no priority class {priority!r}" if priority else "see whether Kueue runs"
    words = f"Kueue has not taken it into queue {queue} since {ray_job['metadata']['creationTimestamp']}, {mostly}"
    return Told(False, Reason.QUEUE_MISSING, f"{words}; `kubectl describe rayjob` shows its events")


def _said(found: Json) -> str:
    reason, message = str(found.get("reason", "")), first_line(str(found.get("message", "")), 800)
    return f"{reason}: {message}" if reason and message else reason or message
