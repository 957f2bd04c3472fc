"""A launcher of a job with a driver, a clock and an MLflow of the test, and stories of what a driver does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller import run as run_module
from orchestrator.controller.record import Record
from orchestrator.controller.run import LocalRun, Result
from orchestrator.launch import local
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointAndStop, Ended, EventLog, read, read_control
from orchestrator.launch.resolve import Resolved, read_resolved
from orchestrator.settings import Settings
from orchestrator.spec import Budget, TrainingJob
from support.runs import dataset, tiny_job

SETTINGS = Settings.load({"FATHOM_HOME": "/nowhere"})


class Clock:
    """Runs only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Driver:
    """A driver process: does the next thing of its story each time that somebody looks whether it lives."""

    def __init__(self, resolved: Resolved, story: Iterator[object], killed: list[int]) -> None:
        self._resolved, self._story, self._killed, self._alive = resolved, story, killed, True

    def alive(self) -> bool:
        if self._alive:
            self._alive = next(self._story, None) is not None
        return self._alive

    def kill(self) -> None:
        if self._alive:
            self._killed.append(self._resolved.attempt)
        self._alive = False

    def session(self) -> list[Any]:
        return []


class Tracking:
    """An MLflow that takes everything."""

    reference = None

    def __init__(self, *_: object) -> None: ...

    def tick(self) -> None: ...

    def finish(self, *_: object) -> bool:
        return True


Story = Callable[["Attempt"], Iterator[object]]


class Attempt:
    """What a driver and its workers can do."""

    def __init__(self, folder: RunFolder, resolved: Resolved, clock: Clock) -> None:
        self.folder, self.resolved, self.clock = folder, resolved, clock
        self._log = EventLog(folder.events)  # one that is kept: a new one would read all of the file each time

    def _at(self, kind: str, **fields: object) -> None:
        job, attempt, incarnation = self.resolved.job.uid, self.resolved.attempt, self.resolved.incarnation
        self._log.append(kind, job=job, attempt=attempt, incarnation=incarnation, time=self.clock.now, **fields)

    def start(self, step: int) -> None:
        self._at("started", step=step, tokens=step, world_size=2)

    def train(self, step: int) -> None:
        self._at("progress", step=step, tokens=step)

    def save(self, step: int) -> None:
        self._at("checkpoint-committed", step=step, uri="x", size_bytes=1, seconds=0.0)

    def end(self, outcome: str, failure: str | None = None, message: str = "") -> None:
        self._at("ended", outcome=outcome, failure_class=failure, message=message)


class Stage:
    """A job whose attempts follow stories."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, job: TrainingJob | None = None) -> None:
        self.clock, self.killed, self.said = Clock(), list[int](), list[str]()
        self.record = Record.create(root, job or tiny_job(str(dataset(root / "data"))))
        self.stories: list[Story] = []
        self.started: list[Resolved] = []
        monkeypatch.setattr(run_module, "time", self.clock)
        monkeypatch.setattr(run_module, "Tracking", Tracking)
        monkeypatch.setattr(run_module, "refresh_artifacts", lambda *_: None)
        monkeypatch.setattr(local, "start", self._start)

    def _start(self, folder: RunFolder, attempt: int) -> Driver:
        resolved = read_resolved(folder.resolved(attempt))
        self.started.append(resolved)
        story = self.stories.pop(0)
        return Driver(resolved, story(Attempt(folder, resolved, self.clock)), self.killed)

    def run(self, *stories: Story) -> Result:
        """Follow the job to its end, with one story for each attempt."""
        self.stories += stories
        result = LocalRun(self.record, SETTINGS, self.said.append).run(lambda snapshot: None)
        assert not self.stories, "each attempt was made"
        return result

    def ends(self) -> list[Ended]:
        return [e for e in read(self.record.folder.events)[0] if isinstance(e, Ended)]


def with_budget(root: Path, limit: str) -> TrainingJob:
    job = tiny_job(str(dataset(root / "data")))
    return job.model_copy(update={"spec": job.spec.model_copy(update={"budget": Budget(limit=limit)})})


def obeys(attempt: Attempt) -> Iterator[object]:
    """Trains until it is told to stop, and saves then."""
    attempt.start(0)
    for step in itertools.count(1):
        yield step
        attempt.train(step)
        answer = read_control(attempt.folder.control)
        if isinstance(answer, CheckpointAndStop):
            attempt.save(step)
            attempt.end("stopped", "over-budget", answer.reason)
            return


def trains_on(attempt: Attempt) -> Iterator[object]:
    """Hears nothing."""
    attempt.start(0)
    for step in itertools.count(1):
        yield step
        attempt.train(step)
