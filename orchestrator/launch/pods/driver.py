"""The driver in the pod of Ray's head: `python -m orchestrator.launch.entry --cluster FOLDER`.

FOLDER holds what `rayjob.agreed` says: the resolved configuration, the job. Guard, deadline and ending are those of a
laptop and work on a run folder of this pod. Invariants: SIGTERM is never lost once the pod knows this process; whatever
ends the attempt, the controller is told if it can be reached, and the pod knows when this process has nothing left to
do.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from orchestrator.errors import InvalidJob, UsageError
from orchestrator.launch.attempt import RAY_ENV, Terminated, fit, how_it_ended, obey_sigterm, own_reporter
from orchestrator.launch.base import RunFolder
from orchestrator.launch.deadline import DeadlineGuard
from orchestrator.launch.ending import Ending, last_step
from orchestrator.launch.events import FailureClass
from orchestrator.launch.evidence import stacks
from orchestrator.launch.files import replace_file
from orchestrator.launch.guard import Guard
from orchestrator.launch.local import prepare
from orchestrator.launch.machine import LoadMeter
from orchestrator.launch.pending import complete
from orchestrator.launch.pods.courier import Courier
from orchestrator.launch.pods.idle import IdleStop
from orchestrator.launch.pods.mailbox import kill_mailbox, open_mailbox
from orchestrator.launch.pods.outbox import Outbox
from orchestrator.launch.pods.post import Post
from orchestrator.launch.pods.printing import Printing
from orchestrator.launch.pods.reporter import PodReporter
from orchestrator.launch.pods.surroundings import Surroundings
from orchestrator.launch.pods.worker import work
from orchestrator.launch.rayjob import agreed
from orchestrator.launch.rayjob.claims import mounted
from orchestrator.launch.reporter import FileReporter
from orchestrator.launch.resolve import Resolved, read_resolved
from orchestrator.spec import TrainingJob

BROKE_SECONDS = 10.0
"""For the last delivery where the money is gone: the pods are paid for until it is over."""
LAST_SECONDS = 60.0
"""For it at most otherwise; less where a last checkpoint gets less."""

End = tuple[str, FailureClass | None, str]
"""Outcome, failure class, message."""


def run_in_pod(configuration: Path) -> int:
    """0 if the attempt succeeded or stopped as ordered, 1 otherwise. UsageError where this is no such pod."""
    around = Surroundings.load(os.environ)
    folder = RunFolder(around.run)
    terminated = Terminated(folder, around.stop_seconds)
    obey_sigterm(terminated)
    _say_who(around.run)
    terminated.start()
    resolved = read_resolved(configuration / agreed.RESOLVED).model_copy(update={"incarnation": around.incarnation})
    job = _job(configuration / agreed.JOB_DOCUMENT)
    prepare(folder, resolved)
    replace_file(folder.job, (configuration / agreed.JOB_DOCUMENT).read_text())
    printing = Printing(folder.log(resolved.attempt))
    printing.start()
    return _Driver(around, folder, job, resolved, printing, terminated).run()


def _say_who(run: Path) -> None:
    """Before anything else: a pod that is told to go signals this process and waits for it."""
    (run / Path(agreed.DRIVER_DONE).name).unlink(missing_ok=True)
    replace_file(run / Path(agreed.DRIVER_PID).name, str(os.getpid()))


def _job(document: Path) -> TrainingJob:
    try:
        return TrainingJob.model_validate_json(document.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{document} cannot be read: {error}; if another version of Fathom wrote it, use that"
        ) from None


class _Driver:
    """Of one incarnation of an attempt."""

    def __init__(
        self,
        around: Surroundings,
        folder: RunFolder,
        job: TrainingJob,
        resolved: Resolved,
        printing: Printing,
        terminated: Terminated,
    ) -> None:
        self._around, self._folder, self._job, self._resolved = around, folder, job, resolved
        self._printing, self._terminated = printing, terminated
        self._ending = Ending(folder, resolved, first=partial(kill_mailbox, folder), last=self._last)
        outbox = Outbox(folder, resolved, partial(print, flush=True))
        self._post = Post(around.controller, around.token_file, around.authority)
        self._courier = Courier(outbox, self._post, folder.control, self._fenced)

    def run(self) -> int:
        self._courier.start()
        reporter = own_reporter(self._folder, self._resolved)
        DeadlineGuard(reporter, self._ending).start()
        IdleStop(self._folder, reporter, self._ending).start()
        outcome, failure, message = self._attempt(reporter)
        self._ending.write(outcome, failure, message)
        return 0 if outcome != "failed" else 1

    def _attempt(self, reporter: FileReporter) -> End:
        try:
            resolved = complete(self._job, self._resolved, mounted)
        except InvalidJob as refused:
            return "failed", FailureClass.USER_ERROR, str(refused)
        prepare(self._folder, resolved)
        if resolved != self._resolved:  # nobody but this pod knows it
            reporter.artifact(f"resolved-{resolved.attempt}.json", resolved.model_dump_json(indent=1).encode())
        evidence = partial(stacks, self._folder, resolved, "the log")
        Guard(self._folder, resolved, reporter, self._ending, evidence=evidence).start()
        LoadMeter(reporter, node=self._around.node).start()
        error: Exception | None = None
        try:
            self._train(resolved, reporter)
        except Exception as caught:  # noqa: BLE001 - whatever ended Ray Train must become an `ended` event
            error = caught
        return how_it_ended(resolved, reporter, error, last_step(self._folder, resolved))

    def _train(self, resolved: Resolved, reporter: FileReporter) -> None:
        os.environ |= RAY_ENV
        import ray

        ray.init(address="auto")
        obey_sigterm(self._terminated)  # ray.init puts its own handler there, which ends the process
        try:
            told = PodReporter(open_mailbox(reporter), self._around.run)
            fit(resolved, told, told, self._around.run / "ray", work)
        finally:
            ray.shutdown()

    def _fenced(self, message: str) -> None:
        """Nothing is saved: the job's storage is another's now."""
        print(f"fenced: {message}", flush=True)
        self._ending.at_once("failed", FailureClass.FENCED, message)

    def _last(self, failure: FailureClass | None) -> None:
        """The last word is written."""
        most = BROKE_SECONDS if failure is FailureClass.OVER_BUDGET else LAST_SECONDS
        if self._courier.finish(min(most, self._around.stop_seconds)):
            self._post.close()
        elif failure is not FailureClass.FENCED:
            print("the controller was not told of the end", file=sys.stderr, flush=True)
        self._printing.show()
        replace_file(self._around.run / Path(agreed.DRIVER_DONE).name, "")
