"""The controller with much to do: nobody waits for somebody else, and figures cost little."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.launcher import Attempt, Stage, trains_on, with_budget
from support.turns import another, condition, limited, phase, turns

from orchestrator.controller import service
from orchestrator.controller.follower import Follower
from orchestrator.controller.history import ledger_of
from orchestrator.controller.keeping import _Kept
from orchestrator.controller.record import Record
from orchestrator.cost.ledger import Ledger
from orchestrator.launch.base import Capacity
from orchestrator.launch.locks import locked
from orchestrator.settings import Settings
from orchestrator.spec import Budget
from orchestrator.status import ConditionType, JobStatus, Phase, Reason


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(tmp_path, monkeypatch)
    yield made
    made.store.database.close()


def test_many_new_jobs_keep_nobody_waiting(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.launcher.machine = Capacity(4)
    stage.stories += [trains_on, trains_on]
    controller = stage.controller(only=False)
    turns(stage, controller)
    new = [another(stage, f"new-{number:02}") for number in range(20)]
    accept, start = controller._accept, stage.launcher.start

    def slow(case: object) -> object:
        stage.clock.sleep(0.06)
        return accept(case)  # type: ignore[arg-type]

    monkeypatch.setattr(controller, "_accept", slow)

    def accepted() -> list[str]:
        known = {job.uid: job.status.condition(ConditionType.ACCEPTED) for job in stage.store.open_jobs()}
        return [job.name for job in new if known[job.uid] is not None]

    names = [job.name for job in new]
    for turn in range(1, 6):
        began = stage.clock.now
        controller.turn()
        assert stage.clock.now - began <= service.NEW_SECONDS + 0.06
        assert accepted() == names[: 4 * turn], "the oldest first"
        assert stage.record.held()[0].end >= began - 3, "whoever trains is looked at each turn"
    turns(stage, controller, 2)
    assert len(stage.started) == 2, "one of them fits"
    monkeypatch.setattr(stage.launcher, "start", lambda *given: (stage.clock.sleep(0.15), start(*given)))
    stage.launcher.machine = Capacity(64)
    stage.stories += [trains_on] * 19
    for turn in range(1, 4):
        controller.turn()
        assert len(stage.started) == 2 + 2 * turn, "two of them take longer than a turn may"
        assert controller._woken.is_set()
    turns(stage, controller, 10)
    assert {phase(stage, job) for job in new} == {Phase.RUNNING}
    controller.close()


def test_figures_are_written_now_and_then_only(stage: Stage) -> None:
    stage.stories.append(trains_on)
    controller = stage.controller(only=False)
    turns(stage, controller, 10)
    before = stage.stored().version
    turns(stage, controller, 40)  # twenty seconds
    assert 3 <= stage.stored().version - before <= 11
    controller.close()


@pytest.mark.parametrize(("others", "pause"), [(0, 2.0), (24, 5.0), (499, 10.0)])
def test_the_more_jobs_the_less_often_their_figures_are_written(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, others: int, pause: float
) -> None:
    stage.stories.append(trains_on)
    controller = stage.controller(only=False)
    turns(stage, controller)
    controller._keeper._kept |= {f"other-{number}": _Kept() for number in range(others)}
    save, saved = Record.save_status, list[float]()

    def slow(self: Record, status: JobStatus) -> None:
        saved.append(stage.clock.now)
        stage.clock.sleep(0.01)
        save(self, status)

    monkeypatch.setattr(Record, "save_status", slow)
    for _ in range(400):
        controller.turn()
        stage.clock.sleep(0.1)
    gaps = {round(later - earlier, 1) for earlier, later in itertools.pairwise(saved[1:])}
    assert min(gaps) >= pause
    assert max(gaps) <= pause + 0.2
    controller.close()


def test_a_ledger_that_takes_long_is_made_seldom_and_at_once_where_it_matters(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends_late(attempt: Attempt) -> Iterator[object]:
        for step, _ in zip(range(600), trains_on(attempt), strict=False):
            yield step + 1
        attempt.end("succeeded")

    stage.stories.append(ends_late)
    controller = stage.controller(only=False)
    turns(stage, controller)
    controller._keeper._kept |= {f"other-{number}": _Kept() for number in range(99)}
    build, built = Follower.ledger, list[float]()

    def slow(self: Follower) -> Ledger | None:
        built.append(stage.clock.now)
        stage.clock.sleep(0.01)
        return build(self)

    monkeypatch.setattr(Follower, "ledger", slow)
    steps, spent = set(), set()
    while phase(stage) is Phase.RUNNING:
        controller.turn()
        stage.clock.sleep(0.1)
        status = stage.stored().status
        assert status.progress is not None
        assert status.cost is not None
        assert status.attempts[-1].cost == status.cost.spent
        steps.add(status.progress.step)
        spent.add(status.cost.spent)
    assert phase(stage) is Phase.SUCCEEDED
    assert len(built) < 6, "each 20 seconds, of about 70"
    assert len(spent) <= len(built) + 1
    assert len(steps) > 3 * len(spent), "how far it is, is told more often than what it costs"
    final, whole = stage.stored().status.cost, ledger_of(stage.record)
    assert final is not None
    assert whole is not None
    assert final.spent == f"{whole.totals.cost:.6f}", "in the end all is counted"
    controller.close()


def test_the_pause_grows_with_the_turn() -> None:
    assert [service.pause(took) for took in (0.0, 0.05, 0.1, 0.2, 5.0)] == [0.2, 0.2, 0.4, 0.8, 1.0]


def test_money_of_a_team_that_another_launch_has_in_its_hands_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, with_budget(tmp_path, "1.00"))
    (tmp_path / "budgets.yaml").write_text("- {team: default, limit: '9.00', currency: USD}\n")
    settings = Settings.load({"FATHOM_HOME": str(tmp_path), "FATHOM_BUDGETS": str(tmp_path / "budgets.yaml")})
    stage.stories.append(trains_on)
    controller = stage.controller(settings, only=False)
    lock = tmp_path / ".budget-default.lock"
    with locked(lock) as mine:
        assert mine
        turns(stage, controller, 6)
        status = stage.stored().status
        assert status.phase is Phase.QUEUED
        assert condition(status, ConditionType.ADMITTED).reason is Reason.WAITING_FOR_TEAM_BUDGET
        assert "is held by another launch for 0.1 s" in condition(status, ConditionType.ADMITTED).message
    turns(stage, controller)
    assert phase(stage) is Phase.RUNNING
    with locked(lock) as mine:
        assert mine
        stage.wish(lambda wish: replace(wish, job=limited(wish.job, "2.00")))
        turns(stage, controller, 3)
        stored = stage.stored()
        assert (stored.status.phase, stored.status.observed_generation) == (Phase.RUNNING, 1), "it is not seen yet"
        assert Record.open(stage.record.folder.root).job.spec.budget == Budget(limit="1.00")
    turns(stage, controller, 3)
    assert stage.stored().status.observed_generation == 2
    assert Record.open(stage.record.folder.root).job.spec.budget == Budget(limit="2.00")
    assert len(stage.started) == 1
    controller.close()
    stage.store.database.close()
