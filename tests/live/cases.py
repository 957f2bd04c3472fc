"""What is done to a training, and what of it must be as in the training that nobody disturbed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from live.jobs import STEPS
from live.kubectl import Json, kubectl, listed, read, say, wait
from live.pods import PodWatch, Seen

SYSTEM = "fathom-system"
CONTROLLER = "app.kubernetes.io/component=controller"
PATIENCE = 1800.0
DISTURB_FROM, DISTURB_BEFORE = 0.2, 0.6
"""Parts of the run."""
GRACE_SECONDS = 5
"""Of pods that are deleted. With their own, of more than a minute, they would train to the end."""


@dataclass
class Outcome:
    """Of one training."""

    name: str
    what: str
    phase: str = ""
    seconds: float = 0.0
    losses: dict[int, float] = field(default_factory=dict)
    """Training loss by step, the last value that was told."""
    starts: int = 0
    """How often the workers began."""
    status: Json = field(default_factory=dict)
    pods: list[Seen] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    """What was deleted, with the uid, and when."""


Disturb = Callable[[str, str, Outcome], None]


def nothing(_: str, __: str, ___: Outcome) -> None:
    """The one that all others are compared with."""


def delete_worker(job: str, namespace: str, outcome: Outcome) -> None:
    """The first worker pod."""
    _delete(_pod(job, namespace, "worker"), outcome)


def delete_head(job: str, namespace: str, outcome: Outcome) -> None:
    """The pod of driver and Ray's head."""
    _delete(_pod(job, namespace, "head"), outcome)


def suspend(job: str, namespace: str, outcome: Outcome) -> None:
    """Until its pods are gone; then it goes on."""
    _patch(job, namespace, suspend=True)
    outcome.touched.append(f"suspended at {_now()}")
    wait(f"{job} is suspended", 300, lambda: phase_of(job, namespace) == "Suspended")
    wait(f"pods of {job} are gone", 300, lambda: not listed("pods", namespace, f"fathom.dev/job={job}"))
    _patch(job, namespace, suspend=False)
    outcome.touched.append(f"resumed at {_now()}")


def kill_controller(job: str, namespace: str, outcome: Outcome) -> None:
    """At once, and a worker with it: the next controller finds both."""
    for pod in listed("pods", SYSTEM, CONTROLLER):
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        kubectl("delete", "pod", name, "-n", SYSTEM, "--grace-period=0", "--force")
        outcome.touched.append(f"controller {name} ({uid}) killed at {_now()}")
    delete_worker(job, namespace, outcome)


CASES: dict[str, tuple[str, Disturb]] = {
    "calm": ("nothing", nothing),
    "worker": ("a worker pod is deleted", delete_worker),
    "head": ("the head pod is deleted", delete_head),
    "suspend": ("suspended, and resumed", suspend),
    "controller": ("the controller is killed, and a worker pod is deleted", kill_controller),
}


def run(name: str, job: Json, disturb: Disturb, what: str, watch: PodWatch) -> Outcome:
    """Submit, disturb in the middle, wait for the end."""
    outcome, namespace = Outcome(name, what), job["metadata"]["namespace"]
    own = job["metadata"]["name"]
    began = time.monotonic()
    kubectl("create", "-f", "-", given=_text(job))
    if disturb is not nothing:
        wait(f"{own} is in its middle", PATIENCE, lambda: _in_its_middle(own, namespace))
        disturb(own, namespace, outcome)
    wait(f"{own} has ended", PATIENCE, lambda: phase_of(own, namespace) in ("Succeeded", "Failed", "Cancelled"))
    wait(f"pods of {own} are gone", 300, lambda: not listed("pods", namespace, f"fathom.dev/job={own}"))
    outcome.seconds = time.monotonic() - began
    outcome.status = read("trainingjob", own, namespace)["status"]
    outcome.phase, outcome.pods = outcome.status["phase"], watch.of(own)
    return outcome


def phase_of(job: str, namespace: str) -> str:
    return str(read("trainingjob", job, namespace).get("status", {}).get("phase", ""))


def _in_its_middle(job: str, namespace: str) -> bool:
    status = read("trainingjob", job, namespace).get("status", {})
    if status.get("phase") in ("Failed", "Succeeded"):
        raise SystemExit(f"{job} ended before anything was done to it: {status.get('conditions')}")
    step = int(status.get("progress", {}).get("step", 0))
    if step >= DISTURB_BEFORE * STEPS:
        raise SystemExit(f"{job} was at step {step} of {STEPS} when it was looked at: too late to disturb it")
    return step >= DISTURB_FROM * STEPS


def _pod(job: str, namespace: str, kind: str) -> Json:
    found = listed("pods", namespace, f"fathom.dev/job={job},ray.io/node-type={kind}")
    return min(found, key=lambda pod: str(pod["metadata"]["name"]))


def _delete(pod: Json, outcome: Outcome) -> None:
    metadata = pod["metadata"]
    kubectl(
        "delete",
        "pod",
        metadata["name"],
        "-n",
        metadata["namespace"],
        f"--grace-period={GRACE_SECONDS}",
        "--wait=false",
    )
    outcome.touched.append(f"pod {metadata['name']} ({metadata['uid']}) deleted at {_now()}")
    say(outcome.touched[-1])


def _patch(job: str, namespace: str, **spec: Any) -> None:  # noqa: ANN401 - parts of a spec
    kubectl("patch", "trainingjob", job, "-n", namespace, "--type=merge", "-p", _text({"spec": spec}))


def _text(document: Json) -> str:
    import json

    return json.dumps(document)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
