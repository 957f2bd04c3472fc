"""A controller of one job with drivers, a clock and an MLflow of the test, and stories of what a driver does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.controller import drafting, keeping, lending, service
from orchestrator.controller import follower as follower_module
from orchestrator.controller.record import Record
from orchestrator.controller.result import Result, result_of
from orchestrator.controller.service import Controller
from orchestrator.controller.standing import RESTS
from orchestrator.launch import local
from orchestrator.launch.base import Capacity, RunFolder, Sight
from orchestrator.launch.control import ordered
from orchestrator.launch.events import CheckpointAndStop, Ended, EventLog, read, read_control
from orchestrator.launch.resolve import Resolved, read_resolved
from orchestrator.settings import Settings
from orchestrator.spec import Budget, TrainingJob
from orchestrator.status import Phase
from orchestrator.store.base import JobStore, StoredJob, Wish
from orchestrator.store.sqlite import SqliteStore
from support.runs import dataset, tiny_job

POLL = 0.4


class Clock:
    """Runs only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Mirror:
    """An MLflow that takes everything."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.started = 0

    def start(self) -> None:
        self.started += 1

    def tell(self, name: str) -> None:
        self.told.append(name)

    def finish(self, done: Callable[[], bool], seconds: float, give_up: Callable[[], bool]) -> bool:
        return done()

    def close(self) -> None: ...


LAST_MOMENT = "gone as soon as somebody looks again"
"""A driver that has said its last word is not gone at once."""
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


class Launcher:
    """Drivers that do the next thing of their story each time that somebody looks at them; they outlive controllers."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.stories, self.machine = clock, list[Story](), Capacity(64)
        self.started: list[Resolved] = []
        self.killed: list[int] = []
        self.lives: dict[Path, Iterator[object]] = {}
        self.removed: list[str] = []

    def look(self, folder: RunFolder, attempt: int) -> Sight:
        begun = folder.root / f"begun-{attempt}"
        story = self.lives.get(folder.root)
        if story is not None and next(story, None) is None:
            self.lives.pop(folder.root, None)  # it may have been killed by its own story
        why, deadline = ordered(folder.control)
        known = begun.exists() or any(event.attempt == attempt for event in read(folder.events)[0])
        return Sight(folder.root in self.lives, known, ordered=why, deadline=deadline)

    def start(self, folder: RunFolder, attempt: int) -> None:
        assert folder.root not in self.lives, "one driver of a run at most"
        resolved = read_resolved(folder.resolved(attempt))
        folder.control.unlink(missing_ok=True)
        self.started.append(resolved)
        story = self.stories.pop(0)(Attempt(folder, resolved, self.clock))
        self.lives[folder.root] = itertools.chain(story, [LAST_MOMENT])
        (folder.root / f"begun-{attempt}").touch()

    def order_stop(self, folder: RunFolder, reason: str, grace_seconds: float) -> None:
        local.amend_control(
            folder.control, order=CheckpointAndStop(deadline=self.clock.time() + grace_seconds, reason=reason)
        )

    def kill(self, folder: RunFolder, attempt: int) -> None:
        if self.lives.pop(folder.root, None) is not None:
            self.killed.append(attempt)

    def remove(self, folder: RunFolder) -> None:
        import shutil

        self.removed.append(folder.root.name)
        shutil.rmtree(folder.root, ignore_errors=True)

    def sweep(self) -> None: ...

    def capacity(self) -> Capacity:
        return self.machine

    def gpus(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.machine.gpus)))

    def check(self, job: TrainingJob, resolved: Resolved) -> None: ...

    def obstacle(self, job: TrainingJob) -> None: ...

    def describe(self, folder: RunFolder, attempt: int) -> str:
        return "no worker process lives; no rank left its stacks"


class Stage:
    """A home with a job whose attempts follow stories."""

    def __init__(
        self,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        job: TrainingJob | None = None,
        store: JobStore | None = None,
    ) -> None:
        """`store`: another than a file in `root`."""
        self.clock, self.said, self.root = Clock(), list[str](), root
        self.settings = Settings.load({"FATHOM_HOME": str(root)})
        self.launcher, self.mirror = Launcher(self.clock), Mirror()
        self.store = store or SqliteStore(root / "fathom.db")
        job = job or tiny_job(str(dataset(root / "data")))
        self.job = self.store.create(job, by="test")
        self.record = Record.take(root / self.job.folder, self.job.uid, job)
        self.stories = self.launcher.stories
        for module in (follower_module, drafting, service, keeping, lending):
            monkeypatch.setattr(module, "time", self.clock)

    @property
    def started(self) -> list[Resolved]:
        return self.launcher.started

    @property
    def killed(self) -> list[int]:
        return self.launcher.killed

    def controller(self, settings: Settings | None = None, *, only: bool = True) -> Controller:
        uid = self.job.uid if only else None
        return Controller(
            self.store, self.launcher, settings or self.settings, self.said.append, only=uid, mirror=self.mirror,
        )  # type: ignore[arg-type]  # fmt: skip

    def run(self, *stories: Story, settings: Settings | None = None, hurry: bool = False) -> Result:
        """Follow the job until it rests, with one story for each attempt."""
        self.stories += stories
        controller = self.controller(settings)
        try:
            controller.turn()  # it is accepted
            for _ in range(200_000):
                controller.turn()
                follower = controller.followed(self.job.uid)
                assert follower is not None, self.said
                follower.hurry |= hurry
                if follower.standing.phase in RESTS | {Phase.QUEUED} and not follower.alive:
                    break
                self.clock.sleep(POLL)
        finally:
            controller.close()
        assert not self.stories, "each attempt was made"
        self.follower = follower
        result = result_of(follower)
        assert result is not None, self.stored().status
        return result

    def stored(self) -> StoredJob:
        found = self.store.by_uid(self.job.uid)
        assert found is not None
        return found

    def wish(self, edit: Callable[[Wish], Wish]) -> None:
        self.store.change(self.job.namespace, self.job.name, edit)

    def grant(self) -> None:
        """As whoever resumes the job."""
        from dataclasses import replace

        last = self.record.folder.last_attempt()
        self.wish(lambda wish: replace(with_suspend(wish, suspend=False), granted_after=last, resumed=wish.resumed + 1))

    def ends(self) -> list[Ended]:
        return [e for e in read(self.record.folder.events)[0] if isinstance(e, Ended)]


def with_suspend(wish: Wish, *, suspend: bool) -> Wish:
    from dataclasses import replace

    spec = wish.job.spec.model_copy(update={"suspend": suspend})
    return replace(wish, job=wish.job.model_copy(update={"spec": spec}))


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
            over = answer.reason == "over-budget"
            attempt.end("stopped", "over-budget" if over else "interrupted", answer.reason)
            return


def trains_on(attempt: Attempt) -> Iterator[object]:
    """Hears nothing."""
    attempt.start(0)
    for step in itertools.count(1):
        yield step
        attempt.train(step)
