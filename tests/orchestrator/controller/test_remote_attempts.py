"""What the controller makes of attempts that run on other machines: their word on time, place and trouble."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from support.launcher import Attempt, Launcher, Stage, obeys
from support.turns import condition

from orchestrator.controller.decide import Newest, Situation, WriteEnd, decide
from orchestrator.controller.follower import GRACE_SECONDS, Follower
from orchestrator.controller.service import Controller
from orchestrator.controller.standing import is_news, status_of
from orchestrator.errors import InvalidJob, Problem
from orchestrator.launch.base import RunFolder, Sight, Told
from orchestrator.launch.failure import FailureClass, Verdict
from orchestrator.launch.resolve import Resolved, read_resolved
from orchestrator.spec import TrainingJob
from orchestrator.status import ConditionType, JobStatus, Phase, Progress, Reason

ADMITTED, RUNNING = ConditionType.ADMITTED, ConditionType.RUNNING
QUEUED = Told(False, Reason.WAITING_FOR_QUOTA, "8 GPUs more needed")
PLACED = Told(True, Reason.QUEUE_ADMITTED)


class Elsewhere(Launcher):
    """Attempts do what their stories say, and get machines when the test says so."""

    said: Sight = Sight(alive=True, holding=False, up=False, admitted=QUEUED)
    refuses = ""
    lacks: Told | None = None

    def capacity(self) -> None:  # type: ignore[override]
        return None

    def look(self, folder: RunFolder, attempt: int) -> Sight:
        found = super().look(folder, attempt)
        ended = not found.alive
        return replace(
            self.said,
            alive=found.alive,
            begun=found.begun,
            ordered=found.ordered,
            deadline=found.deadline,
            holding=False if ended else self.said.holding,
        )

    def check(self, job: TrainingJob, resolved: Resolved) -> None:
        if self.refuses:
            raise InvalidJob([Problem("spec.compute.image", self.refuses)])

    def obstacle(self, job: TrainingJob) -> Told | None:  # type: ignore[override]
        return self.lacks


class Far(Stage):
    """A stage whose attempts run elsewhere."""

    turning: Controller

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root, monkeypatch)
        self.far = self.launcher = Elsewhere(self.clock)
        self.stories = self.launcher.stories

    @property
    def follower(self) -> Follower:
        found = self.turning.followed(self.job.uid)
        assert found is not None
        return found


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Far:
    return Far(tmp_path, monkeypatch)


def turn(stage: Far, seconds: float = 1.0, times: int = 1) -> None:
    for _ in range(times):
        stage.turning.turn()
        stage.clock.sleep(seconds)


@pytest.fixture
def queued(stage: Far) -> Iterator[Far]:
    """One that waits for machines since a while."""
    stage.turning = stage.controller()
    stage.stories.append(obeys)
    turn(stage, times=5)
    yield stage
    stage.turning.close()


def test_waiting_costs_nothing_and_is_no_stall(queued: Far) -> None:
    turn(queued, seconds=100.0, times=100)
    status = queued.stored().status
    assert status.phase is Phase.QUEUED
    assert (condition(status, ADMITTED).reason, condition(status, ADMITTED).message) == (
        QUEUED.reason,
        QUEUED.message,
    )
    assert status.cost is not None
    assert (float(status.cost.spent), float(status.cost.burn_per_hour)) == (0, 0)
    assert queued.killed == []
    assert status.attempt_count == 1


def test_time_counts_by_the_word_of_the_cluster(queued: Far) -> None:
    began = queued.clock.now - 3
    queued.far.said = Sight(alive=True, holding=True, up=False, began=began, admitted=PLACED)
    turn(queued, times=10)
    [held] = queued.record.held()
    assert held.start == began
    assert held.end > began + 10
    status = queued.stored().status
    assert status.cost is not None
    assert float(status.cost.burn_per_hour) > 0
    queued.far.said = replace(queued.far.said, let_go=began + 5)
    queued.launcher.lives.clear()
    turn(queued, times=2)
    assert queued.record.held()[0] == replace(held, end=began + 5)


def test_silence_counts_only_once_its_driver_has_all_it_needs(queued: Far) -> None:
    """`obeys` says something at each look; so only its first event is kept from the watch."""
    queued.far.said = Sight(alive=True, holding=True, up=False, began=queued.clock.now, admitted=PLACED)
    follower = queued.follower
    turn(queued, seconds=10.0, times=30)
    assert follower._watch.silent == 0.0
    queued.far.said = replace(queued.far.said, up=True, incarnation="another")  # whose events do not come
    turn(queued, seconds=10.0, times=30)
    assert follower._watch.silent >= 200.0


def test_it_is_known_by_the_ray_cluster_that_it_became(queued: Far) -> None:
    path = queued.record.folder.resolved(1)
    assert read_resolved(path).incarnation != "tiny-a1-x7k2p"
    queued.far.said = Sight(alive=True, holding=True, began=queued.clock.now, incarnation="tiny-a1-x7k2p")
    turn(queued)
    assert read_resolved(path).incarnation == "tiny-a1-x7k2p"
    follower = queued.follower
    assert follower._watch.incarnation == "tiny-a1-x7k2p"


@pytest.mark.parametrize(
    ("failure", "phase"), [(FailureClass.USER_ERROR, Phase.FAILED), (FailureClass.PREEMPTED, Phase.QUEUED)]
)
def test_an_attempt_without_a_last_word_ends_as_it_was_seen_to(
    queued: Far, failure: FailureClass, phase: Phase
) -> None:
    queued.far.lacks = Told(False, Reason.KUBERAY_MISSING, "not installed")  # nothing is begun again
    queued.far.said = replace(queued.far.said, verdict=Verdict(failure, "as seen"))
    queued.launcher.lives.clear()
    turn(queued, times=4)
    [ended] = queued.ends()
    assert (ended.failure_class, ended.message) == (failure, "as seen")
    assert queued.stored().status.phase is phase


def loses_a_worker(attempt: Attempt) -> Iterator[object]:
    """As a driver says it: it sees that a worker is gone, and not why."""
    attempt.start(0)
    yield 1
    attempt.end("failed", "worker-lost", "rank 1 was lost")


def test_a_worker_that_was_killed_for_want_of_memory_is_told_so_and_tried_once_more(stage: Far) -> None:
    stage.far.said = replace(stage.far.said, verdict=Verdict(FailureClass.OUT_OF_MEMORY, "worker w was killed"))
    stage.turning = stage.controller()
    stage.stories += [loses_a_worker] * 3
    turn(stage, times=40)
    assert len(stage.launcher.started) == 2, "twice in a row is no chance, and worker-lost would have been tried on"
    status = stage.stored().status
    assert status.phase is Phase.FAILED
    assert status.attempts[-1].reason == "out-of-memory: worker w was killed (rank 1 was lost)"
    assert [one.failure_class for one in stage.ends()] == [FailureClass.WORKER_LOST] * 2, "events are the driver's"
    stage.turning.close()
    stage.turning = stage.controller()
    turn(stage, times=3)
    assert stage.stored().status.phase is Phase.FAILED, "the next process knows it, too"
    stage.turning.close()


@pytest.mark.parametrize("said", ["user-error", "not-finite"])
def test_what_a_driver_knows_itself_stays(stage: Far, said: str) -> None:
    def ends(attempt: Attempt) -> Iterator[object]:
        attempt.start(0)
        yield 1
        attempt.end("failed", said, "as it said")

    stage.far.said = replace(stage.far.said, verdict=Verdict(FailureClass.OUT_OF_MEMORY, "worker w was killed"))
    stage.turning = stage.controller()
    stage.stories.append(ends)
    turn(stage, times=10)
    assert stage.stored().status.attempts[-1].reason == f"{said}: as it said"
    stage.turning.close()


def test_the_wish_explains_an_end_before_what_was_seen() -> None:
    newest = Newest(1, alive=False, ordered="suspended", verdict=Verdict(FailureClass.DRIVER_LOST, "gone"))
    assert decide(Situation(newest=newest)) == (WriteEnd("stopped", FailureClass.INTERRUPTED, "suspended"),)
    hung = replace(newest, hangs="no event")
    assert decide(Situation(newest=hung)) == (WriteEnd("failed", FailureClass.STALLED, "no event"),)


def test_what_can_never_run_there_is_refused(stage: Far) -> None:
    stage.far.refuses = "'x' is not allowed on this cluster"
    controller = stage.controller()
    for _ in range(3):
        controller.turn()
    told = condition(stage.stored().status, ConditionType.ACCEPTED)
    assert (told.status, "spec.compute.image" in told.message) == ("False", True)
    assert stage.started == []
    controller.close()


def test_what_the_cluster_lacks_is_waited_for(stage: Far) -> None:
    stage.far.lacks = Told(False, Reason.KUBERAY_MISSING, "install KubeRay")
    controller = stage.controller()
    for _ in range(4):
        controller.turn()
        stage.clock.sleep(3.0)
    told = condition(stage.stored().status, ADMITTED)
    assert (told.reason, told.message) == (Reason.KUBERAY_MISSING, "install KubeRay")
    stage.far.lacks = None
    stage.stories.append(obeys)
    for _ in range(2):
        stage.clock.sleep(3.0)
        controller.turn()
    assert len(stage.started) == 1
    controller.close()


def test_nothing_is_shared_out(queued: Far) -> None:
    capacity, holders = queued.turning.slots()
    assert (capacity, holders) == (None, ())
    queued.far.said = Sight(alive=True, holding=True, began=queued.clock.now)
    turn(queued, times=2)
    assert len(queued.turning.slots()[1]) == 1


def test_one_that_waits_and_is_not_taken_away_is_killed_in_time(queued: Far) -> None:
    """The launcher ends one that has nothing to save; if it cannot, its time is over like anybody's."""
    queued.wish(lambda wish: replace(wish, force=True, cancelled_at=queued.job.created_at))
    turn(queued, seconds=GRACE_SECONDS, times=3)
    assert queued.killed == [1]


def test_workers_that_run_know_best(queued: Far) -> None:
    base = queued.stored().status
    follower = queued.follower
    trouble = Told(False, Reason.UNSCHEDULABLE, "a new worker finds no node")
    running = condition(base, RUNNING).model_copy(update={"status": "True", "reason": Reason.MAKING_PROGRESS})
    trains = base.model_copy(update={"phase": Phase.RUNNING, "conditions": [running]})

    def now(status: JobStatus, admitted: Told) -> JobStatus:
        return status_of(
            follower.standing, status, base, queued.job.created_at, alive=True, ordered=None, generation=1,
            admitted=admitted, running=trouble,
        )  # fmt: skip

    assert condition(now(trains, PLACED), RUNNING).reason is Reason.MAKING_PROGRESS
    waits = trains.model_copy(update={"phase": Phase.STARTING, "conditions": []})
    found = now(waits, PLACED)
    assert (condition(found, RUNNING).reason, found.phase) == (Reason.UNSCHEDULABLE, Phase.STARTING)
    assert now(trains, QUEUED).phase is Phase.QUEUED
    assert is_news(found, QUEUED, None)
    assert not is_news(found, PLACED, trouble)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING])
def test_an_attempt_that_waits_is_not_written_again_and_again_for_what_an_earlier_one_has_done(
    queued: Far, phase: Phase
) -> None:
    base, follower, at = queued.stored().status, queued.follower, queued.job.created_at
    done = Progress(step=10, steps=100, tokens=1000, observed_at=at)
    before, found = (
        base.model_copy(update={"phase": phase, "progress": done.model_copy(update={"observed_at": time})})
        for time in (at, at + timedelta(seconds=2))
    )
    status = status_of(
        follower.standing, found, before, at, alive=True, ordered=None, generation=1, admitted=PLACED, running=None
    )
    trains = phase is Phase.RUNNING
    assert (status.progress == before.progress, status.progress == found.progress) == (not trains, trains)


def test_attempts_may_end_before_they_ever_had_machines(queued: Far) -> None:
    def ends(attempt: Attempt) -> Iterator[object]:
        attempt.end("failed", "user-error", "bad data")
        yield 1

    queued.launcher.lives[queued.record.folder.root] = ends(
        Attempt(queued.record.folder, queued.started[0], queued.clock)
    )
    turn(queued, times=4)
    status = queued.stored().status
    assert (status.phase, status.attempts[0].outcome) == (Phase.FAILED, "failed")
