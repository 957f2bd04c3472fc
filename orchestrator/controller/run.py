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
from functools import partial
from pathlib import Path

from orchestrator.controller.decide import Decision, after_attempt
from orchestrator.controller.observe import Observation
from orchestrator.controller.record import Record, replace_file
from orchestrator.controller.report import data_tags, job_status, run_parameters
from orchestrator.cost.ledger import Ledger, build_ledger
from orchestrator.cost.meter import Spent, cost, spent
from orchestrator.cost.timeline import Held
from orchestrator.errors import OverBudget
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
        self.held = record.held()
        self._stop: str | None = None
        self._kill = False
        self._driver = local.running(self.folder)
        """One that an earlier launcher left behind."""
        self.events: list[Event] = []
        self._offset = 0
        self.observation = Observation(steps=0)
        self._read(say=False)
        self._close_held()
        self.resolved = self._resolve(self._next_attempt())
        self.observation.steps = self.resolved.recipe.steps
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
        """Until success, stop or failure. Conflict if another process follows the run already."""
        with local.hold_lock(self.folder.launcher_lock), self._thread:
            ended = self.observation.ended
            if self._driver is None and ended is not None and ended.outcome == "succeeded":
                self.say("the run has succeeded already; its record is brought up to date")
                self._track(partial(self._open_tracking, self.resolved))
                return self._finish("succeed", ended)
            try:
                return self._attempts(show)
            except BaseException:
                self._abandon()
                raise

    def _abandon(self) -> None:
        """This process fails: training goes on without it if it can, but no MLflow run stays RUNNING for ever."""
        if self._pending is not None:
            self._pending.exception()  # waits
        self.tracker.close("failed")
        self.say(f"follow the run again with `fathom train --resume {self.folder.root}`")

    def _attempts(self, show: Callable[[Snapshot], None]) -> Result:
        """One after the other; whoever resumes a run grants it all its attempts anew."""
        made = without_progress = 0
        while True:
            before = self.observation.checkpoint_step
            ended = self._attempt(show)
            made += 1
            without_progress = 0 if self.observation.checkpoint_step > before else without_progress + 1
            decision = after_attempt(ended, self.record.job.spec.retry, made, without_progress)
            if decision != "retry":
                return self._finish(decision, ended)
            self.say(f"attempt {ended.attempt} ended: {ended.failure_class}: {ended.message}")
            if self._stop:
                return self._finish("stop", ended)
            try:
                self.resolved = self._resolve(self._next_attempt())
            except OverBudget as error:
                fields = {"outcome": "stopped", "failure_class": FailureClass.OVER_BUDGET, "message": str(error)}
                return self._finish("stop", ended.model_copy(update=fields))
            self.say(f"starting attempt {self.resolved.attempt}")

    # ------------------------------------------------------------------ one attempt
    def _attempt(self, show: Callable[[Snapshot], None]) -> Ended:
        driver = self._begin()
        self._track(partial(self._open_tracking, self.resolved))
        ordered_at, tracked_at = 0.0, time.monotonic()
        while driver.alive():
            self._observe()
            show(self._snapshot())
            if self._stop and not ordered_at:
                local.order_stop(self.folder, self._stop, GRACE_SECONDS)
                ordered_at = time.monotonic()
            if self._kill or (ordered_at and time.monotonic() - ordered_at > GRACE_SECONDS):
                driver.kill()
            if time.monotonic() - tracked_at > TRACK_SECONDS:
                if self._pending is None or self._pending.done():
                    self._track(partial(self.tracker.replay, list(self.events), self._spent_at))
                self._save()
                tracked_at = time.monotonic()
            time.sleep(POLL_SECONDS)
        driver.kill()  # what it started may have outlived it
        self._observe()
        ended = self.observation.ended
        if ended is None or ended.attempt != self.resolved.attempt:
            ended = self._driver_lost()
        self._save()
        show(self._snapshot())
        return ended

    def _begin(self) -> local.Driver:
        """The driver of this attempt, found or started. That it holds its devices is written down first of all."""
        driver, self._driver, now = self._driver, None, time.time()
        began = now if driver is None else min(now, driver.process.create_time())
        if driver is None:
            driver = local.start(self.folder, self.resolved)
            self.observation.ended = None
        if not self.held or self.held[-1].attempt != self.resolved.attempt:
            self.held.append(Held(self.resolved.attempt, began, now))
        self.record.save_held(self.held)
        return driver

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
        """That of a living driver, or of a run that has succeeded; otherwise a new one."""
        last, ended = self.folder.last_attempt(), self.observation.ended
        over = ended is not None and ended.outcome == "succeeded" and ended.attempt == last
        return last if last and (over or self._driver is not None) else last + 1

    def _resolve(self, attempt: int) -> Resolved:
        """As it was written if the attempt is known; otherwise decided now, with a new incarnation."""
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
    def _read(self, *, say: bool = True) -> None:
        """New events; what a driver of an earlier attempt still says is left out, since it no longer counts."""
        found, self._offset = self.log.read(self._offset)
        for event in found:
            if event.attempt < self.observation.attempt:
                continue
            known = len(self.observation.warnings)
            self.observation.add(event)
            for warning in self.observation.warnings[known:] if say else []:
                self.say(warning)
            self.events.append(event)

    def _observe(self) -> None:
        """What the driver has said, and that it has held its devices until now."""
        self._read()
        last = self.held[-1]
        self.held[-1] = Held(last.attempt, last.start, max(last.start, time.time()))

    def _close_held(self) -> None:
        """Up to the last word of its driver, if that went on after an earlier launcher had died."""
        if not self.held:
            return
        last = self.held[-1]
        words = [event.time for event in self.events if event.attempt == last.attempt]
        self.held[-1] = Held(last.attempt, last.start, max([last.end, *words]))

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
        self._pending = self._thread.submit(task)

    def _open_tracking(self, resolved: Resolved) -> None:
        from model.dataset import read_manifest

        job, data = self.record.job, resolved.recipe.data
        manifest = read_manifest(data)
        self.tracker.open(
            job={"name": job.metadata.name, "namespace": job.metadata.namespace, "uid": self.record.uid},
            params=run_parameters(resolved),
            attempt=resolved.attempt,
            dataset=DatasetRef(name=Path(data).name, digest=manifest.digest, source=data),
            tags=data_tags(job.spec.data, manifest) | resolved.tracking.tags,
        )

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
        self.tracker.replay(self.events, self._spent_at)
        self.tracker.log_artifacts(self.folder.artifacts)
        outcome = {"succeed": "succeeded", "stop": "stopped"}.get(decision, "failed")
        self.tracker.close(outcome, ledger)  # type: ignore[arg-type]
        self._save()
        return Result(decision, ended, self.observation, self.resolved, ledger)
