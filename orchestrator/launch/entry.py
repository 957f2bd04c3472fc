"""The driver of one attempt: starts Ray, runs the workers, writes how it ended. `python -m ... RUN_FOLDER ATTEMPT`.

Fixed entry point: everything it needs stands in the resolved configuration, no user string reaches a shell. It holds
the run's lock while it lives, and obeys the control file, SIGTERM and its own deadline.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from model.checkpoint import Identity
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointAndStop, EventLog, FailureClass, Progress, Started, write_control
from orchestrator.launch.local import hold_lock
from orchestrator.launch.reporter import FileReporter
from orchestrator.launch.resolve import Resolved
from orchestrator.settings import Settings

GRACE_SECONDS = 60.0
"""Longest time that a final checkpoint and the end of the workers may take."""
OBJECT_STORE_BYTES = 100 * 2**20
"""Training moves nothing through Ray's object store."""


def main(arguments: list[str]) -> int:
    """0 if the attempt succeeded or stopped as ordered, 1 otherwise."""
    folder, attempt = RunFolder(Path(arguments[0])), int(arguments[1])
    resolved = Resolved.model_validate_json(folder.resolved(attempt).read_text())
    with hold_lock(folder.lock):
        outcome, failure, message = _attempt(folder, resolved)
        _write_end(folder, resolved, outcome, failure, message)
    return 0 if outcome != "failed" else 1


def _write_end(folder: RunFolder, resolved: Resolved, outcome: str, failure: FailureClass | None, message: str) -> None:
    EventLog(folder.events).append(
        "ended",
        job=resolved.job.uid,
        attempt=resolved.attempt,
        incarnation=resolved.incarnation,
        outcome=outcome,
        failure_class=failure,
        message=message,
        step=_last_step(folder, resolved),
    )


def _attempt(folder: RunFolder, resolved: Resolved) -> tuple[str, FailureClass | None, str]:
    """-> outcome, failure class, message."""
    _obey_sigterm(folder)
    reporter = _reporter(folder, resolved)
    try:
        _train(resolved, reporter)
    except Exception as error:  # noqa: BLE001 - whatever ended Ray Train must become an `ended` event
        return _classify(folder, error)
    if folder.failure.exists():
        return _classify(folder, None)
    if _last_step(folder, resolved) == resolved.recipe.steps:
        return "succeeded", None, ""
    stop = reporter.stop_requested()
    reason = stop.reason if stop else ""
    return (
        "stopped",
        FailureClass.OVER_BUDGET if reason == "over-budget" else FailureClass.INTERRUPTED,
        reason,
    )


def _reporter(folder: RunFolder, resolved: Resolved) -> FileReporter:
    """With the job's own deadline, which holds even if nobody watches."""
    stop_at = None
    if (seconds := resolved.hard_deadline_seconds) is not None:
        stop_at = time.time() + max(0.0, seconds - min(GRACE_SECONDS, 0.1 * seconds))
        timer = threading.Timer(seconds, _out_of_money, (folder, resolved))
        timer.daemon = True
        timer.start()
    return FileReporter(folder.root, resolved.job.uid, resolved.attempt, resolved.incarnation, stop_at)


def _out_of_money(folder: RunFolder, resolved: Resolved) -> None:
    """At the hard deadline: ends everything at once, saved or not."""
    message = f"the budget's {resolved.hard_deadline_seconds:.0f} s were over before the end of the last checkpoint"
    _write_end(folder, resolved, "stopped", FailureClass.OVER_BUDGET, message)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # Ray's own processes too; its workers go with them
    os._exit(1)


def _train(resolved: Resolved, reporter: FileReporter) -> None:
    os.environ |= {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's monitor would kill Train's own helpers first, which ends the run for good
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from model.train import Assignment, train_worker

    cpus, gpus = resolved.cpus_per_worker, resolved.gpus_per_worker
    ray.init(
        address="local",
        num_cpus=resolved.workers * cpus,
        num_gpus=resolved.workers * gpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    _obey_sigterm(RunFolder(reporter.root))  # ray.init puts its own handler there, which ends the process
    identity = Identity(job=resolved.job.uid, attempt=resolved.attempt, incarnation=resolved.incarnation)
    settings = Settings.load()
    settings.signing_key()  # made now if there is none: workers only read it
    assignment = Assignment(resolved.recipe, identity, settings.signing_key_file, reporter)
    resources = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"assignment": assignment},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=resolved.workers, use_gpu=gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"{resolved.job.namespace}.{resolved.job.uid}",
            storage_path=str(reporter.root / "ray"),
            failure_config=FailureConfig(max_failures=resolved.max_failures),
        ),
    )
    try:
        trainer.fit()
    finally:
        ray.shutdown()


def _classify(folder: RunFolder, error: Exception | None) -> tuple[str, FailureClass | None, str]:
    """A worker's own word first; otherwise a worker died more often than allowed, or Ray itself failed."""
    if folder.failure.exists():
        body = json.loads(folder.failure.read_text())
        return "failed", FailureClass(body["class"]), body["message"]
    if type(error).__name__ in ("WorkerGroupError", "TrainingFailedError"):
        return "failed", FailureClass.WORKER_LOST, str(error)
    return "failed", FailureClass.UNKNOWN, f"{type(error).__name__}: {error}"


def _obey_sigterm(folder: RunFolder) -> None:
    """TERM asks for a checkpoint and the end, like the control file; it must not end the driver by itself."""

    def stop(*_: object) -> None:
        write_control(folder.control, CheckpointAndStop(deadline=time.time() + GRACE_SECONDS, reason="terminated"))

    signal.signal(signal.SIGTERM, stop)


def _last_step(folder: RunFolder, resolved: Resolved) -> int | None:
    """Highest step of this attempt; a start from the last checkpoint of all has nothing left to do."""
    events, _ = EventLog(folder.events).read()
    steps = [e.step for e in events if isinstance(e, Started | Progress) and e.attempt == resolved.attempt]
    return max(steps, default=None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
