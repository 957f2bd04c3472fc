"""The controller over several jobs, restarts and people's wishes; drivers and clock are the test's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.launcher import Attempt, Stage, obeys, trains_on, with_budget, with_suspend
from support.turns import another, condition, limited, phase, turns, works

from orchestrator.controller import follower as follower_module
from orchestrator.controller import keeping
from orchestrator.controller.history import History
from orchestrator.controller.limit import change_limit
from orchestrator.controller.record import Record
from orchestrator.errors import Conflict
from orchestrator.launch import local
from orchestrator.launch.base import Capacity
from orchestrator.spec import Budget
from orchestrator.status import ConditionType, Phase, Reason

ROOT = Path(__file__).parents[3]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(tmp_path, monkeypatch)
    yield made
    made.store.database.close()


def test_a_job_that_only_the_store_knows_is_run(stage: Stage) -> None:
    job = another(stage, "second")
    stage.stories += [works, works]
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert phase(stage) is phase(stage, job) is Phase.SUCCEEDED
    assert Record.open(stage.root / job.folder).uid == job.uid
    assert not stage.store.open_jobs()
    status = stage.stored().status
    assert status.observed_generation == 1
    kinds = {one.type for one in status.conditions}
    assert kinds == set(ConditionType) - {ConditionType.TRACKING}
    assert stage.mirror.told, "MLflow's process hears of it"
    with local.hold_lock(stage.record.folder.launcher_lock):
        pass  # nobody has it in his hands any more
    controller.close()


def test_mlflow_hears_seldom_of_a_run_that_says_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(attempt: Attempt) -> Iterator[object]:
        attempt.start(0)
        while True:
            yield 1

    monkeypatch.setattr(keeping, "QUIET_SECONDS", 20.0)
    stage.stories.append(silent)
    controller = stage.controller(only=False)
    turns(stage, controller)
    stage.mirror.told.clear()
    turns(stage, controller, 80)  # 40 seconds
    assert 1 <= len(stage.mirror.told) <= 3, "what did not get through is told again, but not all the time"
    assert phase(stage) is Phase.RUNNING
    controller.close()


def test_a_controller_that_was_killed_finds_what_runs(stage: Stage) -> None:
    stage.stories.append(trains_on)
    first = stage.controller(only=False)
    turns(stage, first)
    assert phase(stage) is Phase.RUNNING
    first.close()  # as the kernel closes its files; the driver goes on
    stage.clock.sleep(100)
    second = stage.controller(only=False)
    turns(stage, second)
    assert phase(stage) is Phase.RUNNING
    assert len(stage.started) == 1, "the same driver"
    held = stage.record.held()
    assert [one.attempt for one in held] == [1]
    assert held[0].end - held[0].start > 100, "what ran while nobody looked is paid for"
    second.close()


@pytest.mark.parametrize("only", [True, False])
def test_a_driver_that_has_said_how_it_ended_is_looked_after_until_it_is_gone(stage: Stage, only: bool) -> None:
    """A job that counted as failed too early was no open one any more: nobody went on with it."""
    gone = []

    def takes_its_time(attempt: Attempt) -> Iterator[object]:
        attempt.start(0)
        attempt.end("failed", "stalled", "no step")
        while not gone:
            yield "going"

    stage.stories += [takes_its_time, works]
    controller = stage.controller(only=only)
    turns(stage, controller)
    status = stage.stored().status
    assert status.phase is Phase.RUNNING
    assert condition(status, ConditionType.COMPLETE).status == "False"
    assert [job.uid for job in stage.store.open_jobs()] == [stage.job.uid]
    gone.append(True)
    turns(stage, controller)
    assert phase(stage) is Phase.SUCCEEDED
    assert len(stage.started) == 2
    controller.close()


def test_suspend_resume_cancel(stage: Stage) -> None:
    stage.stories += [obeys, obeys]
    controller = stage.controller(only=False)
    turns(stage, controller)
    stage.wish(lambda wish: with_suspend(wish, suspend=True))
    turns(stage, controller)
    status = stage.stored().status
    assert status.phase is Phase.SUSPENDED
    assert condition(status, ConditionType.RUNNING).reason is Reason.SUSPENDED
    assert stage.ends()[-1].message == "suspended"
    stage.grant()
    turns(stage, controller)
    assert phase(stage) is Phase.RUNNING
    stage.wish(lambda wish: replace(wish, cancelled_at=datetime.now(UTC)))
    turns(stage, controller)
    assert phase(stage) is Phase.CANCELLED
    assert [end.outcome for end in stage.ends()] == ["stopped", "stopped"]
    assert not stage.killed
    controller.close()


def test_a_job_at_rest_is_no_news_to_a_controller_that_comes_up(stage: Stage) -> None:
    stage.stories.append(obeys)
    controller = stage.controller(only=False)
    turns(stage, controller)
    stage.wish(lambda wish: with_suspend(wish, suspend=True))
    turns(stage, controller)
    controller.close()
    stored = stage.stored()
    assert (stored.status.phase, stored.status.progress is None) == (Phase.SUSPENDED, False)
    second = stage.controller(only=False)
    turns(stage, second)
    assert stage.stored().version == stored.version
    second.close()


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("stops", [False, True])
def test_a_job_that_is_cancelled_by_force_is_ended_at_once(stage: Stage, restarted: bool, stops: bool) -> None:
    """`stops`: it was told to stop before, and does not listen."""
    stage.stories.append(trains_on)
    controller = stage.controller(only=False)
    turns(stage, controller)
    if stops:
        stage.wish(lambda wish: replace(wish, cancelled_at=datetime.now(UTC)))
        turns(stage, controller, 20)
        assert phase(stage) is Phase.RUNNING, "it has its time"
    if restarted:
        controller.close()
        controller = stage.controller(only=False)
    stage.wish(lambda wish: replace(wish, cancelled_at=wish.cancelled_at or datetime.now(UTC), force=True))
    turns(stage, controller, 2)
    assert stage.killed == [1]
    assert phase(stage) is Phase.CANCELLED
    (ended,) = stage.ends()
    assert (ended.outcome, ended.failure_class, ended.message) == ("stopped", "interrupted", "cancelled")
    assert not stage.record.folder.control.exists() or stops, "it was not even asked"
    turns(stage, controller)
    assert len(stage.started) == 1
    controller.close()


def test_what_does_not_die_at_once_is_killed_once_in_a_turn(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try may take a second, in which nobody else is looked after."""
    stage.stories.append(trains_on)
    controller = stage.controller(only=False)
    turns(stage, controller)
    killed: list[int] = []
    monkeypatch.setattr(stage.launcher, "kill", lambda folder, attempt: killed.append(attempt))
    stage.wish(lambda wish: replace(wish, cancelled_at=datetime.now(UTC)))
    turns(stage, controller, 2)
    stage.clock.sleep(follower_module.GRACE_SECONDS)
    turns(stage, controller, 3)
    assert killed == [1] * 3
    assert phase(stage) is Phase.RUNNING
    controller.close()


def test_who_does_not_fit_waits_and_the_oldest_comes_first(stage: Stage) -> None:
    stage.launcher.machine = Capacity(2)
    second, third = another(stage, "second"), another(stage, "third")
    stage.stories += [works, works, works]
    controller = stage.controller(only=False)
    turns(stage, controller, 3)
    assert [phase(stage), phase(stage, second), phase(stage, third)] == [Phase.RUNNING, Phase.QUEUED, Phase.QUEUED]
    found = stage.store.by_uid(second.uid)
    assert found is not None
    admitted = condition(found.status, ConditionType.ADMITTED)
    assert admitted.reason is Reason.WAITING_FOR_SLOTS
    assert admitted.message == "it needs 2 CPUs; 0 of 2 CPUs are free for it"
    assert [job.name for job in controller.slots()[1]] == ["tiny"]
    turns(stage, controller, 30)
    assert [one.job.name for one in stage.started] == ["tiny", "second", "third"]
    controller.close()


def test_more_gpus_than_there_are_are_refused(stage: Stage) -> None:
    job = another(stage, "large", accelerator="H100", gpus=4, workers=None)
    stage.stories.append(works)
    controller = stage.controller(only=False)
    turns(stage, controller)
    found = stage.store.by_uid(job.uid)
    assert found is not None
    assert found.status.phase is Phase.FAILED
    accepted = condition(found.status, ConditionType.ACCEPTED)
    assert (accepted.status, accepted.reason) == ("False", Reason.INVALID)
    assert "asks for 4 GPUs, and this machine has 0" in accepted.message
    controller.close()


def test_one_broken_job_stops_no_other_and_says_what_is_wrong(stage: Stage) -> None:
    broken = another(stage, "broken")
    folder = Record.take(stage.root / broken.folder, broken.uid, broken.wish.job).folder
    folder.held.write_text("{")
    stage.stories.append(works)
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert phase(stage) is Phase.SUCCEEDED
    found = stage.store.by_uid(broken.uid)
    assert found is not None
    running = condition(found.status, ConditionType.RUNNING)
    assert (running.status, running.reason) == ("Unknown", Reason.CONTROLLER_ERROR)
    assert "held.json cannot be read" in running.message
    folder.held.unlink()
    stage.stories.append(works)
    turns(stage, controller, 40)
    assert phase(stage, broken) is Phase.SUCCEEDED
    controller.close()


def test_a_run_that_another_process_follows_is_left_alone(stage: Stage) -> None:
    controller = stage.controller(only=False)
    with local.hold_lock(stage.record.folder.launcher_lock):
        turns(stage, controller, 3)
        assert stage.stored().version == 1, "nothing is said of it"
        monkey = stage.controller()
        with pytest.raises(Conflict, match="in the hands of process"):
            monkey.turn()
        monkey.close()
    stage.stories.append(works)
    turns(stage, controller)
    assert phase(stage) is Phase.SUCCEEDED
    controller.close()


def test_a_job_over_its_budget_goes_on_when_the_limit_is_raised_by_whichever_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, with_budget(tmp_path, "0.01"))
    stage.stories.append(obeys)
    controller = stage.controller(only=False)
    turns(stage, controller, 1000)
    status = stage.stored().status
    assert status.phase is Phase.SUSPENDED
    assert condition(status, ConditionType.COMPLETE).reason is Reason.LIMIT_REACHED
    assert condition(status, ConditionType.BUDGET_OK).status == "False"
    version = stage.stored().version
    turns(stage, controller, 50)
    assert stage.stored().version == version, "it rests"
    stage.stories.append(works)
    stage.wish(lambda wish: replace(wish, job=limited(wish.job, "0.05")))
    turns(stage, controller)
    assert phase(stage) is Phase.SUCCEEDED
    assert Record.open(stage.record.folder.root).job.spec.budget == Budget(limit="0.05")
    controller.close()


def test_times_of_transition_stay(stage: Stage) -> None:
    stage.stories.append(trains_on)
    controller = stage.controller(only=False)
    turns(stage, controller, 4)
    first = {one.type: one.last_transition_time for one in stage.stored().status.conditions}
    turns(stage, controller, 40)
    assert {one.type: one.last_transition_time for one in stage.stored().status.conditions} == first
    controller.close()


def test_the_controller_imports_nothing_heavy() -> None:
    program = (
        "import sys, orchestrator.controller.service, orchestrator.launch.local, orchestrator.store.sqlite\n"
        "print(sorted({'torch', 'mlflow', 'ray', 'matplotlib', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_whoever_waits_for_the_end_hears_that_mlflow_is_behind(stage: Stage) -> None:
    stage.stories.append(works)
    controller = stage.controller()
    turns(stage, controller)
    controller.finish(stage.job.uid, stage.said.append, lambda: False)
    root = stage.record.folder.root
    assert stage.said[-1] == f"MLflow is behind; `fathom sync {root}` sends what is missing"
    controller.close()


def test_a_limit_is_changed_by_the_wish_and_by_the_folder_and_one_that_cannot_be_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, with_budget(tmp_path, "5.00"))
    stage.stories.append(trains_on)
    controller = stage.controller(only=False)
    turns(stage, controller, 400)

    def in_force() -> tuple[str, str]:
        turns(stage, controller, 3)
        found = (stage.stored().wish.job.spec.budget, Record.open(stage.record.folder.root).job.spec.budget)
        assert None not in found
        return tuple(one.limit for one in found)  # type: ignore[union-attr, return-value]

    stage.wish(lambda wish: replace(wish, job=limited(wish.job, "7.00")))
    assert in_force() == ("7.00", "7.00")
    change_limit(stage.record, "8.00", stage.settings, stage.clock.now)
    assert in_force() == ("8.00", "8.00"), "by the run's folder"
    stage.wish(lambda wish: replace(wish, job=limited(wish.job, "0.001")))
    assert in_force() == ("8.00", "8.00"), "less than is spent"
    assert any("the limit stays what it is: budget.limit=0.001 is below" in words for words in stage.said)
    assert phase(stage) is Phase.RUNNING
    controller.close()


def test_a_controller_that_slept_charges_nothing_for_what_was_over_meanwhile(stage: Stage) -> None:
    def ends_soon(attempt: Attempt) -> Iterator[object]:
        attempt.start(0)
        for step in range(1, 5):
            yield step
            attempt.train(step)
        attempt.clock.sleep(3600)  # of the controller; the driver was gone an hour ago
        del stage.launcher.lives[attempt.folder.root]

    stage.stories.append(ends_soon)
    controller = stage.controller(only=False)
    turns(stage, controller, 3)
    assert phase(stage) is Phase.RUNNING
    began = stage.record.held()[0].start
    stage.stories.append(trains_on)
    turns(stage, controller, 4)
    assert stage.clock.now > began + 3600
    held = stage.record.held()
    assert held[0].end < began + 10
    controller.close()


def test_nor_does_whoever_reads_the_record_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = with_budget(tmp_path, "5000.00")
    retry = job.spec.retry.model_copy(update={"max_attempts": 1})
    stage = Stage(tmp_path, monkeypatch, job.model_copy(update={"spec": job.spec.model_copy(update={"retry": retry})}))

    def dies(attempt: Attempt) -> Iterator[object]:
        attempt.start(0)
        yield 1
        attempt.train(1)
        attempt.clock.sleep(3600)  # of the controller; it dies without a word
        del stage.launcher.lives[attempt.folder.root]

    stage.stories.append(dies)
    controller = stage.controller(only=False)
    turns(stage, controller)
    assert phase(stage) is Phase.FAILED
    controller.close()
    [written], [read] = stage.record.held(), History(stage.record).held
    assert written.end - written.start < 10
    assert read == written
