"""What the client decides without asking anybody: pauses, differences, what a phase means; and what it exports."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.answered import progress, stored, submitted

import orchestrator
from orchestrator.client import AsyncClient, Client, Job
from orchestrator.client.again import ATTEMPTS, Cut, again, pause
from orchestrator.client.answers import Answer
from orchestrator.client.differences import differences, merge_patch, require_mutable
from orchestrator.client.outcome import failure, over_budget, reached
from orchestrator.errors import Conflict, Interrupted, OverBudget, RunFailed
from orchestrator.spec import TrainingJob
from orchestrator.status import Phase

ROOT = Path(__file__).parents[3]


def job(*arguments: Any, **named: Any) -> Job:  # noqa: ANN401 - of `stored`
    return Job.model_validate(stored(*arguments, **named), by_alias=True)


TAGS = {"tracking": {"tags": {"a": "1", "x.y": "2"}}}


def wanted(**changes: Any) -> TrainingJob:  # noqa: ANN401 - any field of a spec
    return TrainingJob.model_validate(submitted(**changes), by_alias=True)


# ------------------------------------------------------------------ exports


def test_what_is_exported_is_there() -> None:
    assert orchestrator.__all__ == sorted(orchestrator.__all__)
    assert all(inspect.isclass(getattr(orchestrator, name)) for name in orchestrator.__all__)
    assert orchestrator.Client is Client
    assert set(orchestrator.__all__) <= set(dir(orchestrator))
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        getattr(orchestrator, "Clint")  # noqa: B009 - which a checker would refuse


def test_the_package_alone_imports_nothing() -> None:
    code = "import sys, orchestrator\nprint(*sorted({'pydantic', 'httpx2', 'yaml', 'asyncio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""


def test_both_clients_have_the_same_verbs() -> None:
    for name, verb in vars(AsyncClient).items():
        if name.startswith("_") or not inspect.isfunction(verb):
            continue
        same = getattr(Client, name)
        assert inspect.signature(same) == inspect.signature(verb)
        assert same.__doc__ == verb.__doc__ is not None, name


# ------------------------------------------------------------------ once more


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_pauses_grow_and_are_bounded(chance: float) -> None:
    pauses = [pause(attempt, chance) for attempt in range(1, 10)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 4.0 * (1 - chance / 2)


@pytest.mark.parametrize(
    ("outcome", "repeatable", "expected"),
    [
        (Cut("refused", arrived=False), False, True),
        (Cut("reset", arrived=True), False, False),
        (Cut("reset", arrived=True), True, True),
        (Answer(503), False, True),
        (Answer(502), False, False),
        (Answer(504), True, True),
        (Answer(500), True, False),
        (Answer(404), True, False),
    ],
)
def test_what_is_sent_again(outcome: Answer | Cut, repeatable: bool, expected: bool) -> None:
    ways = {"repeatable": repeatable, "chance": 0.5}
    assert (again(outcome, attempt=1, **ways) is not None) is expected
    assert again(outcome, attempt=ATTEMPTS, **ways) is None


# ------------------------------------------------------------------ differences


@pytest.mark.parametrize(
    ("live", "changes", "expected"),
    [
        ({}, {}, []),
        ({}, {"budget": {"limit": "5"}}, ["budget.limit: absent -> 5"]),
        ({"budget": {"limit": "5"}}, {}, []),
        ({"suspend": True}, {}, []),
        ({"suspend": True}, {"suspend": False}, ["suspend: true -> false"]),
        ({"retry": {"maxAttempts": 9}}, {}, []),
        (TAGS, {"tracking": {"tags": {"a": "1"}}}, ["tracking.tags.x.y: 2 -> absent"]),
        (
            {"queue": {"priorityClass": "low"}},
            {"queue": {"priorityClass": "high"}},
            ["queue.priorityClass: low -> high"],
        ),
    ],
)
def test_what_may_change(live: dict[str, Any], changes: dict[str, Any], expected: list[str]) -> None:
    found = differences(job(**live), wanted(**changes))
    assert [str(one) for one in found] == expected
    require_mutable(job(**live), found)


def test_a_patch_makes_the_one_the_other() -> None:
    live = job(budget={"limit": "5"}, tracking={"tags": {"a": "1", "x.y": "2"}})
    found = differences(live, wanted(budget={"limit": "9"}, tracking={"tags": {"b": "3"}}, retry={"maxAttempts": 2}))
    assert merge_patch(found) == {
        "spec": {
            "budget": {"limit": "9"},
            "retry": {"maxAttempts": 2},
            "tracking": {"tags": {"a": None, "x.y": None, "b": "3"}},
        }
    }


def test_what_is_fixed_is_named_with_what_to_do() -> None:
    live = job(budget={"limit": "5", "currency": "EUR"}, checkpoint={"keep": 5})
    found = differences(live, wanted(training={"tokens": 256, "globalBatchTokens": 256}, budget={"limit": "5"}))
    with pytest.raises(Conflict) as raised:
        require_mutable(live, found)
    for words in (
        "default/tiny is there already (Running)",
        "training.tokens: 100000 -> 256",
        "budget.currency: EUR -> USD",
        "checkpoint.keep: 5 -> 3",
        "fathom delete default/tiny",
        "another name",
    ):
        assert words in str(raised.value)


# ------------------------------------------------------------------ phases


def limit_reached() -> dict[str, Any]:
    condition = {"type": "BudgetOK", "status": "False", "reason": "LimitReached"}
    cost = {"spent": "4.9", "burnPerHour": "0", "wasted": "0", "currency": "USD"}
    moment = {"lastTransitionTime": "2026-06-01T12:00:00Z"}
    return {"conditions": [condition | moment], "cost": cost, "progress": progress()}


@pytest.mark.parametrize(
    ("phase", "kind"),
    [
        ("Running", None),
        ("Succeeded", None),
        ("Failed", RunFailed),
        ("Cancelled", Interrupted),
        ("Suspended", Interrupted),
    ],
)
def test_what_a_job_ends_with(phase: str, kind: type[Exception] | None) -> None:
    found = failure(job(phase=phase))
    assert found is None if kind is None else isinstance(found, kind)


def test_a_job_that_stopped_at_its_limit_says_both_amounts() -> None:
    stopped = job(phase="Suspended", status=limit_reached(), budget={"limit": "5.00"})
    assert over_budget(stopped)
    found = failure(stopped)
    assert isinstance(found, OverBudget)
    assert "5.00 USD of which 4.9 are spent" in str(found)
    assert "step 5 of 10" in str(found)


def test_when_waiting_is_over() -> None:
    assert not reached(job(phase="Queued"), ())
    assert reached(job(phase="Suspended"), ())
    assert not reached(job(phase="Suspended"), {Phase.RUNNING})
    assert reached(job(phase="Running"), {Phase.RUNNING})
    with pytest.raises(Conflict, match="default/tiny is Succeeded and will not be Running"):
        reached(job(phase="Succeeded"), {Phase.RUNNING})
