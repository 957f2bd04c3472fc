"""The launcher when the clock is set back or its orders cannot be written: the budget holds all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import Attempt, Stage, Story, obeys, trains_on, with_budget, with_suspend

from orchestrator.controller import follower
from orchestrator.cost.budget import Deadlines
from orchestrator.launch import local
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import FailureClass


@pytest.fixture
def poor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Money for 441 seconds."""
    return Stage(tmp_path, monkeypatch, with_budget(tmp_path, "0.01"))


def test_an_order_to_stop_that_cannot_be_written_is_tried_again(poor: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full for a moment: the launcher goes on watching the money."""
    order, tries = poor.launcher.order_stop, list[str]()

    def full(folder: RunFolder, reason: str, grace: float) -> None:
        tries.append(reason)
        if len(tries) < 5:
            raise OSError("no space left")
        order(folder, reason, grace)

    monkeypatch.setattr(poor.launcher, "order_stop", full)
    result = poor.run(obeys)
    assert (result.ended.failure_class, poor.killed, len(tries)) == (FailureClass.OVER_BUDGET, [], 5)
    assert [said for said in poor.said if "order to stop" in said] == [
        "the order to stop could not be written, it is tried again: no space left"
    ]


@pytest.mark.parametrize("limit", ["0.01", "1000.00"])
def test_who_cannot_be_told_to_stop_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    stage = Stage(tmp_path, monkeypatch, with_budget(tmp_path, limit))
    monkeypatch.setattr(stage.launcher, "order_stop", full)
    told = list[float]()

    def enough(attempt: Attempt) -> Iterator[object]:
        for step in trains_on(attempt):
            if step == 5:
                told.append(stage.clock.now)
                stage.wish(lambda wish: with_suspend(wish, suspend=True))
            yield step

    result = stage.run(enough)
    assert (result.decision, stage.killed) == ("stop", [1])
    assert stage.clock.now - told[0] < follower.GRACE_SECONDS + 1


@pytest.mark.parametrize("story", [trains_on, obeys])
def test_a_clock_that_is_set_back_gives_no_time(poor: Stage, monkeypatch: pytest.MonkeyPatch, story: Story) -> None:
    """Neither to the launcher nor, by the launcher's word, to the job."""
    began, given = poor.clock.now, list[float]()
    monkeypatch.setattr(poor.clock, "monotonic", lambda: poor.clock.now)
    monkeypatch.setattr(poor.clock, "time", lambda: poor.clock.now - (3600 if poor.clock.now > began + 100 else 0))
    tell = local.give_deadline

    def told(folder: RunFolder, incarnation: str, until: Deadlines) -> None:
        given.append(until.limit - poor.clock.time() + poor.clock.now - began)
        tell(folder, incarnation, until)

    monkeypatch.setattr(local, "give_deadline", told)
    money_for = 0.01 * 3600 / 0.0816

    def in_time(attempt: Attempt) -> Iterator[object]:
        for moment in story(attempt):
            assert poor.clock.now - began < money_for, "held for more than there is money"
            yield moment

    result = poor.run(in_time)
    assert result.ended.failure_class == FailureClass.OVER_BUDGET
    assert poor.clock.now - began > money_for - 62
    assert given
    assert max(given) <= money_for
