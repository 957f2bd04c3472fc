"""The driver of a cluster as a process, with workers that are pretended."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support.ear import Ear, fenced, listening
from support.pod_stand_in import COMMAND
from support.pods import INCARNATION, HeadPod
from support.runs import RATE, dataset

from orchestrator.cost.budget import Reserve
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import (
    Answer,
    CheckpointAndStop,
    Continue,
    Ended,
    FailureClass,
    HardDeadline,
    Progress,
    read,
    read_control,
)
from orchestrator.launch.resolve import read_resolved, resolve
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

pytestmark = pytest.mark.processes


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[HeadPod]:
    """Of a job of 30 steps, whose dataset the controller has not read."""
    spec = {
        "model": {"preset": "mini"},
        "data": {"source": str(dataset(tmp_path / "data")), "sequenceLength": 256},
        "training": {"tokens": 30 * 8192, "globalBatchTokens": 8192},
        "compute": {"accelerator": "cpu", "workers": 2},
        "checkpoint": {"uri": str(tmp_path / "storage")},
    }
    job = TrainingJob.model_validate({"metadata": {"name": "tiny", "namespace": "team-a"}, "spec": spec})
    resolved = resolve(
        job, uid="u-1", attempt=1, incarnation="placeholder", settings=Settings.load({"FATHOM_HOME": "/no"}),
        storage_uri="unused", read_data=False,
    )  # fmt: skip
    with listening(RunFolder(tmp_path / "controller")) as ear:
        yield HeadPod(tmp_path, job, resolved, ear, COMMAND)


def change(pod: HeadPod, **recipe: Any) -> None:  # noqa: ANN401 - fields
    pod.resolved = pod.resolved.model_copy(update={"recipe": pod.resolved.recipe.model_copy(update=recipe)})


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 180
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def steps(ear: Ear) -> int:
    return sum(isinstance(event, Progress) for event in ear.events)


def test_a_run_to_the_end(pod: HeadPod) -> None:
    assert pod.go() == 0, pod.said
    events = pod.ear.events
    assert events == read(pod.run.events)[0]
    assert {(e.job, e.attempt, e.incarnation) for e in events} == {("u-1", 1, INCARNATION)}
    assert (pod.ended().outcome, pod.ended().step, events[-1]) == ("succeeded", 30, pod.ended())
    assert pod.ear.log == pod.run.log(1).read_bytes()
    for shown in (pod.ear.log.decode(), pod.said):
        assert shown.count("step 30\n") == 1
    assert pod.done


def test_what_the_dataset_decided_is_kept_beside_the_run(pod: HeadPod) -> None:
    assert pod.go() == 0, pod.said
    kept = read_resolved(pod.ear.folder.artifacts / "resolved-1.json")
    assert kept == read_resolved(pod.run.resolved(1))
    at_hand = resolve(
        pod.job, uid="u-1", attempt=1, incarnation=INCARNATION, settings=Settings.load({"FATHOM_HOME": "/no"}),
        storage_uri="unused",
    )  # fmt: skip
    assert kept.recipe == at_hand.recipe
    assert pod.resolved.recipe.eval_tokens != kept.recipe.eval_tokens
    assert TrainingJob.model_validate_json(pod.run.job.read_text()) == pod.job


def test_the_pod_knows_the_process_that_it_has_to_warn(pod: HeadPod) -> None:
    change(pod, steps=100_000)
    with pod.driver() as process:
        until(lambda: steps(pod.ear))
        assert int((pod.run.root / "driver.pid").read_text()) == process.pid
        assert not pod.done
        began = time.time()
        process.send_signal(signal.SIGTERM)
        assert process.wait(180) == 0
    ended = pod.ended()
    assert (ended.outcome, ended.failure_class, ended.message) == ("stopped", FailureClass.INTERRUPTED, "terminated")
    order = read_control(pod.run.control)
    assert isinstance(order, CheckpointAndStop)
    assert began + 60 <= order.deadline <= time.time() + 60, "FATHOM_STOP_SECONDS"
    assert pod.done


@pytest.mark.parametrize(("workers", "step"), [("LATE", None), ("LOST", 3)])
def test_a_pod_that_waits_for_workers_has_nothing_to_save(pod: HeadPod, workers: str, step: int | None) -> None:
    pod.more[workers] = "1"
    with pod.driver() as process:
        until(lambda: pod.ear.got if workers == "LATE" else any(e.kind == "workers-lost" for e in pod.ear.events))
        process.send_signal(signal.SIGTERM)
        assert process.wait(180) == 1, "as whoever is ended at once"
    assert "checkpoint-committed" not in {event.kind for event in pod.ear.events}
    assert (pod.ended().outcome, pod.ended().failure_class) == ("stopped", FailureClass.INTERRUPTED)
    assert (pod.ended().message, pod.ended().step) == ("terminated", step)
    assert pod.done


def test_an_order_of_the_controller(pod: HeadPod) -> None:
    change(pod, steps=100_000)

    def stop_at_ten(ear: Ear) -> Answer:
        return CheckpointAndStop(deadline=time.time() + 600, reason="cancelled") if steps(ear) >= 10 else Continue()

    pod.ear.answers = stop_at_ten
    assert pod.go() == 0
    assert (pod.ended().outcome, pod.ended().message) == ("stopped", "cancelled")


def test_a_dataset_that_is_not_there_is_the_users_error(pod: HeadPod) -> None:
    change(pod, data=str(pod.root / "none"))
    assert pod.go() == 1
    ended, source = pod.ended(), pod.job.spec.data.source
    assert (ended.outcome, ended.failure_class) == ("failed", FailureClass.USER_ERROR)
    assert ended.message == (
        f"spec.data.source: no prepared dataset at {source}: run `fathom data prepare SOURCE {source}`"
    )
    assert pod.done


def test_who_is_fenced_ends_at_once_and_saves_nothing(pod: HeadPod) -> None:
    change(pod, steps=100_000)
    pod.ear.refuse = lambda _: fenced("attempt 2 has begun") if steps(pod.ear) else None
    assert pod.go() == 1
    assert {event.kind for event in pod.ear.events} == {"started", "progress"}
    kinds = [event.kind for event in read(pod.run.events)[0]]
    assert (kinds[-1], "checkpoint-committed" in kinds) == ("ended", False)
    [ended] = [event for event in read(pod.run.events)[0] if isinstance(event, Ended)]
    assert (ended.failure_class, ended.message) == (FailureClass.FENCED, "attempt 2 has begun")
    assert pod.done
    assert "fenced: attempt 2 has begun" in pod.said


def test_a_controller_that_stays_away_is_waited_for_as_long_as_a_checkpoint_may_take(pod: HeadPod) -> None:
    pod.ear.refuse = lambda _: (503, b"")
    pod.more["FATHOM_STOP_SECONDS"] = "1"
    assert pod.go() == 0, "what was trained is trained"
    assert pod.ear.events == []
    assert [event.kind for event in read(pod.run.events)[0]][-1] == "ended"
    assert "the controller was not told of the end" in pod.said
    assert pod.done


def test_a_deadline_of_the_controller_ends_who_does_not_end_himself(pod: HeadPod) -> None:
    """By force, and still the controller is told."""
    change(pod, steps=100_000)
    rate = RATE.model_copy(update={"date": datetime.date(2026, 6, 1)})
    pod.resolved = pod.resolved.model_copy(update={"rate": rate, "money_left": Decimal(100_000), "reserve": Reserve()})

    def gone(ear: Ear) -> Answer:
        past = HardDeadline(number=1, incarnation=INCARNATION, stop=1e9, end=1e9, limit=4e9)
        return Continue(hard_deadline=past) if steps(ear) >= 5 else Continue()

    pod.ear.answers = gone
    pod.more["DEAF"] = "1"
    assert pod.go() == 1
    assert (pod.ended().outcome, pod.ended().failure_class) == ("stopped", FailureClass.OVER_BUDGET)
    assert pod.done


@pytest.mark.parametrize("missing", ["FATHOM_INCARNATION", "FATHOM_CONTROLLER_URL", "FATHOM_TOKEN_FILE"])
def test_elsewhere_it_says_what_is_missing(tmp_path: Path, missing: str) -> None:
    given = {
        "FATHOM_INCARNATION": "i", "FATHOM_CONTROLLER_URL": "http://127.0.0.1", "FATHOM_TOKEN_FILE": "t",
        "FATHOM_STOP_SECONDS": "60", "FATHOM_HOME": str(tmp_path),
    }  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FATHOM_")} | given
    del environment[missing]
    command = [sys.executable, "-m", "orchestrator.launch.entry", "--cluster", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{missing} is not set" in done.stderr
