"""The launcher with a driver, a clock and an MLflow of the test: what it does when a driver hangs, dies or stalls."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from support.launcher import Attempt, Stage, Story, obeys, trains_on, with_budget

from orchestrator.controller.change import resolve_next
from orchestrator.controller.history import History
from orchestrator.controller.limit import change_limit
from orchestrator.controller.record import Record
from orchestrator.cost.timeline import Held
from orchestrator.launch import local
from orchestrator.launch.base import Capacity, RunFolder
from orchestrator.launch.events import FailureClass, read_control
from orchestrator.settings import Settings
from orchestrator.spec import Budget
from orchestrator.status import ConditionType, JobStatus, Phase, Reason


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def works(attempt: Attempt) -> Iterator[object]:
    attempt.start(0)
    yield 1
    attempt.train(8)
    yield 1
    attempt.end("succeeded")


def hangs(attempt: Attempt) -> Iterator[object]:
    attempt.start(0)
    yield 1
    attempt.train(1)
    while True:
        yield 1


def vanishes(attempt: Attempt) -> Iterator[object]:
    attempt.start(0)
    yield 1


def stalls(attempt: Attempt) -> Iterator[object]:
    yield 1
    attempt.end("failed", "stalled", "no step")


def saves_and_stalls(attempt: Attempt) -> Iterator[object]:
    yield 1
    attempt.save(attempt.resolved.attempt)
    attempt.end("failed", "stalled", "no step")


def test_a_calm_run(stage: Stage) -> None:
    result = stage.run(works)
    assert (result.decision, result.ended.outcome, stage.killed) == ("succeed", "succeeded", [])


def test_a_driver_that_does_not_answer_is_killed_and_the_run_goes_on(stage: Stage) -> None:
    began = stage.clock.now
    result = stage.run(hangs, works)
    assert result.decision == "succeed"
    assert stage.killed == [1]
    first = stage.ends()[0]
    assert (first.outcome, first.failure_class, first.step) == ("failed", FailureClass.STALLED, 1)
    assert "the driver did not answer: no event for 66" in first.message
    assert "no worker process lives; no rank left its stacks" in first.message
    waited = first.time - began
    assert 2 * 300 + 60 < waited < 2 * 300 + 65
    seconds = result.ledger.totals.seconds_by_class
    assert seconds["recovering"] > 600, "all of it is waste"
    assert seconds["idle"] < 5


@pytest.mark.parametrize(
    ("stories", "decision"),
    [
        ([stalls, works], "succeed"),
        ([stalls, stalls], "fail"),
        ([saves_and_stalls, stalls], "fail"),
        ([stalls, saves_and_stalls, works], "succeed"),
        ([stalls, vanishes], "fail"),
        ([saves_and_stalls, vanishes, works], "succeed"),
    ],
)
def test_a_stall_is_tried_again_once(stage: Stage, stories: list[Story], decision: str) -> None:
    result = stage.run(*stories)
    assert result.decision == decision
    assert [e.attempt for e in stage.ends()] == list(range(1, len(stories) + 1))


def test_a_driver_that_vanished(stage: Stage) -> None:
    result = stage.run(vanishes, vanishes)
    assert result.decision == "fail"
    assert [e.failure_class for e in stage.ends()] == [FailureClass.DRIVER_LOST] * 2
    assert str(stage.record.folder.log(2)) in result.ended.message


def test_a_later_attempt_has_the_recipe_of_the_first(stage: Stage) -> None:
    stage.run(stalls, works)
    first, second = stage.started
    assert second.recipe == first.recipe
    assert second.incarnation != first.incarnation
    assert sorted(c.path for c in second.chosen) == sorted(c.path for c in first.chosen)


def test_an_end_that_nobody_wrote_is_written_when_the_run_is_resumed(stage: Stage) -> None:
    """Driver and launcher were both shot: attempt 1 has events and held time, and no end."""
    first = resolve_next(stage.record, History(stage.record), stage.settings, 1)
    local.prepare(stage.record.folder, first)
    attempt = Attempt(stage.record.folder, first, stage.clock)
    attempt.start(0)
    stage.clock.now += 50
    attempt.train(3)
    stage.record.save_held([Held(1, 1_000_000.0, 1_000_020.0)])
    stage.clock.now += 36_000
    result = stage.run(works)
    assert result.decision == "succeed"
    one, two = stage.ends()
    assert (one.attempt, one.outcome, one.failure_class, one.step) == (1, "failed", FailureClass.DRIVER_LOST, 3)
    assert "found so when the run was resumed" in one.message
    assert one.time == 1_000_050.0, "not the ten hours in which nothing was held"
    assert (two.attempt, two.outcome) == (2, "succeeded")
    assert result.ledger.totals.held_seconds < 60
    status = stage.record.status()
    assert status is not None
    assert [a.outcome for a in status.attempts] == ["failed", "succeeded"]
    stage.grant()
    stage.run()
    assert len(stage.ends()) == 2, "a run that has succeeded is not resumed"


def test_an_end_is_not_written_twice(stage: Stage) -> None:
    assert stage.run(stalls, stalls).decision == "fail"
    stage.grant()
    assert stage.run(works).decision == "succeed"
    assert [(e.attempt, e.failure_class) for e in stage.ends()] == [
        (1, FailureClass.STALLED),
        (2, FailureClass.STALLED),
        (3, None),
    ]


def test_fenced_attempts_do_not_come_back(stage: Stage) -> None:
    def fenced(attempt: Attempt) -> Iterator[object]:
        yield 1
        attempt.end("failed", "fenced", "another has begun")

    assert stage.run(fenced).decision == "fail"


def test_full_memory_is_tried_again(stage: Stage) -> None:
    def full(attempt: Attempt) -> Iterator[object]:
        yield 1
        attempt.end("failed", "out-of-memory", "m")

    assert stage.run(full, works).decision == "succeed"


def test_a_damaged_status_is_written_anew(stage: Stage) -> None:
    stage.record.folder.status.write_text("{")
    stage.run(works)
    assert stage.record.status() is not None


# The budget: a dollar of it pays for 3600 / 0.0816 seconds of two virtual CPUs


@pytest.fixture
def poor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Money for 441 seconds."""
    return Stage(tmp_path, monkeypatch, with_budget(tmp_path, "0.01"))


def test_the_stop_is_ordered_early_enough_for_a_last_checkpoint(poor: Stage) -> None:
    result = poor.run(obeys)
    assert (result.decision, result.ended.failure_class) == ("stop", FailureClass.OVER_BUDGET)
    assert result.ended.message == "over-budget"
    assert poor.killed == []
    seconds = 0.01 * 3600 / 0.0816
    assert seconds - 62 < float(result.ledger.totals.held_seconds) < seconds - 55
    assert result.ledger.totals.cost < Decimal("0.01")
    assert [words for words in poor.said if "budget" in words] == [
        "50% of the budget is spent: $0.0050 of $0.0100",
        "80% of the budget is spent: $0.0080 of $0.0100",
    ]


def test_what_does_not_stop_is_ended_before_the_limit(poor: Stage) -> None:
    result = poor.run(trains_on)
    assert (result.decision, result.ended.failure_class) == ("stop", FailureClass.OVER_BUDGET)
    assert poor.killed == [1]
    assert Decimal("0.0095") < result.ledger.totals.cost < Decimal("0.01")
    poor.grant()
    poor.run()
    status = poor.stored().status
    complete = status.condition(ConditionType.COMPLETE)
    assert status.phase is Phase.SUSPENDED
    assert complete is not None
    assert complete.reason is Reason.LIMIT_REACHED
    words = r"is 0\.01 USD: the 0\.000\d+ that are left pay for \d\.\d s, .* take 60 s"
    assert re.search(words, complete.message)


def test_a_later_attempt_has_what_is_left_and_keeps_what_was_measured(poor: Stage) -> None:
    def slow(attempt: Attempt) -> Iterator[object]:
        attempt.start(0)
        for step in (1, 2, 3):
            yield step
            attempt.clock.now += 20
            attempt.train(step)
        attempt.clock.now += 40
        attempt.save(3)
        attempt.end("failed", "worker-lost", "m")

    poor.run(slow, obeys)
    second = poor.started[1]
    assert second.reserve.heartbeat == pytest.approx(20, abs=0.5)
    assert second.reserve.save == pytest.approx(40, abs=0.5)
    assert second.money_left is not None
    assert Decimal("0.0076") < second.money_left < Decimal("0.0078"), "less a hundred seconds"


def test_what_an_attempt_holds_is_written_down_before_it_is_started(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that dies at once leaves a driver that is paid for."""
    seen, start = list[list[Held]](), stage.launcher.start

    def starts(folder: RunFolder, attempt: int) -> None:
        assert folder.resolved(1).exists()
        seen.append(stage.record.held())
        start(folder, attempt)

    monkeypatch.setattr(stage.launcher, "start", starts)
    stage.run(works)
    assert seen == [[Held(1, 1_000_000.0, 1_000_000.0)]]


def test_a_record_that_takes_long_is_written_less_often(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[float] = []

    save = Record.save_status

    def slow(record: Record, status: JobStatus) -> None:
        saves.append(stage.clock.now)
        stage.clock.now += 3.0
        save(record, status)

    monkeypatch.setattr(Record, "save_status", slow)

    def trains(attempt: Attempt) -> Iterator[object]:
        attempt.start(0)
        for step in range(1, 60):
            yield step
            attempt.clock.now += 5
            attempt.train(step)
        attempt.end("succeeded")

    stage.run(trains)
    during = saves[3:-2]  # it is accepted, starts, runs; at its end, all of it is written at once
    assert len(during) >= 2
    assert min(after - before for before, after in itertools.pairwise(during)) >= 60


def test_a_limit_that_is_raised_while_it_runs_is_that_of_the_next_attempt_too(poor: Stage) -> None:
    def raised(attempt: Attempt) -> Iterator[object]:
        attempt.start(0)
        yield 1
        change_limit(poor.record, "0.05", poor.settings, poor.clock.now)
        for step in range(1, 5):
            yield step
            attempt.train(step)
        told = read_control(attempt.folder.control).hard_deadline
        assert told is not None
        assert told.limit == pytest.approx(1_000_000 + 5 * 3600 * 0.01 / 0.0816, abs=1e-2)
        attempt.end("failed", "worker-lost", "m")

    poor.run(raised, works)
    left = poor.started[1].money_left
    assert left is not None
    assert Decimal("0.0499") < left < Decimal("0.05")
    assert poor.said[0] == "the limit of the budget is $0.0500 now (it was $0.0100)"
    status = poor.record.status()
    assert status is not None
    assert any(condition.message.endswith("of 0.05 is spent") for condition in status.conditions)
    assert Record.open(poor.record.folder.root).job.spec.budget == Budget(limit="0.05")


def test_a_price_file_that_is_broken_between_attempts_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prices.yaml"
    row = {"accelerator": "cpu", "priceClass": "on-demand", "amount": "0.03", "currency": "USD", "unit": "cpu-hour"}
    file.write_text(json.dumps([row | {"source": "s", "date": "2026-01-01"}]))
    stage = Stage(tmp_path, monkeypatch)

    def breaks(attempt: Attempt) -> Iterator[object]:
        yield 1
        file.write_text("- {")
        attempt.end("failed", "worker-lost", "m")

    result = stage.run(breaks, works, settings=stage.settings.model_copy(update={"price_file": file}))
    assert result.decision == "succeed"
    assert [one.rate.per_hour for one in stage.started] == [Decimal("0.06")] * 2
    assert any("the prices of before stay in force" in words for words in stage.said)


# The team's budget


def teams(root: Path, limit: str) -> Settings:
    (root / "budgets.yaml").write_text(f'- {{team: default, limit: "{limit}", currency: USD}}\n')
    return Settings.load({"FATHOM_HOME": str(root), "FATHOM_BUDGETS": str(root / "budgets.yaml")})


def test_a_run_reserves_while_it_goes_on(poor: Stage, tmp_path: Path) -> None:
    seen: list[bool] = []

    def looks(attempt: Attempt) -> Iterator[object]:
        seen.append(attempt.folder.reserved.exists())
        yield from works(attempt)

    poor.run(looks, settings=teams(tmp_path, "0.01"))
    assert seen == [True]
    assert not poor.record.folder.reserved.exists()


def test_who_cannot_be_paid_keeps_no_place_from_those_who_can(poor: Stage, tmp_path: Path) -> None:
    """It is older, and fits: it would get the only place in each turn, and start in none."""
    poor.launcher.machine = Capacity(2)
    job = poor.job.wish.job
    spec = job.spec.model_copy(update={"budget": Budget(limit="0.005")})
    metadata = job.metadata.model_copy(update={"name": "cheap"})
    cheap = poor.store.create(job.model_copy(update={"metadata": metadata, "spec": spec}), by="test")
    poor.stories.append(works)
    controller = poor.controller(teams(tmp_path, "0.009"), only=False)
    for _ in range(8):
        controller.turn()
        poor.clock.sleep(3)
    controller.close()
    assert [one.job.name for one in poor.started] == ["cheap"]
    found = poor.store.by_uid(cheap.uid)
    assert found is not None
    assert found.status.phase is Phase.SUCCEEDED
    assert poor.stored().status.phase is Phase.QUEUED


def test_a_run_that_its_team_cannot_pay_is_not_started(poor: Stage, tmp_path: Path) -> None:
    controller = poor.controller(teams(tmp_path, "0.009"))
    for _ in range(3):
        controller.turn()
    controller.close()
    status = poor.stored().status
    assert status.phase is Phase.QUEUED
    admitted = status.condition(ConditionType.ADMITTED)
    assert admitted is not None
    assert admitted.reason is Reason.WAITING_FOR_TEAM_BUDGET
    assert re.search(r"asks for 0\.01 USD, but default has 0\.009 of its 0\.009 left", admitted.message)
    assert poor.started == []
    assert not poor.record.folder.resolved(1).exists(), "no attempt was made"
