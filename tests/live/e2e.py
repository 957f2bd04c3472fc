"""`make e2e`: install Fathom on a cluster with KubeRay, train there, break things, and compare with an undisturbed run.

Needs kubectl, helm and a KUBECONFIG that may install. Images must be where the nodes find them; see docs/kubernetes.md.
Leaves Fathom and its jobs there, to be looked at. Exit 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from live import jobs
from live.cases import CASES, SYSTEM, Outcome, run
from live.kubectl import apply, forwarded, helm, kubectl, listed, read, say, wait
from live.pods import PodWatch
from live.report import faults, page

CHART = Path(__file__).parents[2] / "helm" / "fathom"


def main() -> int:
    options = _options()
    names = ["calm", *(name for name in options.cases.split(",") if name != "calm")]
    _volumes(options)
    _install(options)
    _prepare(options)
    outcomes: list[Outcome] = []
    stamp = time.strftime("%d%H%M%S")  # of each run of this: checkpoints of the one before lie in the same claim
    with PodWatch(options.namespace) as watch:
        for name in names:
            what, disturb = CASES[name]
            say(f"{name}: {what}")
            own = f"{name}-{stamp}"
            job = jobs.training_job(own, options.namespace, options.train_image)
            outcome = run(name, job, disturb, what, watch)
            told = _events(options.namespace, own)
            outcome.losses = {e["step"]: e["metrics"]["train/loss"] for e in told if e["kind"] == "progress"}
            outcome.starts = sum(event["kind"] == "started" for event in told)
            outcomes.append(outcome)
            Path(options.report).write_text(page(outcomes, options.about))
    wrong = list(faults(outcomes))
    print("\n".join([page(outcomes, options.about), *wrong, *([] if wrong else ["all is as it must be"])]))
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-image", required=True)
    parser.add_argument("--controller-image", required=True)
    parser.add_argument("--tracking-image", required=True)
    parser.add_argument("--namespace", default="fathom-e2e", help="of the jobs")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--values", action="append", default=[], help="more values for the chart; repeatable")
    parser.add_argument("--storage-class", help="for the volumes; absent: the cluster's default")
    parser.add_argument("--folder", help="of the node, for a cluster with one node that makes no volumes")
    parser.add_argument("--report", default="e2e.md")
    parser.add_argument("--about", default="", help="a sentence on the cluster, for the report")
    return parser.parse_args()


def _volumes(options: argparse.Namespace) -> None:
    claims = [(options.namespace, jobs.CLAIM), (SYSTEM, "fathom-home"), (SYSTEM, "fathom-mlflow")]
    apply(jobs.namespace_of(options.namespace), jobs.namespace_of(SYSTEM))
    for namespace, name in claims:
        volume = None
        if options.folder:
            volume = f"{namespace}-{name}"
            [node] = [one["metadata"]["name"] for one in listed("nodes", namespace)]
            path = Path(options.folder) / volume
            path.mkdir(parents=True, exist_ok=True)
            apply(jobs.local_volume(volume, str(path), node, namespace, name))
        apply(jobs.claim(namespace, name, options.storage_class, volume))


def _install(options: argparse.Namespace) -> None:
    values = [
        f"images.controller={options.controller_image}",
        f"images.tracking={options.tracking_image}",
        f"images.train={options.train_image}",
        "images.requireDigest=false",
        "persistence.existingClaim=fathom-home",
        "mlflow.volume.existingClaim=fathom-mlflow",
    ]
    more = [word for file in options.values for word in ("-f", file)]
    sets = [word for value in values for word in ("--set", value)]
    helm("upgrade", "--install", "fathom", str(CHART), "-n", SYSTEM, *more, *sets)
    for name in ("fathom-controller", "fathom-mlflow"):
        kubectl("rollout", "status", f"deployment/{name}", "-n", SYSTEM, "--timeout=300s")
    say("Fathom is installed")


def _prepare(options: argparse.Namespace) -> None:
    kubectl("delete", "job", "prepare", "-n", options.namespace, "--ignore-not-found")
    apply(jobs.preparing(options.namespace, options.train_image))
    wait("the dataset is prepared", 900, lambda: _prepared(options.namespace))


def _prepared(namespace: str) -> bool:
    status = read("job", "prepare", namespace)["status"]
    if status.get("failed", 0) > 1:
        raise SystemExit(kubectl("logs", "job/prepare", "-n", namespace, "--tail=20"))
    return bool(status.get("succeeded"))


def _events(namespace: str, name: str) -> list[Any]:
    """All that the training told the controller, over its API with the token of a service account."""
    from orchestrator.client import Client

    account = {
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "e2e-reader", "namespace": namespace},
    }  # fmt: skip
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "e2e-reader", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "e2e-reader", "namespace": namespace}],
    }
    apply(account, binding)
    token = kubectl("create", "token", "e2e-reader", "--audience=fathom", "-n", namespace).strip()
    with forwarded("fathom-controller", 8080, SYSTEM) as url, Client(url, token=token) as client:
        return list(client.events(f"{namespace}/{name}"))


if __name__ == "__main__":
    sys.exit(main())
