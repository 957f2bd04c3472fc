"""Runs one job on this machine to its end: attempts, tracking, money, status. `fathom train` is a face on it.

observe (read events, look at the driver) -> decide (`controller.decide`) -> act (start, order to stop, kill).
The driver is a process of its own: if this one dies, training goes on and `resume` finds it again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal

from orchestrator.controller.decide import Decision, after_attempt
from orchestrator.controller.observe import Observation
from orchestrator.controller.record import Record, replace_file
from orchestrator.controller.report import job_status, run_parameters
from orchestrator.cost.ledger import Ledger, build_ledger
from orchestrator.cost.meter import Spent, cost, spent
from orchestrator.cost.timeline import Held
from orchestrator.launch import local
from orchestrator.launch.events import Ended, Event, EventLog, FailureClass
from orchestrator.launch.resolve import Resolved, resolve
from orchestrator.settings import Settings
from orchestrator.tracking.artifacts import write_artifacts
from orchestrator.tracking.mlflow import DatasetRef, RunTracker

POLL_SECONDS = 0.2
TRACK_SECONDS = 5.0
GRACE_SECONDS = 120.0
"""From the order to stop until the process group is ended without a checkpoint."""


@dataclass(frozen=True)
class Snapshot:
    """What the command line shows."""

    observation: Observation
    resolved: Resolved
    spent: Decimal
    stopping: bool


@dataclass(frozen=True)
class Result:
    """How the job ended."""

    decision: Decision
    ended: Ended
    observation: Observation
    resolved: Resolved
    ledger: Ledger


class LocalRun:
    """One job in the hands of this process."""

    def __init__(self, record: Record, settings: Settings, say: Callable[[str], None]) -> None:
        self.record, self.settings, self.say = record, settings, say
        self.folder = record.folder
        self.log = EventLog(self.folder.events)
        self.events: list[Event] = []
        self._offset = 0
        self.held = record.held()
        self._stop: str | None = None
        self._kill = False
        self.resolved = self._resolve(self._next_attempt())
        self.observation = Observation(steps=self.resolved.recipe.steps)
        self._read()
        self.tracker = RunTracker(
            settings.tracking_uri, self.resolved.tracking.experiment, self.folder.root / "tracking.json", say
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")
        self._pending: Future[object] | None = None

    def order_stop(self, reason: str) -> None:
        """First call: checkpoint and end. Second call: end at once. Safe in a signal handler."""
        if self._stop is not None:
            self._kill = True
        self._stop = self._stop or reason

    def run(self, show: Callable[[Snapshot], None]) -> Result:
        """Until success, stop or failure."""
        without_progress = 0
        try:
            while True:
                before = self.observation.checkpoint_step
                ended = self._attempt(show)
                progressed = self.observation.checkpoint_step > before
                without_progress = 0 if progressed else without_progress + 1
                attempts = self.resolved.attempt
                decision = after_attempt(ended, self.record.job.spec.retry, attempts, without_progress)
                if decision != "retry" or self._stop:
                    return self._finish("fail" if decision == "retry" else decision, ended)
                self.say(f"attempt {attempts} ended: {ended.failure_class}: {ended.message}; starting the next")
                self.resolved = self._resolve(attempts + 1)
        finally:
            self._thread.shutdown(wait=True)

    # ------------------------------------------------------------------ one attempt
    def _attempt(self, show: Callable[[Snapshot], None]) -> Ended:
        driver = local.running(self.folder)
        if driver is None:
            driver = local.start(self.folder, self.resolved)
        if not self.held or self.held[-1].attempt != self.resolved.attempt:
            self.held.append(Held(self.resolved.attempt, driver.process.create_time(), time.time()))
        self.observation.ended = None
        self._track(self._open_tracking)
        ordered_at, tracked_at = 0.0, time.monotonic()
        while driver.alive():
            self._touch_held()
            self._read()
            show(self._snapshot())
            if self._stop and not ordered_at:
                local.order_stop(self.folder, self._stop, GRACE_SECONDS)
                ordered_at = time.monotonic()
            if self._kill or (ordered_at and time.monotonic() - ordered_at > GRACE_SECONDS):
                driver.kill()
            if time.monotonic() - tracked_at > TRACK_SECONDS:
                self._track(self._replay)
                self._save()
                tracked_at = time.monotonic()
            time.sleep(POLL_SECONDS)
        self._touch_held()
        self._read()
        ended = self._own_end() or self._driver_lost()
        self._save()
        show(self._snapshot())
        return ended

    def _own_end(self) -> Ended | None:
        """How the present attempt ended, by its own word."""
        ended = self.observation.ended
        return ended if ended is not None and ended.attempt == self.resolved.attempt else None

    def _driver_lost(self) -> Ended:
        """The driver ended without a word: the launcher writes the attempt's last event."""
        ordered = self._stop is not None
        self.log.append(
            "ended",
            job=self.record.uid,
            attempt=self.resolved.attempt,
            incarnation=self.resolved.incarnation,
            outcome="stopped" if ordered else "failed",
            failure_class=FailureClass.INTERRUPTED if ordered else FailureClass.DRIVER_LOST,
            message=self._stop or f"the driver ended without a word; see {self.folder.log(self.resolved.attempt)}",
            step=self.observation.checkpoint_step,
        )
        self._read()
        assert self.observation.ended is not None
        return self.observation.ended

    def _next_attempt(self) -> int:
        """Goes on with a living driver's attempt, otherwise a new one."""
        last = max((h.attempt for h in self.held), default=0)
        return last if last and local.running(self.folder) else last + 1

    def _resolve(self, attempt: int) -> Resolved:
        path = self.folder.resolved(attempt)
        if path.exists():
            return Resolved.model_validate_json(path.read_text())
        spent_before = Decimal(0)
        previous = self.folder.resolved(attempt - 1)
        if previous.exists():
            rate = Resolved.model_validate_json(previous.read_text()).rate
            spent_before = cost(sum(h.end - h.start for h in self.held), rate)
        return resolve(
            self.record.job,
            uid=self.record.uid,
            attempt=attempt,
            incarnation=secrets.token_hex(4),
            settings=self.settings,
            storage_uri=str(self.folder.root),
            spent=spent_before,
        )

    # ------------------------------------------------------------------ observing
    def _read(self) -> None:
        events, self._offset = self.log.read(self._offset)
        for event in events:
            known = len(self.observation.warnings)
            self.observation.add(event)
            for warning in self.observation.warnings[known:]:
                self.say(warning)
        self.events += events

    def _touch_held(self) -> None:
        last = self.held[-1]
        self.held[-1] = Held(last.attempt, last.start, max(last.start, time.time()))

    def _spent_at(self, moment: float) -> Spent:
        seconds = sum(max(0.0, min(moment, h.end) - h.start) for h in self.held)
        return spent(seconds, self.resolved.rate)

    def _snapshot(self) -> Snapshot:
        amount = self._spent_at(time.time()).amount
        return Snapshot(self.observation, self.resolved, amount, self._stop is not None)

    # ------------------------------------------------------------------ recording
    def _save(self) -> None:
        ledger = build_ledger(self.events, self.held, self.resolved.rate)
        self.record.save_held(self.held)
        replace_file(self.folder.ledger, ledger.to_json())
        status = job_status(self.resolved, self.observation, self.events, ledger, self.held, self.tracker.reference)
        self.record.save_status(status)

    def _track(self, task: Callable[[], object]) -> None:
        """MLflow is spoken to in another thread, one task at a time: training's display never waits for it."""
        if self._pending is None or self._pending.done():
            self._pending = self._thread.submit(task)

    def _open_tracking(self) -> None:
        from model.dataset import read_manifest

        job, data = self.record.job, self.resolved.recipe.data
        self.tracker.open(
            job={"name": job.metadata.name, "namespace": job.metadata.namespace, "uid": self.record.uid},
            params=run_parameters(self.resolved),
            attempt=self.resolved.attempt,
            dataset=DatasetRef(name=job.metadata.name, digest=read_manifest(data).digest, source=data),
            tags=self.resolved.tracking.tags,
        )

    def _replay(self) -> None:
        self.tracker.replay(list(self.events), self._spent_at)

    def _finish(self, decision: Decision, ended: Ended) -> Result:
        ledger = build_ledger(self.events, self.held, self.resolved.rate)
        load = self.folder.artifacts / "expert_load.json"
        write_artifacts(
            self.folder.artifacts,
            self.events,
            ledger,
            self.resolved.model_dump_json(indent=1),
            load.read_text() if load.exists() else None,
            spent_at=self._spent_at,
        )
        if self._pending is not None:
            self._pending.result()
        self._replay()
        self.tracker.log_artifacts(self.folder.artifacts)
        outcome = {"succeed": "succeeded", "stop": "stopped"}.get(decision, "failed")
        self.tracker.close(outcome, ledger)  # type: ignore[arg-type]
        self._save()
        return Result(decision, ended, self.observation, self.resolved, ledger)
