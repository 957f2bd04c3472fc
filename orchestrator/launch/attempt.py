"""What the drivers of a laptop and of a cluster have in common: Ray Train's part, the order to stop, how it ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from model.checkpoint import Identity
from orchestrator.launch.base import RunFolder
from orchestrator.launch.control import amend_control, hard_deadline
from orchestrator.launch.events import CheckpointAndStop, FailureClass
from orchestrator.launch.reporter import FileReporter
from orchestrator.launch.resolve import Resolved
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from model.reporting import Reporter, Stop
    from model.train import Assignment
    from orchestrator.launch.losses import TellsLosses

GRACE_SECONDS = 60.0
"""Longest time that a final checkpoint and the end of the workers may take on a laptop."""
RAY_ENV = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's monitor would kill Train's own helpers first, which ends the run for good
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less: nobody drains nodes
    "RAY_prestart_worker_first_driver": "0",  # nobody takes the processes that Ray would start in advance, one per core
}
"""Of a driver, before it imports Ray."""


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
    return "stopped", why_stopped(stop), stop.reason


def why_stopped(stop: Stop) -> FailureClass:
    """By the reason of the order."""
    return FailureClass.OVER_BUDGET if stop.reason == "over-budget" else FailureClass.INTERRUPTED


def own_reporter(folder: RunFolder, resolved: Resolved) -> FileReporter:
    """With the job's own deadline, which holds even if nobody watches."""
    began = psutil.Process().create_time()  # from when on it is paid for
    until = resolved.deadlines(began)
    deadline = None if until is None else hard_deadline(0, resolved.incarnation, until)
    return FileReporter(
        folder.root, resolved.job.uid, resolved.attempt, resolved.incarnation, deadline=deadline, began=began
    )


def fit(
    resolved: Resolved,
    reporter: Reporter,
    losses: TellsLosses,
    folder: Path,
    work: Callable[[dict[str, Assignment]], None],
) -> None:
    """Run `work` in all workers until they end, on the Ray that this process is connected to.

    `reporter` goes to the workers, `losses` hears of those that die, `folder` is Ray's own, on this machine.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from model.train import Assignment
    from orchestrator.launch.lean_trainer import LeanTrainer
    from orchestrator.launch.losses import TellLosses

    cpus, gpus = resolved.cpus_per_worker, resolved.gpus_per_worker
    identity = Identity(job=resolved.job.uid, attempt=resolved.attempt, incarnation=resolved.incarnation)
    settings = Settings.load()
    settings.signing_key()  # made now if there is none: workers only read it
    assignment = Assignment(resolved.recipe, identity, settings.signing_key_file, reporter, resolved.stall_seconds)
    resources = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    trainer = LeanTrainer(
        work,
        train_loop_config={"assignment": assignment},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=resolved.workers, use_gpu=gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"{resolved.job.namespace}.{resolved.job.uid}",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=-1),  # without limit: the guard ends a vain series of restarts
            callbacks=[TellLosses(losses)],
        ),
    )
    trainer.fit()


def obey_sigterm(terminated: Terminated) -> None:
    """TERM asks for a checkpoint and the end, like the control file; it must not end the driver by itself."""
    signal.signal(signal.SIGTERM, terminated.tell)


class Terminated:
    """Hears of a signal, and orders the stop in a thread: what the signal interrupted may hold any lock."""

    def __init__(self, folder: RunFolder, grace_seconds: float = GRACE_SECONDS) -> None:
        self._folder, self._grace = folder, grace_seconds
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
            order = CheckpointAndStop(deadline=time.time() + self._grace, reason="terminated")
            try:
                amend_control(self._folder.control, order=order)
            except OSError as error:
                print(f"the order to stop could not be written: {error}", flush=True)
