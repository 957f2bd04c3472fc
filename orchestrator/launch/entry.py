"""The driver of one attempt: starts Ray, runs the workers, writes how it ended.

`python -m ... RUN_FOLDER ATTEMPT [LOCK]`. Fixed entry point: everything it needs stands in the resolved configuration,
no user string reaches a shell. It holds the run's lock while it lives (LOCK: the descriptor that was locked
for it), obeys the control file, SIGTERM and its own deadline. `launch.guard` watches it.
`python -m ... --cluster FOLDER` is the driver in the pod of Ray's head; see `launch.pods`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from orchestrator.launch.attempt import RAY_ENV, Terminated, fit, how_it_ended, own_reporter
from orchestrator.launch.attempt import obey_sigterm as _obey_sigterm
from orchestrator.launch.base import RunFolder
from orchestrator.launch.deadline import DeadlineGuard
from orchestrator.launch.ending import Ending, last_step
from orchestrator.launch.events import FailureClass
from orchestrator.launch.guard import Guard
from orchestrator.launch.local import hold_lock, keep_lock
from orchestrator.launch.machine import LoadMeter
from orchestrator.launch.reporter import FileReporter
from orchestrator.launch.resolve import Resolved, read_resolved

OBJECT_STORE_BYTES = 100 * 2**20
"""Training moves nothing through Ray's object store."""


def main(arguments: list[str]) -> int:
    """0 if the attempt succeeded or stopped as ordered, 1 otherwise."""
    if arguments[0] == "--cluster":
        from orchestrator.launch.pods.driver import run_in_pod

        return run_in_pod(Path(arguments[1]))
    folder, attempt = RunFolder(Path(arguments[0])), int(arguments[1])
    resolved = read_resolved(folder.resolved(attempt))
    with keep_lock(int(arguments[2]), folder.lock, attempt) if arguments[2:] else hold_lock(folder.lock, attempt):
        ending = Ending(folder, resolved)
        outcome, failure, message = _attempt(folder, resolved, ending)
        ending.write(outcome, failure, message)
    return 0 if outcome != "failed" else 1


def _attempt(folder: RunFolder, resolved: Resolved, ending: Ending) -> tuple[str, FailureClass | None, str]:
    """-> outcome, failure class, message."""
    terminated = Terminated(folder)
    terminated.start()
    _obey_sigterm(terminated)
    reporter = own_reporter(folder, resolved)
    DeadlineGuard(reporter, ending).start()
    Guard(folder, resolved, reporter, ending).start()
    LoadMeter(reporter).start()
    error: Exception | None = None
    try:
        _train(resolved, reporter, terminated)
    except Exception as caught:  # noqa: BLE001 - whatever ended Ray Train must become an `ended` event
        error = caught
    return how_it_ended(resolved, reporter, error, last_step(folder, resolved))


def _train(resolved: Resolved, reporter: FileReporter, terminated: Terminated) -> None:
    os.environ |= RAY_ENV
    import ray

    from model.train import train_worker

    ray.init(
        address="local",
        num_cpus=resolved.workers * resolved.cpus_per_worker,
        num_gpus=resolved.workers * resolved.gpus_per_worker,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    _obey_sigterm(terminated)  # ray.init puts its own handler there, which ends the process
    try:
        fit(resolved, reporter, reporter, reporter.root / "ray", train_worker)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
