"""One of several replicas, as a process: leads when it may, and writes as fast as it can while it does.

Each write names the state that it follows, as the controller's do. What happens is told on stdout, with the machine's
steady clock: `leads`, `refused`, `released`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from orchestrator.errors import FathomError
from orchestrator.kube.client import Kube
from orchestrator.kube.lease import LeaderLease, LostLease, end_process, steady
from orchestrator.kube.lease_record import Terms
from support.kube_objects import CONFIG_MAPS

TERMS = Terms(duration=9.0, deadline=8.0, period=0.3)
LONG = Terms(duration=300.0, deadline=200.0, period=0.3)
"""Runs out in no test: whoever follows was let."""
BOARD = "board"


def tell(word: str) -> None:
    print(word, steady(), flush=True)


def write(kube: Kube, lease: LeaderLease, namespace: str, identity: str, stop: threading.Event) -> None:
    """On the board, one after the other."""
    target, number = CONFIG_MAPS.at(namespace, BOARD), 0
    version = kube.get(target)["metadata"]["resourceVersion"]
    while not stop.wait(0.01):
        number += 1
        limits = kube.timeouts.within(lease.require())
        change = {"metadata": {"resourceVersion": version}, "data": {"by": identity, "number": str(number)}}
        try:
            version = kube.patch(target, change, "merge", timeouts=limits)["metadata"]["resourceVersion"]
        except FathomError as error:
            tell(f"failed:{type(error).__name__}")


def main(kubeconfig: str, namespace: str, identity: str, terms: str) -> None:
    stop, refused = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    kube = Kube.from_kubeconfig(Path(kubeconfig))

    def lost() -> None:
        refused.wait(120)  # so that the test sees what becomes of the next write
        end_process()

    lease = LeaderLease(kube, namespace, "leader", identity, terms=LONG if terms == "long" else TERMS, on_lost=lost)
    tell("ready")
    if lease.acquire(stop):
        tell("leads")
        try:
            write(kube, lease, namespace, identity, stop)
        except LostLease:
            tell("refused")
            refused.set()
            threading.Event().wait(120)
            os._exit(1)
    lease.release()
    tell("released")


if __name__ == "__main__":
    main(*sys.argv[1:])
