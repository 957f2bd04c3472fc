"""The sentences about jobs: complete, distinct, and naming only what exists."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import tiny_job

from orchestrator.cli.main import app
from orchestrator.controller.retry import BLAMELESS, ONCE, RETRYABLE
from orchestrator.explain import all_fields, walk
from orchestrator.launch.events import FailureClass
from orchestrator.reasons import CONDITIONS, FAILURES, Ways
from orchestrator.reference import reasons_reference
from orchestrator.status import REASONS, ConditionType, JobStatus, Phase, Reason
from orchestrator.why import failure_of, why

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
PAIRS = [(kind, reason) for kind in ConditionType for reason in sorted(REASONS[kind])]
TEXTS = [*(CONDITIONS[kind][reason] for kind, reason in PAIRS), *FAILURES.values()]
VARIABLES = {"FATHOM_BUDGETS", "FATHOM_PRICES", "MLFLOW_TRACKING_URI"}
"""Registered by the part that runs it."""


def status(**given: Any) -> JobStatus:  # noqa: ANN401 - parts of a document
    return JobStatus.model_validate_json(JobStatus.model_validate(given, strict=False).model_dump_json())


def condition(kind: str, reason: str, true: str = "True", message: str = "") -> dict[str, Any]:
    since = NOW - timedelta(minutes=10)
    return {"type": kind, "reason": reason, "status": true, "message": message, "lastTransitionTime": since}


def attempt(number: int = 1, outcome: str | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"number": number, "startedAt": NOW, "outcome": outcome, "reason": reason} | more


def progress(**changed: Any) -> dict[str, Any]:  # noqa: ANN401
    values = {"step": 100, "steps": 1000, "tokens": 100_000, "tokensPerSecond": "1000.0", "observedAt": NOW}
    return values | {"etaSeconds": 900} | changed


def test_every_reason_and_every_class_has_a_text() -> None:
    assert {kind: frozenset(texts) for kind, texts in CONDITIONS.items()} == REASONS
    assert set(FAILURES) == set(FailureClass)


def test_no_text_says_what_another_says() -> None:
    for number, one in enumerate(TEXTS):
        assert len(one.says) > 10
        assert one.do
        assert one.says not in {other.says for other in TEXTS[number + 1 :]}


@pytest.mark.parametrize("ways", [Ways.by_name("NAME"), Ways.by_folder("NAME", "runs/x", 1)])
def test_an_advice_names_what_exists(ways: Ways) -> None:
    commands = {one.name for one in app.registered_commands} | {one.name for one in app.registered_groups}
    known = {one.path for one in walk(all_fields())}
    for text in TEXTS:
        said = text.do.format(**asdict(ways))
        quoted = re.findall(r"`([^`]+)`", said)
        for word in quoted:
            if word.startswith("fathom "):
                assert word.split()[1] in commands, word
            else:
                assert word in known, word
        assert set(re.findall(r"[A-Z]{4,}_[A-Z_]+", said)) <= VARIABLES
        assert quoted or "fathom" in said or "attempt-1.log" in said, said


def test_all_ways_are_used() -> None:
    used = {name for text in TEXTS for name in re.findall(r"{(\w+)}", text.do)}
    assert used | {"job", "stop", "follow"} == {one.name for one in fields(Ways)}


def test_each_condition_alone_is_explained_by_its_text() -> None:
    sentences = set()
    for kind, reason in PAIRS:
        found = why(tiny_job(), status(conditions=[condition(kind, reason)]), NOW)
        if CONDITIONS[kind][reason].urgency:
            assert CONDITIONS[kind][reason].says in found.sentence
        sentences.add(found.sentence)
    assert len(sentences) == len(PAIRS)


@pytest.mark.parametrize("kind", FailureClass)
def test_each_class_of_failure_is_explained(kind: FailureClass) -> None:
    found = why(tiny_job(), status(phase="Failed", attempts=[attempt(1, "failed", f"{kind}: it was so.")]), NOW)
    assert (
        found.sentence
        == f"tiny has failed after attempt 1 ended {kind}, which means that {FAILURES[kind].says}: it was so."
    )
    assert found.advice == FAILURES[kind].do.format(**asdict(Ways.by_name("tiny")))


@pytest.mark.parametrize("phase", Phase)
def test_a_phase_without_anything_else_has_a_sentence(phase: Phase) -> None:
    found = why(tiny_job(), status(phase=phase), NOW)
    assert found.sentence.startswith("tiny ")
    assert found.advice


def test_what_explains_most_leads() -> None:
    waiting = [condition("Accepted", "Valid"), condition("Priced", "PriceFound"), condition("BudgetOK", "WithinBudget")]
    waiting += [
        condition("Complete", "NotEnded", "False"),
        condition("Admitted", "WaitingForSlots", "False", "needs 2 CPUs"),
    ]
    found = why(tiny_job(), status(phase="Queued", conditions=waiting), NOW)
    assert (
        found.sentence
        == "tiny waits for a free place on this machine, since those that it needs are in use: needs 2 CPUs."
    )
    assert "Admitted is False (WaitingForSlots) for 10 minutes" in found.details


def test_an_invalid_job_is_explained_by_what_is_wrong_with_it() -> None:
    conditions = [
        condition("Complete", "Failed"),
        condition("Accepted", "Invalid", "False", "spec.model: no such preset"),
    ]
    found = why(tiny_job(), status(phase="Failed", conditions=conditions), NOW)
    assert found.sentence == "tiny cannot run as it is written: spec.model: no such preset."


def test_a_run_that_is_slow_says_by_how_much() -> None:
    # 1,000,000 tokens at 1000 a second: 0.278 hours
    running = {"phase": "Running", "conditions": [condition("Running", "MakingProgress")], "progress": progress()}
    quick = why(tiny_job(), status(**running, plan={"hoursLow": "0.1", "hoursHigh": "0.25"}), NOW)
    assert quick.sentence == "tiny is training: step 100 of 1,000, about 15 minutes to go."
    slow = why(tiny_job(), status(**running, plan={"hoursLow": "0.1", "hoursHigh": "0.1"}), NOW)
    assert "is training slowly" in slow.sentence
    assert "takes 17 minutes, 2.8 times the 6 minutes that were forecast at most" in slow.sentence


def test_a_status_that_nobody_keeps_says_so() -> None:
    old = progress(observedAt=NOW - timedelta(hours=3))
    found = why(
        tiny_job(), status(phase="Running", progress=old, conditions=[condition("Running", "MakingProgress")]), NOW
    )
    assert found.sentence == "tiny was at step 100 of 1,000 when somebody last looked after it, 3 hours ago."
    assert "`fathom serve`" in found.advice
    fresh = why(
        tiny_job(), status(phase="Succeeded", progress=old, conditions=[condition("Complete", "Succeeded")]), NOW
    )
    assert fresh.sentence == "tiny has succeeded."


def test_a_budget_that_is_used_up_and_a_person_who_stopped_differ() -> None:
    over = why(
        tiny_job(), status(phase="Suspended", attempts=[attempt(1, "stopped", "over-budget: 5 of 5", toStep=40)]), NOW
    )
    assert over.sentence == "tiny stopped at step 40 because what is left of its budget does not pay for more: 5 of 5."
    assert "`fathom budget tiny --limit AMOUNT`" in over.advice
    stopped = why(tiny_job(), status(phase="Suspended", attempts=[attempt(1, "stopped", "interrupted: Ctrl-C")]), NOW)
    assert stopped.sentence == "tiny is suspended because a person or a signal stopped it: Ctrl-C."
    assert stopped.advice == "go on from the last checkpoint with `fathom resume tiny`"


def test_money_that_came_to_an_end_after_a_person_had_stopped_and_resumed_it() -> None:
    money = condition("BudgetOK", "LimitReached", "False", "4.9 of 5 is spent")
    stopped = [attempt(1, "stopped", "interrupted: suspended")]
    found = why(tiny_job(), status(phase="Suspended", attempts=stopped, conditions=[money]), NOW)
    assert found.sentence.startswith("tiny stopped because what is left of its budget")


def test_trouble_of_the_service_is_not_hidden_by_the_silence_that_it_causes() -> None:
    old = progress(observedAt=NOW - timedelta(hours=3))
    trouble = condition("Running", "ControllerError", "Unknown", "disk full")
    found = why(tiny_job(), status(phase="Running", progress=old, conditions=[trouble]), NOW)
    assert found.sentence.endswith("because something fails in the service, which tries again: disk full.")


def test_one_that_is_done_is_not_told_to_go_on() -> None:
    ended = condition("Running", "Ended", "False")
    found = why(tiny_job(), status(phase="Running", conditions=[ended], attempts=[attempt(outcome="succeeded")]), NOW)
    assert "has done all its steps" in found.sentence
    assert "resume" not in found.advice


def test_a_suspended_wish_is_named_before_how_the_attempt_ended() -> None:
    job = tiny_job()
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"suspend": True})})
    ended = [attempt(1, "stopped", "interrupted: ordered")]
    found = why(job, status(phase="Suspended", attempts=ended, conditions=[condition("Running", "Suspended")]), NOW)
    assert found.sentence == "tiny is suspended and holds no machines."


def test_what_else_a_person_should_hear_is_among_the_details() -> None:
    conditions = [
        condition("Running", "MakingProgress"),
        condition("BudgetOK", "NearLimit", "True", "4.5 of 5 is spent"),
    ]
    found = why(tiny_job(), status(phase="Running", conditions=conditions, progress=progress()), NOW)
    assert "BudgetOK NearLimit: it has nearly used up its budget: 4.5 of 5 is spent" in found.details


def test_a_reason_without_a_class_is_unknown() -> None:
    found = status(attempts=[attempt(1, "failed", "something else")]).attempts[0]
    assert failure_of(found) == (FailureClass.UNKNOWN, "something else")


def test_the_reference_says_what_is_tried_again() -> None:
    rows = [line for line in reasons_reference().splitlines() if line.startswith("| ")]
    for kind in FailureClass:
        (row,) = [row for row in rows if row.startswith(f"| {kind} |")]
        expected = "once" if kind in ONCE else "yes" if kind in RETRYABLE else "no"
        assert row.split(" | ")[2] == (f"{expected}, and not counted" if kind in BLAMELESS else expected)
    for pair in PAIRS:
        assert len([row for row in rows if row.startswith(f"| {pair[0]} | {pair[1]} |")]) == 1


@given(
    phase=st.sampled_from(Phase),
    reasons=st.tuples(*(st.none() | st.sampled_from(sorted(REASONS[kind])) for kind in ConditionType)),
    outcome=st.none() | st.sampled_from(["succeeded", "stopped", "failed"]),
    failure=st.none() | st.sampled_from(FailureClass),
    speed=st.none() | st.sampled_from(["0", "0.000000001", "-1", "99999999"]),
    high=st.none() | st.sampled_from(["0", "0.001", "1000"]),
    steps=st.sampled_from([0, 1, 10**9]),
    message=st.text(max_size=40),
)
def test_whatever_the_status_there_is_a_sentence_and_an_advice(
    phase: Phase,
    reasons: tuple[Reason | None, ...],
    outcome: str | None,
    failure: FailureClass | None,
    speed: str | None,
    high: str | None,
    steps: int,
    message: str,
) -> None:
    conditions = [
        condition(kind, reason, message=message) for kind, reason in zip(ConditionType, reasons, strict=True) if reason
    ]
    tries = [] if outcome is None else [attempt(1, outcome, failure and f"{failure}: {message}")]
    found = why(
        tiny_job(),
        status(
            phase=phase,
            conditions=conditions,
            attempts=tries,
            plan={"hoursHigh": high},
            progress=progress(step=steps, tokensPerSecond=speed),
        ),
        NOW,
    )
    assert found.sentence.startswith("tiny ")
    assert found.sentence.endswith(".")
    assert found.sentence.isprintable()
    assert found.advice
    assert "{" not in found.advice
