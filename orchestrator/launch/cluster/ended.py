"""How an attempt has ended that left no last word: by its RayJob, its Workload and what was seen of its pods. Pure.

The driver's own `ended` event is the truth of how an attempt went; this is for when there is none. Whether another
attempt follows is `controller.retry`'s to say; here is decided what cannot be cured by one:
- an image that cannot be pulled, and pods that are refused, until the time for the start was over: USER_ERROR, since
  every further try would hold a head for as long. One that finds no node or no quota is tried again (WORKER_LOST);
- what Kueue or the scheduler took away for somebody else: PREEMPTED, which is nobody's blame and counts for nothing;
- what Kueue has put aside for good (its own limit of time, a person): INTERRUPTED, since another attempt would only
  get around that.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.kube.resources import Json
from orchestrator.launch.base import Told
from orchestrator.launch.cluster.kinds import condition, first_line, status_of
from orchestrator.launch.cluster.pods import Clue
from orchestrator.launch.failure import FailureClass, Verdict
from orchestrator.status import Reason

FINAL = ("Complete", "Failed", "ValidationFailed")
"""Of `jobDeploymentStatus`: only these last. A jobStatus of SUCCEEDED alone was seen to be wiped by an eviction."""
_HOPELESS = (Reason.IMAGE_PULL_FAILED, Reason.PODS_REFUSED)
_RANK = (FailureClass.OUT_OF_MEMORY, FailureClass.PREEMPTED)


def verdict_of(ray_job: Json | None, clues: Sequence[Clue], trouble: Told | None) -> Verdict:
    """Of one that has ended; None: its RayJob is gone. `trouble`: what was last in the way of its pods."""
    status = status_of(ray_job)
    state, reason = status.get("jobDeploymentStatus", ""), status.get("reason", "")
    said = first_line(str(status.get("message", "")))
    if state == "ValidationFailed":
        return Verdict(FailureClass.USER_ERROR, f"KubeRay refuses the RayJob for good: {said}")
    if state == "Complete" and status.get("jobStatus") == "STOPPED":
        return Verdict(FailureClass.INTERRUPTED, "somebody has stopped the job in Ray itself")
    if reason == "PreRunningDeadlineExceeded":
        return never_began(trouble, said)
    if (clue := worst(clues)) is not None:
        return Verdict(clue.failure, _after(clue.words, said))
    return Verdict(FailureClass.DRIVER_LOST, _lost(state, reason, said))


def evicted(workload: Json | None, trouble: Told | None) -> Verdict:
    """Of one whose Ray cluster was taken from it while its RayJob stayed."""
    found = condition(workload, "Evicted")
    reason, said = str(found.get("reason", "")), first_line(str(found.get("message", "")))
    words = f"{reason}: {said}" if reason else "its RayJob was suspended"
    if reason == "PodsReadyTimeout":
        return never_began(trouble, words)
    if reason == "NodeFailures":
        return Verdict(FailureClass.WORKER_LOST, f"Kueue gave up on its nodes ({words})")
    if reason.startswith("Deactivated") or ((workload or {}).get("spec") or {}).get("active") is False:
        return Verdict(FailureClass.INTERRUPTED, f"Kueue has put it aside ({words})")
    return Verdict(FailureClass.PREEMPTED, f"Kueue took its machines away ({words})" if reason else words)


def never_began(trouble: Told | None, said: str) -> Verdict:
    """Its pods were not all ready in time."""
    why = said if trouble is None else trouble.message
    hopeless = trouble is not None and trouble.reason in _HOPELESS
    failure = FailureClass.USER_ERROR if hopeless else FailureClass.WORKER_LOST
    return Verdict(failure, f"its pods were not all ready in time: {why}")


def worst(clues: Sequence[Clue]) -> Clue | None:
    """That which explains the end: want of memory, then what was taken away, then a lost node, then an exit."""
    for failure in _RANK:
        if found := [clue for clue in clues if clue.failure is failure]:
            return found[-1]
    lost = [clue for clue in clues if clue.node_lost]
    return next(reversed([*clues, *lost]), None)


def _after(words: str, said: str) -> str:
    return f"{words}; KubeRay says: {said}" if said else words


def _lost(state: str, reason: str, said: str) -> str:
    """Nothing of a pod explains it."""
    match reason:
        case "AppFailed":
            return f"the driver ended without a last word: {said}"
        case "SubmissionFailed":  # also with a jobStatus of RUNNING, which says nothing any more
            return f"Ray's head, or the pod that waits for the driver, was lost: {said}"
        case "JobStatusCheckTimeoutExceeded":
            return f"nobody could reach Ray's head for minutes: {said}"
        case "JobDeploymentStatusTransitionGracePeriodExceeded":
            return "Ray's word on how the driver ended never came, and KubeRay waited for it no longer"
        case "" if state == "Complete":
            return "the driver ended well by Ray's word, and its own never came"
        case "" if state == "":
            return "its RayJob was deleted while it ran, and nobody here had asked for it"
    return f"KubeRay ended it ({reason or state}): {said}"
