import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.controller.retry import BLAMELESS, ONCE, RETRYABLE, Tally, after_attempt
from orchestrator.launch.events import Ended, FailureClass
from orchestrator.spec import Retry

RETRY = Retry(max_attempts=3, stop_after_attempts_without_progress=2)
PATIENT = Retry(max_attempts=1000, stop_after_attempts_without_progress=1000)
F = FailureClass


def ended(outcome: str, failure: FailureClass | None = None) -> Ended:
    values = {"job": "u", "attempt": 1, "incarnation": "i", "seq": 1, "time": 0.0}
    return Ended.model_validate(values | {"outcome": outcome, "failure_class": failure})


def decisions(retry: Retry, *failures: tuple[FailureClass, bool]) -> list[str]:
    """After each of a series of failed attempts, given with whether they committed a checkpoint."""
    tally, found = Tally(), list[str]()
    for failure, progressed in failures:
        tally = tally.add(ended("failed", failure), progressed=progressed)
        found.append(after_attempt(ended("failed", failure), retry, tally))
    return found


def test_success_and_an_ordered_stop_end_the_job() -> None:
    assert after_attempt(ended("succeeded"), RETRY, Tally(1)) == "succeed"
    assert after_attempt(ended("stopped", F.INTERRUPTED), RETRY, Tally(1)) == "stop"
    assert after_attempt(ended("stopped", F.OVER_BUDGET), RETRY, Tally(1)) == "stop"


@pytest.mark.parametrize("failure", list(FailureClass))
def test_only_what_trying_again_may_cure_is_tried_again(failure: FailureClass) -> None:
    assert decisions(RETRY, (failure, False)) == ["retry" if failure in RETRYABLE else "fail"]
    assert {F.USER_ERROR, F.NOT_FINITE, F.FENCED, F.OVER_BUDGET}.isdisjoint(RETRYABLE)
    assert ONCE < RETRYABLE


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ([True, True, True], ["retry", "retry", "fail"]),
        ([False, False], ["retry", "fail"]),
        ([False, True, False], ["retry", "retry", "fail"]),
        ([True, False, False], ["retry", "retry", "fail"]),
    ],
)
def test_attempts_are_bounded(progress: list[bool], expected: list[str]) -> None:
    assert decisions(RETRY, *((F.DRIVER_LOST, progressed) for progressed in progress)) == expected


@pytest.mark.parametrize("once", sorted(ONCE))
@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([("same", False)], "fail"),
        ([("same", True)], "fail"),  # the first one had saved something, the second one nothing
        ([("other", False)], "retry"),
        ([("same", False), ("other", False)], "retry"),
        ([], "retry"),
    ],
)
def test_a_stall_and_full_memory_are_tried_again_once(
    once: FailureClass, others: list[tuple[str, bool]], expected: str
) -> None:
    classes = {"same": once, "other": F.WORKER_LOST}
    before = [(classes[name], progressed) for name, progressed in others]
    assert decisions(PATIENT, *before, (once, False))[-1] == expected


@pytest.mark.parametrize("once", sorted(ONCE))
def test_a_checkpoint_in_between_grants_another_try(once: FailureClass) -> None:
    assert decisions(PATIENT, (once, False), (once, True), (once, True)) == ["retry"] * 3
    assert decisions(PATIENT, (once, False), (once, True), (once, False))[-1] == "fail"


RETRIES = st.builds(Retry, max_attempts=st.integers(1, 8), stop_after_attempts_without_progress=st.integers(1, 8))
ENDINGS = st.lists(st.tuples(st.sampled_from(list(FailureClass)), st.booleans()), min_size=8, max_size=8)


@given(RETRIES, ENDINGS)
def test_any_series_of_failures_comes_to_an_end(retry: Retry, endings: list[tuple[FailureClass, bool]]) -> None:
    found = decisions(retry, *endings)
    assert set(found) <= {"retry", "fail"}
    counted = [decision for decision, (failure, _) in zip(found, endings, strict=True) if failure not in BLAMELESS]
    assert len(counted) < retry.max_attempts or "fail" in counted[: retry.max_attempts]


def test_an_attempt_whose_machines_others_were_given_counts_as_none() -> None:
    assert decisions(RETRY, *[(F.PREEMPTED, False)] * 50) == ["retry"] * 50
    lost, taken, saved = (F.DRIVER_LOST, False), (F.PREEMPTED, False), (F.PREEMPTED, True)
    assert decisions(RETRY, lost, taken, lost)[-1] == "fail"
    assert decisions(RETRY, lost, saved, lost)[-1] == "retry"
