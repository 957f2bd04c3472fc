"""Attempts as the watch sees them; it looks once a second unless a test says otherwise."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.recipes import tiny_recipe
from support.runs import event, resolved

from orchestrator.launch.events import Event, FailureClass
from orchestrator.launch.failure import Verdict
from orchestrator.launch.watch import Watch


class Story:
    """An attempt of 8 steps, an evaluation after 4 and 8, a batch of 64 tokens, 256 of an evaluation."""

    def __init__(self, *, stall_seconds: float = 20.0, restarts: int = 2, **recipe: Any) -> None:  # noqa: ANN401
        plan = resolved(stall_seconds=stall_seconds, restarts_without_progress=restarts, recipe=tiny_recipe(**recipe))
        self.watch = Watch.of(plan)
        self.now = 0.0
        self.watch.look(self.now)

    def say(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 - fields of an event
        self.watch.add(event(kind, self.now, **fields))

    def started(self, step: int = 0) -> None:
        self.say("started", step=step, tokens=0, world_size=2)

    def progress(self, step: int) -> None:
        self.say("progress", step=step, tokens=0)

    def committed(self, step: int) -> None:
        self.say("checkpoint-committed", step=step, uri="x", size_bytes=1, seconds=0.0)

    def lost(self, reason: str = "gone") -> None:
        self.say("workers-lost", message=reason)

    def anomaly(self, action: str) -> None:
        self.say("anomaly", step=3, data_step=2, fault="spike", action=action, message="m")

    def wait(self, seconds: float) -> Verdict | None:
        """Look each second; the first verdict."""
        until = self.now + seconds
        while self.now < until:
            self.now += 1
            if (verdict := self.watch.look(self.now)) is not None:
                return verdict
        return None

    def steps(self, first: int, last: int, each: float) -> None:
        for step in range(first, last + 1):
            assert self.wait(each) is None
            self.progress(step)


def test_a_calm_run_is_left_alone() -> None:
    story = Story()
    story.started()
    story.steps(1, 8, each=19)
    assert story.wait(60) is None, "after the last step weights and a sample are written"


def test_no_step_for_longer_than_the_floor_is_a_stall() -> None:
    story = Story()
    story.started()
    story.steps(1, 2, each=1)
    assert story.wait(20) is None
    verdict = story.wait(1)
    assert verdict is not None
    assert verdict.failure is FailureClass.STALLED
    assert verdict.message == "no step after step 2 for 21 s (a step takes 1 s), the limit is 20 s"


def test_slow_steps_have_ten_times_their_time() -> None:
    story = Story()
    story.started()
    story.steps(1, 2, each=5)
    assert story.watch.limit == 50
    assert story.wait(50) is None
    assert story.wait(1) is not None


def test_a_step_with_an_evaluation_has_more() -> None:
    story = Story()
    story.started()
    story.steps(1, 3, each=5)
    assert story.watch.limit == 50 * (1 + 256 / 64), "step 4 is followed by an evaluation of four batches"
    story.steps(4, 4, each=5)
    assert story.watch.limit == 50


def test_tasks_have_the_time_of_a_start() -> None:
    """A step that is evaluated is told before its tasks are scored, of which each is told at its end only."""
    story = Story(eval_tasks=("hellaswag.jsonl", "arc.jsonl"))
    story.started()
    story.steps(1, 4, each=1)
    assert story.wait(115) is None
    story.progress(4)
    assert story.wait(115) is None
    story.progress(5)
    assert story.wait(25) is not None
    without = Story()
    without.started()
    without.steps(1, 4, each=1)
    assert without.wait(25) is not None


@pytest.mark.parametrize("words", [[], ["started"], ["lost"], ["started", "lost"]])
def test_a_start_has_six_times_the_floor(words: list[str]) -> None:
    story = Story()
    for word in words:
        getattr(story, word)()
    assert story.wait(120) is None
    verdict = story.wait(1)
    assert verdict is not None
    assert verdict.failure is FailureClass.STALLED
    assert "no first step for 121 s" in verdict.message
    assert ("gone" in verdict.message) == (words[-1:] == ["lost"])


def test_after_a_restart_the_first_step_has_more_time_too() -> None:
    story = Story()
    story.started()
    story.steps(1, 5, each=1)
    story.lost()
    assert story.wait(100) is None
    story.started(5)
    assert story.wait(100) is None
    story.progress(6)
    assert story.wait(21) is not None


def test_a_commit_is_a_sign_of_life_and_a_warning_is_not() -> None:
    story = Story()
    story.started()
    story.steps(1, 2, each=1)
    story.wait(15)
    story.committed(2)
    assert story.wait(20) is None
    story.say("warning", message="hm")
    assert story.wait(1) is not None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("machine-load", {"node": "n", "metrics": {"cpu_utilization_percentage": 99.0}}),
        ("evaluated", {"step": 2, "tokens": 0, "metrics": {"eval/arc/acc": 0.5}}),
    ],
)
@pytest.mark.parametrize("begun", [True, False])
def test_what_others_than_the_workers_say_is_no_sign_of_life(kind: str, fields: dict[str, Any], begun: bool) -> None:
    story = Story()
    if begun:
        story.started()
        story.progress(1)
    limit = story.watch.limit
    for _ in range(int(limit)):
        assert story.wait(1) is None
        story.say(kind, **fields)
    assert (story.watch.limit, story.watch.step, story.watch.restarts) == (limit, int(begun), 0)
    verdict = story.wait(1)
    assert verdict is not None
    assert verdict.failure is FailureClass.STALLED
    while not story.watch.driver_hangs():
        story.say(kind, **fields)
        assert story.now < 10 * limit
        story.wait(1)


def test_other_attempts_and_incarnations_are_passed_over() -> None:
    story = Story()
    story.started()
    story.progress(1)
    story.wait(15)
    foreign = event("progress", story.now, step=2, tokens=0)
    story.watch.add(foreign.model_copy(update={"attempt": 2}))
    story.watch.add(foreign.model_copy(update={"incarnation": "zombie"}))
    assert story.wait(6) is not None


@pytest.mark.parametrize("gap", [3600.0, -3600.0])
def test_a_machine_that_slept_is_no_stall(gap: float) -> None:
    story = Story()
    story.started()
    story.progress(1)
    story.now += gap
    assert story.watch.look(story.now) is None, "nobody looked meanwhile"
    assert story.wait(10) is None
    assert story.wait(11) is not None


def test_clocks_that_run_backward_do_no_harm() -> None:
    story = Story()
    story.now = 1000
    story.started()
    story.progress(1)
    story.now -= 100
    story.progress(2)
    assert story.watch.limit == 20


def test_vain_restarts_end_the_attempt() -> None:
    story = Story(restarts=2)
    for reason in ("first", "second"):
        story.started()
        story.progress(1)
        story.lost(reason)
        assert story.wait(1) is None
    story.started()
    story.lost("third")
    verdict = story.wait(1)
    assert verdict is not None
    assert verdict.failure is FailureClass.WORKER_LOST
    assert "died 3 times without a new checkpoint" in verdict.message
    assert "is 2" in verdict.message
    assert verdict.message.endswith("third")


def test_workers_that_die_before_they_have_started_count_too() -> None:
    story = Story(restarts=2)
    for _ in range(2):
        story.lost()
        assert story.wait(1) is None
    story.lost()
    assert story.wait(1) is not None


def test_restarts_of_which_nobody_told_count_by_their_starts() -> None:
    story = Story(restarts=1)
    story.started()
    story.started()
    assert story.wait(1) is None
    story.started()
    verdict = story.wait(1)
    assert verdict is not None
    assert verdict.message.endswith("not known")


def test_each_new_checkpoint_grants_all_restarts_again() -> None:
    story = Story(restarts=1)
    story.started()
    for step in range(1, 7):
        story.progress(step)
        story.committed(step)
        story.lost()
        assert story.wait(1) is None
        story.started(step)
        assert story.wait(1) is None


@pytest.mark.parametrize(("action", "counts"), [("replay", False), ("skip", False), ("accept", True)])
def test_a_rollback_is_no_loss(action: str, counts: bool) -> None:
    story = Story(restarts=1)
    story.started()
    for _ in range(4):
        story.anomaly(action)
        story.lost("RolledBack")
        story.started()
    assert (story.wait(1) is not None) == counts


def test_a_driver_that_should_have_acted_long_ago_hangs() -> None:
    story = Story()
    story.started()
    story.progress(1)
    story.wait(20)
    while story.watch.silent < 100:
        assert not story.watch.driver_hangs()
        story.wait(1)
    story.wait(1)
    assert story.watch.driver_hangs()


KINDS = st.sampled_from(["started", "progress", "committed", "lost", "anomaly", "wait"])


@given(st.lists(st.tuples(KINDS, st.integers(0, 8)), max_size=40))
def test_no_series_of_events_is_watched_for_ever(drawn: list[tuple[str, int]]) -> None:
    story = Story()
    for kind, step in drawn:
        if kind == "wait":
            story.wait(step)
        elif kind in ("started", "progress", "committed"):
            getattr(story, kind)(step)
        elif kind == "anomaly":
            story.anomaly("replay")
        else:
            story.lost()
    assert story.watch.limit >= 20
    assert story.wait(story.watch.limit + 2) is not None


def test_ended_and_unknown_kinds_change_nothing() -> None:
    story = Story()
    before = story.watch.silent
    end: Event = event("ended", 1.0, outcome="failed", failure_class="unknown")
    story.watch.add(end)
    assert story.watch.silent == before
