import pytest

from orchestrator.controller.decide import RETRYABLE, after_attempt
from orchestrator.launch.events import Ended, FailureClass
from orchestrator.spec import Retry

RETRY = Retry(max_attempts=3, stop_after_attempts_without_progress=2)


def ended(outcome: str, failure: FailureClass | None = None) -> Ended:
    values = {"job": "u", "attempt": 1, "incarnation": "i", "seq": 1, "time": 0.0}
    return Ended.model_validate(values | {"outcome": outcome, "failure_class": failure})


def test_success_and_an_ordered_stop_end_the_job() -> None:
    assert after_attempt(ended("succeeded"), RETRY, 1, 0) == "succeed"
    assert after_attempt(ended("stopped", FailureClass.INTERRUPTED), RETRY, 1, 0) == "stop"


@pytest.mark.parametrize("failure", list(FailureClass))
def test_only_what_trying_again_may_cure_is_tried_again(failure: FailureClass) -> None:
    assert after_attempt(ended("failed", failure), RETRY, 1, 0) == ("retry" if failure in RETRYABLE else "fail")
    assert {FailureClass.USER_ERROR, FailureClass.NOT_FINITE, FailureClass.OUT_OF_MEMORY}.isdisjoint(RETRYABLE)


@pytest.mark.parametrize(
    ("attempts", "without_progress", "expected"),
    [(2, 0, "retry"), (3, 0, "fail"), (2, 1, "retry"), (2, 2, "fail")],
)
def test_attempts_are_bounded(attempts: int, without_progress: int, expected: str) -> None:
    lost = ended("failed", FailureClass.DRIVER_LOST)
    assert after_attempt(lost, RETRY, attempts, without_progress) == expected
