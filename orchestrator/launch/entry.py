"""The driver of one attempt: starts Ray, runs the workers, writes how it ended.

`python -m ... RUN_FOLDER ATTEMPT [LOCK]`. Fixed entry point: everything it needs stands in the resolved configuration,
no user string reaches a shell. It holds the run's lock while it lives (LOCK: the descriptor that was locked
for it), obeys the control file, SIGTERM and its own deadline. `launch.guard` watches it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from model.checkpoint import Identity
from orchestrator.launch.base import RunFolder
from orchestrator.launch.control import amend_control, hard_deadline
from orchestrator.launch.deadline import DeadlineGuard
from orchestrator.launch.ending import Ending, last_step
from orchestrator.launch.events import CheckpointAndStop, FailureClass
from orchestrator.launch.guard import Guard
from orchestrator.launch.local import hold_lock, keep_lock
from orchestrator.launch.machine import LoadMeter
from orchestrator.launch.reporter import FileReporter
from orchestrator.launch.resolve import Resolved, read_resolved
from orchestrator.settings import Settings

GRACE_SECONDS = 60.0
"""Longest time that a final checkpoint and the end of the workers may take."""
OBJECT_STORE_BYTES = 100 * 2**20
"""Training moves nothing through Ray's object store."""


def main(arguments: list[str]) -> int:
    """0 if the attempt succeeded or stopped as ordered, 1 otherwise."""
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
    reporter = _reporter(folder, resolved)
    DeadlineGuard(reporter, ending).start()
    Guard(folder, resolved, reporter, ending).start()
    LoadMeter(reporter).start()
    error: Exception | None = None
    try:
        _train(resolved, reporter, terminated)
    except Exception as caught:  # noqa: BLE001 - whatever ended Ray Train must become an `ended` event
        error = caught
    return how_it_ended(resolved, reporter, error, last_step(folder, resolved))


def how_it_ended(
    resolved: Resolved, reporter: FileReporter, error: Exception | None, last: int | None
) -> tuple[str, FailureClass | None, str]:
    """-> outcome, failure class, message. A worker's own word first; then what Ray says; then what was ordered."""
    if (said := reporter.failure()) is not None:
        return "failed", *said
    if error is not None:
        if type(error).__name__ in ("WorkerGroupError", "TrainingFailedError"):
            return "failed", FailureClass.WORKER_LOST, str(error)
        return "failed", FailureClass.UNKNOWN, f"{type(error).__name__}: {error}"
    steps = resolved.recipe.steps
    if last == steps:
        return "succeeded", None, ""
    if (stop := reporter.stop_requested()) is None:
        return "failed", FailureClass.UNKNOWN, f"the workers ended at step {last} of {steps}, and nobody had said so"
    over_budget = stop.reason == "over-budget"
    return "stopped", FailureClass.OVER_BUDGET if over_budget else FailureClass.INTERRUPTED, stop.reason


def _reporter(folder: RunFolder, resolved: Resolved) -> FileReporter:
    """With the job's own deadline, which holds even if nobody watches."""
    began = psutil.Process().create_time()  # from when on it is paid for
    until = resolved.deadlines(began)
    deadline = None if until is None else hard_deadline(0, resolved.incarnation, until)
    return FileReporter(
        folder.root, resolved.job.uid, resolved.attempt, resolved.incarnation, deadline=deadline, began=began
    )


def _train(resolved: Resolved, reporter: FileReporter, terminated: Terminated) -> None:
    os.environ |= {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's monitor would kill Train's own helpers first, which ends the run for good
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less: nobody drains the only node
    }
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from model.train import Assignment, train_worker
    from orchestrator.launch.losses import TellLosses

    cpus, gpus = resolved.cpus_per_worker, resolved.gpus_per_worker
    ray.init(
        address="local",
        num_cpus=resolved.workers * cpus,
        num_gpus=resolved.workers * gpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    _obey_sigterm(terminated)  # ray.init puts its own handler there, which ends the process
    identity = Identity(job=resolved.job.uid, attempt=resolved.attempt, incarnation=resolved.incarnation)
    settings = Settings.load()
    settings.signing_key()  # made now if there is none: workers only read it
    assignment = Assignment(resolved.recipe, identity, settings.signing_key_file, reporter, resolved.stall_seconds)
    resources = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"assignment": assignment},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=resolved.workers, use_gpu=gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"{resolved.job.namespace}.{resolved.job.uid}",
            storage_path=str(reporter.root / "ray"),
            failure_config=FailureConfig(max_failures=-1),  # without limit: the guard ends a vain series of restarts
            callbacks=[TellLosses(reporter)],
        ),
    )
    try:
        trainer.fit()
    finally:
        ray.shutdown()


def _obey_sigterm(terminated: Terminated) -> None:
    """TERM asks for a checkpoint and the end, like the control file; it must not end the driver by itself."""
    signal.signal(signal.SIGTERM, terminated.tell)


class Terminated:
    """Hears of a signal, and orders the stop in a thread: what the signal interrupted may hold any lock."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._mouth, False)

    def start(self) -> None:
        """Listen until the driver ends."""
        threading.Thread(target=self._listen, name="terminated", daemon=True).start()

    def tell(self, *_: object) -> None:
        """Safe in a signal handler."""
        with suppress(BlockingIOError):  # told a thousand times
            os.write(self._mouth, b"!")

    def _listen(self) -> None:
        while os.read(self._ear, 1024):
            order = CheckpointAndStop(deadline=time.time() + GRACE_SECONDS, reason="terminated")
            try:
                amend_control(self._folder.control, order=order)
            except OSError as error:
                print(f"the order to stop could not be written: {error}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
